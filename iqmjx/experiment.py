"""python -m iqmjx.experiment: see `iqmjx.commands.experiment`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    stop = signals.listen(idle_exit=0)  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, experiment

    cli.run(lambda: experiment.main(stop), experiment.FLAGS, "file")
