"""python -m iqmjx.evaluate: see `iqmjx.commands.evaluate`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    signals.listen()  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, evaluate

    cli.run(evaluate.main, evaluate.FLAGS)
