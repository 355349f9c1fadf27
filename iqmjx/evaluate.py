"""python -m iqmjx.evaluate: see `iqmjx.commands.evaluate`."""

from iqmjx.commands import cli, evaluate

if __name__ == "__main__":
    cli.run(evaluate.main)
