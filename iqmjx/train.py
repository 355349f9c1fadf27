"""python -m iqmjx.train: see `iqmjx.commands.train`."""

from iqmjx.commands import cli, train

if __name__ == "__main__":
    cli.run(train.main)
