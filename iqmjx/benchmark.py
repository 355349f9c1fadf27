"""python -m iqmjx.benchmark: see `iqmjx.commands.benchmark`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    signals.listen()  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import benchmark, cli

    cli.run(benchmark.main, benchmark.FLAGS)
