"""python -m iqmjx.train: see `iqmjx.commands.train`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    stop = signals.listen(idle_exit=0)  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, train

    cli.run(lambda: train.main(stop), train.FLAGS)
