"""What commands tell in one line; any other exception is a bug, and shows its place."""


def described(error: BaseException) -> str:
    """An error's class and message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class UsageError(ValueError):
    """Something given cannot be used; the message says what to give instead."""


class RunError(RuntimeError):
    """Something ended a run that is nobody's bug; the message says what."""
