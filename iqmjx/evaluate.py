"""python -m iqmjx.evaluate: the command `iqmjx evaluate`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("evaluate")
