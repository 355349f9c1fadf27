"""The host's side of a run: its folder, checkpoints, logs, memory and signals."""


class RunError(RuntimeError):
    """What ends a run and is no bug; the message is one line."""
