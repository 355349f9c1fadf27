"""python -m iqmjx.experiment: the command `iqmjx experiment`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("experiment")
