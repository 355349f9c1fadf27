"""python -m iqmjx.tabular: the command `iqmjx tabular`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("tabular")
