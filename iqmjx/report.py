"""python -m iqmjx.report: see `iqmjx.commands.report`."""

from iqmjx.commands import cli, report

if __name__ == "__main__":
    cli.run(report.main)
