"""What the commands share: flags, user errors, the compilation cache, devices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from iqmjx import agents, cpu, parallel, presets, strict_json
from iqmjx.config import Config, setting_fields
from iqmjx.errors import RunError, UsageError
from iqmjx.run.terminal import plain
from iqmjx.settings import kind, refuse, wanted

EXIT_FAILURE, EXIT_USAGE = 1, 2
_MJX_THREADS = "16"
_NOUNS = {flags.IntegerParser: "a whole number", flags.BooleanParser: "true or false"}
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


def run(
    main: Callable[[], None],
    own: flags.FlagValues = flags.FLAGS,
    named_by_place: str | None = None,
) -> None:
    """Parses the command line and runs a command's main function.

    Args:
        main: the function.
        own: the command's flags: a set of its own, so that the modules of several
            commands can be imported into one process.
        named_by_place: a flag whose value may stand alone on the command line.
    """
    if own is not flags.FLAGS:
        flags.FLAGS.append_flag_values(own)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            fail(_parse_error(error))
        own.mark_as_parsed()
        if named_by_place and len(rest) == 2 and own[named_by_place].value is None:
            own[named_by_place].value = rest.pop()
        if len(rest) > 1:
            fail(
                f"unexpected argument {rest[1]!r}: settings are given as --name value, "
                f"true and false as --name and --noname"
            )
        return rest

    def start(_argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs every save, and a hundred lines for an error that it raises.
            logging.set_verbosity(logging.FATAL)
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        use_compilation_cache()
        if _may_run_mjx():
            give_mjx_threads()
        main()

    try:
        app.run(start, flags_parser=parse)
    finally:
        if own is not flags.FLAGS:
            flags.FLAGS.remove_flag_values(own)


def _parse_error(error: flags.Error) -> str:
    """What the parser has against a command line, in one line of ours."""
    text = " ".join(str(error).split())
    illegal = re.match(r"flag --(\w+)=(.*?): ", text)
    if not (illegal and isinstance(error, flags.IllegalFlagValueError)):
        return text
    name, value = illegal.groups()
    parser = flags.FLAGS[name].parser
    if name in _settings:
        fix = wanted(_settings[name])
    elif isinstance(parser, flags.EnumParser):
        fix = f"choose one of {', '.join(parser.enum_values)}"
    else:
        fix = f"give {_NOUNS.get(type(parser), 'another value')}"
    return f"--{name} {value}: {fix}"


def _may_run_mjx() -> bool:
    """Whether MJX in JAX may compute, as far as the flags and the run they name tell.

    Tasks from outside may bring it along.
    """
    given = {name: flags.FLAGS[name].value for name in _TELLING if name in flags.FLAGS}
    saved = _saved_settings(given.get("checkpoint") or given.get("logdir"))
    chosen = [given.get("sim"), given.get("physics"), saved.get("physics")]
    task = str(given.get("env") or saved.get("env"))
    return "mjx" in chosen or ":" in task


def _saved_settings(path: str | None) -> dict[str, Any]:
    """What a run's config.json says, unread by Config; {} where there is none."""
    for folder in [Path(path), *Path(path).absolute().parents][:3] if path else []:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = strict_json.loads((folder / "config.json").read_text())
            return dict(content["config"])
    return {}


_DEFINE: dict[str, Callable[..., Any]] = {
    "str": flags.DEFINE_string,
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "tuple[int, ...]": flags.DEFINE_list,
    "tuple[str, ...]": flags.DEFINE_list,
}
_settings: dict[str, dataclasses.Field[Any]] = {}
"""The settings that are flags, by name."""


def define_preset(own: flags.FlagValues) -> flags.FlagHolder[str]:
    """Defines --preset."""
    named = f"auto (by platform), {', '.join(presets.PRESETS)}."
    return flags.DEFINE_string("preset", "auto", named, flag_values=own)


def define_json(own: flags.FlagValues) -> flags.FlagHolder[bool]:
    """Defines --json."""
    told = "Print one JSON object and nothing else."
    return flags.DEFINE_bool("json", False, told, flag_values=own)


def define_config_flags(own: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each setting of a run, without a default: the preset's.

    Settings are those of every run, of the algorithm that the command line names, and
    of all in `agents.ALGORITHMS`; the first to have a name says what its flag is.
    """
    with user_errors():
        named = _named_algorithm(sys.argv)
        fields: dict[str, dataclasses.Field[Any]] = {}
        for algo in (named, *agents.ALGORITHMS):
            fields = setting_fields(algo) | fields
        for name, field in fields.items():
            if kind(field) in _DEFINE:
                _define(named, name, field, own)


def _define(
    algo: str, name: str, field: dataclasses.Field[Any], own: flags.FlagValues
) -> None:
    help_text = field.metadata.get("help", "")
    try:
        _DEFINE[kind(field)](name, None, help_text, flag_values=own)
    except flags.Error as error:
        raise UsageError(f"--algo {algo}: the command has a flag {name}") from error
    _settings[name] = field


def _named_algorithm(argv: Sequence[str]) -> str:
    """The algorithm that a command line asks for, whatever else is on it."""
    alone = flags.FlagValues()
    alone.set_gnu_getopt(True)
    flags.DEFINE_string("algo", Config.algo, "", flag_values=alone)
    try:
        alone(argv, known_only=True)
    except flags.Error:
        return Config.algo  # what is wrong is said when all flags are parsed
    return alone.algo


def given_settings(own: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The settings whose flags are on the command line, by flag name.

    Raises:
        UsageError: where an entry of a list of numbers is not one.
    """
    given: dict[str, Any] = {
        name: own[name].value for name in _settings if own[name].present
    }
    for name, value in given.items():
        if kind(_settings[name]) == "tuple[int, ...]":
            try:
                given[name] = tuple(int(entry) for entry in value)
            except ValueError:
                refuse(name, tuple(value), "give whole numbers, as in 256,256")
        elif kind(_settings[name]) == "tuple[str, ...]":
            given[name] = tuple(value)
    return given


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
