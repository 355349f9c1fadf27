"""python -m iqmjx.tabular: see `iqmjx.commands.tabular`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    signals.listen()  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, tabular

    cli.run(tabular.main, tabular.FLAGS)
