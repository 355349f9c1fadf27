"""python -m iqmjx.report: the command `iqmjx report`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("report")
