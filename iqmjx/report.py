"""python -m iqmjx.report: see `iqmjx.commands.report`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    signals.listen()  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, report

    cli.run(report.main, report.FLAGS)
