"""python -m iqmjx.train: the command `iqmjx train`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("train")
