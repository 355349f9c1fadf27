"""python -m iqmjx.benchmark: see `iqmjx.commands.benchmark`."""

from iqmjx.commands import benchmark, cli

if __name__ == "__main__":
    cli.run(benchmark.main)
