"""python -m iqmjx.experiment: see `iqmjx.commands.experiment`."""

from iqmjx.run import signals, terminal

if __name__ == "__main__":
    signals.listen()  # before imports that take seconds
    terminal.keep_going()
    from iqmjx.commands import cli, experiment

    cli.run(experiment.main, experiment.FLAGS, named_by_place="file")
