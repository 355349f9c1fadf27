"""What the commands share: how they start, user errors, the compilation cache."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax
from absl import flags, logging

from iqmjx import command_line, cpu, parallel, strict_json
from iqmjx.commands import help
from iqmjx.errors import RunError, UsageError
from iqmjx.run.terminal import plain

EXIT_FAILURE, EXIT_USAGE = 1, 2
_MJX_THREADS = "16"
_TELLING = ("env", "physics", "sim", "checkpoint", "logdir")


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Ends the program with a one-line error and an exit code."""
    if parallel.is_first():
        print(f"error: {plain(message)}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that the user's input causes into `fail`."""
    try:
        yield
    except UsageError as error:
        fail(str(error))


@contextlib.contextmanager
def of_flag(name: str) -> Iterator[None]:
    """Says of errors that a flag's value caused them."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"--{name} {error}") from error


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Ends the program for what ends a run and is no bug, in one line.

    Anything else is a bug, and shows where it comes from.
    """
    try:
        yield
    except RunError as error:
        fail(str(error), EXIT_FAILURE)
    except OSError as error:
        fail(" ".join(str(error).split()), EXIT_FAILURE)


def run(module: ModuleType, arguments: Sequence[str], *args: Any) -> None:
    """Parses a command line and runs a command's main function.

    Args:
        module: the command's: its flags `FLAGS` and its function `main`; `POSITIONAL`,
            if it has one, names the flag whose value may stand alone. Its docstring is
            the head of its help.
        arguments: the command line without its first word.
        args: what `main` is called with.
    """
    own: flags.FlagValues = module.FLAGS
    if help.is_wanted(arguments):
        print(help.text(module, arguments))
        sys.exit(0)
    with user_errors():
        command_line.parse(own, arguments, getattr(module, "POSITIONAL", None))
    flags.FLAGS(sys.argv[:1])  # absl's, chex's and Orbax's own have their defaults
    # Orbax logs every save, and a hundred lines for an error that it raises.
    logging.use_absl_handler()
    logging.set_verbosity(logging.FATAL)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    use_compilation_cache()
    if _may_run_mjx(own):
        give_mjx_threads()
    module.main(*args)


def _may_run_mjx(own: flags.FlagValues) -> bool:
    """Whether MJX in JAX may compute, as far as the flags and the run they name tell.

    Tasks from outside may bring it along.
    """
    given = {name: own[name].value for name in _TELLING if name in own}
    named = given.get("checkpoint") or given.get("logdir") or []
    paths = named if isinstance(named, list) else [named]
    for run in (given, *map(_saved_settings, paths)):
        chosen = [run.get("sim"), run.get("physics")]
        if "mjx" in chosen or ":" in str(run.get("env")):
            return True
    return False


def _saved_settings(path: str) -> dict[str, Any]:
    """What a run's config.json says, unread by Config; {} where there is none."""
    for folder in [Path(path), *Path(path).absolute().parents][:3]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = strict_json.loads((folder / "config.json").read_text())
            return dict(content["config"])
    return {}


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless the user's environment decides.

    They are kept apart by the CPU's instructions: XLA's programs for CPUs use all that
    there are, and a home directory may be seen from several machines.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    features = zlib.crc32(" ".join(cpu.instructions()).encode())
    folder = cache / "iqmjx" / f"xla-{platform.machine()}-{features:08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))


def give_mjx_threads() -> None:
    """Widens XLA's thread pool for MJX on a CPU, unless the environment decides.

    jaxlib 0.10 and 0.11 run batched Cholesky factorizations on the pool that they wait
    in: where as many run at once as it has threads (MJX has two, so do small machines),
    all wait forever. Other engines do without, and a wide pool would slow them down.
    Must be called before anything is computed.
    """
    os.environ.setdefault("PJRT_NPROC", _MJX_THREADS)
