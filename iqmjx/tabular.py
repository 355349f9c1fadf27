"""python -m iqmjx.tabular: see `iqmjx.commands.tabular`."""

from iqmjx.commands import cli, tabular

if __name__ == "__main__":
    cli.run(tabular.main)
