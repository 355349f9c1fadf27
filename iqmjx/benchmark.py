"""python -m iqmjx.benchmark: the command `iqmjx benchmark`."""

from iqmjx.__main__ import run

if __name__ == "__main__":
    run("benchmark")
