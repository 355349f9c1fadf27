"""python -m iqmjx.tabular: see `iqmjx.theory.tabular`."""

from iqmjx.commands import cli
from iqmjx.theory import tabular

if __name__ == "__main__":
    cli.run(tabular.main)
