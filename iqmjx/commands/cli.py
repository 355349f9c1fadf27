"""What the commands share: flags, user errors, the compilation cache, devices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from iqmjx.config import Config

EXIT_FAILURE, EXIT_USAGE = 1, 2
_MJX_THREADS = "16"


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Ends the program with a one-line error and an exit code."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the ValueErrors that the user's input causes into `fail`."""
    try:
        yield
    except ValueError as error:
        fail(str(error))


def run(main: Callable[[], None]) -> None:
    """Parses the command line and runs a command's main function."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            fail(" ".join(str(error).split()))
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}: settings are given as --name value")
        return rest

    def start(_argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # Orbax logs every save
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        use_compilation_cache()
        asked = ("physics", "sim")
        if any(f in flags.FLAGS and flags.FLAGS[f].value == "mjx" for f in asked):
            give_mjx_threads()
        main()

    app.run(start, flags_parser=parse)


def define_config_flags() -> None:
    """Defines one flag for each field of Config, without a default: the preset's."""
    define: dict[str, Callable[..., Any]] = {
        "str": flags.DEFINE_string,
        "int": flags.DEFINE_integer,
        "float": flags.DEFINE_float,
        "bool": flags.DEFINE_bool,
        "tuple[int, ...]": flags.DEFINE_list,
    }
    for field in dataclasses.fields(Config):
        define[str(field.type)](field.name, None, field.metadata["help"])


def given_settings() -> dict[str, Any]:
    """The config fields whose flags are on the command line.

    Raises:
        ValueError: where a width in --hidden_sizes is not a whole number.
    """
    given = {}
    for field in dataclasses.fields(Config):
        if flags.FLAGS[field.name].present:
            given[field.name] = flags.FLAGS[field.name].value
    if "hidden_sizes" in given:
        widths = given["hidden_sizes"]
        if not all(width.strip().isdigit() for width in widths):
            raise ValueError(
                f"--hidden_sizes {','.join(widths)}: give whole numbers, as in 256,256"
            )
        given["hidden_sizes"] = tuple(int(width) for width in widths)
    return given


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless the user's environment decides."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache / "iqmjx" / "xla"))


def give_mjx_threads() -> None:
    """Widens XLA's thread pool for MJX on a CPU, unless the environment decides.

    jaxlib 0.10 and 0.11 run batched Cholesky factorizations on the pool that they wait
    in: where as many run at once as it has threads (MJX has two, so do small machines),
    all wait forever. Other engines do without, and a wide pool would slow them down.
    Must be called before anything is computed.
    """
    os.environ.setdefault("PJRT_NPROC", _MJX_THREADS)
