"""The flags of commands, parsed by absl, and a run's settings among them.

A command has a set of flags of its own, so that nothing that absl, chex or Orbax define
is among them.
"""

from __future__ import annotations

import dataclasses
import decimal
import difflib
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from iqmjx import agents, presets
from iqmjx.config import Config, setting_fields
from iqmjx.errors import UsageError
from iqmjx.settings import kind, refuse, wanted


class _Integer(flags.IntegerParser):
    """Takes 1e6 and 1_000_000 as well."""

    def convert(self, argument: Any) -> int:
        number = decimal.Decimal(argument)  # its error is an ArithmeticError
        if number != number.to_integral_value() or number.adjusted() > 30:
            raise ValueError(argument)
        return int(number)

    def parse(self, argument: Any) -> int:
        try:
            return super().parse(argument)
        except ArithmeticError as error:
            raise ValueError(argument) from error


class _Path(flags.ArgumentParser[str]):
    """Takes ~ for the home directory, which no shell expands in --flag=~/x."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)

    def flag_type(self) -> str:
        return "path"


_NOUNS = {_Integer: "a whole number", flags.BooleanParser: "true or false"}
_DEFINE: dict[str, Callable[..., Any]] = {
    "str": flags.DEFINE_string,
    "int": lambda *a, **k: flags.DEFINE(_Integer(), *a, **k),
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "tuple[int, ...]": flags.DEFINE_list,
    "tuple[str, ...]": flags.DEFINE_list,
}
_Fields = dict[str, dataclasses.Field[Any]]
_settings: weakref.WeakKeyDictionary[flags.FlagValues, _Fields] = (
    weakref.WeakKeyDictionary()
)
"""Of each command's flags, those that are settings of a run."""


def integer(
    own: flags.FlagValues, name: str, default: int | None, help: str
) -> flags.FlagHolder[Any]:
    """Defines a flag that takes a whole number."""
    return flags.DEFINE(_Integer(), name, default, help, flag_values=own)


def path(
    own: flags.FlagValues, name: str, default: str | None, help: str
) -> flags.FlagHolder[Any]:
    """Defines a flag that takes a file or folder."""
    return flags.DEFINE(_Path(), name, default, help, flag_values=own)


def preset(own: flags.FlagValues) -> flags.FlagHolder[str]:
    """Defines --preset."""
    named = f"auto (by platform), {', '.join(presets.PRESETS)}."
    return flags.DEFINE_string("preset", "auto", named, flag_values=own)


def json(own: flags.FlagValues) -> flags.FlagHolder[bool]:
    """Defines --json."""
    told = "Print one JSON object and nothing else."
    return flags.DEFINE_bool("json", False, told, flag_values=own)


def settings(own: flags.FlagValues, arguments: Sequence[str] | None = None) -> None:
    """Defines one flag for each setting of a run, without a default: the preset's.

    Settings are those of every run, of the algorithm that a command line names, and
    of all in `agents.ALGORITHMS`; the first to have a name says what its flag is.

    Args:
        own: the flags to add to.
        arguments: the command line; by default the process's.

    Raises:
        UsageError: where the named algorithm is none, or has a setting with the name of
            a flag.
    """
    named = _named_algorithm(sys.argv[1:] if arguments is None else arguments)
    known: _Fields = {}
    for algo in (named, *agents.ALGORITHMS):
        known = setting_fields(algo) | known
    for name, field in known.items():
        if kind(field) not in _DEFINE:
            continue
        told = field.metadata.get("help", "")
        try:
            _DEFINE[kind(field)](name, None, told, flag_values=own)
        except flags.Error as error:
            reason = f"the command has a flag {name}"
            raise UsageError(f"--algo {named}: {reason}") from error
        _settings.setdefault(own, {})[name] = field


def _named_algorithm(arguments: Sequence[str]) -> str:
    """The algorithm that a command line asks for, whatever else is on it."""
    alone = flags.FlagValues()
    alone.set_gnu_getopt(True)
    flags.DEFINE_string("algo", Config.algo, "", flag_values=alone)
    try:
        alone(["", *arguments], known_only=True)
    except flags.Error:
        return Config.algo  # what is wrong is said when all flags are parsed
    return alone.algo


def fields(own: flags.FlagValues) -> _Fields:
    """The settings of a run that are among the flags, by name."""
    return _settings.get(own, {})


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line that gives them."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no'}{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [f"--{name}", str(text)]
    return words


def given_settings(own: flags.FlagValues) -> dict[str, Any]:
    """The settings whose flags are on the command line, by flag name.

    Raises:
        UsageError: where an entry of a list of numbers is not one.
    """
    known = fields(own)
    given: dict[str, Any] = {n: own[n].value for n in known if own[n].present}
    for name, value in given.items():
        if kind(known[name]) == "tuple[int, ...]":
            try:
                given[name] = tuple(int(entry) for entry in value)
            except ValueError:
                refuse(name, tuple(value), "give whole numbers, as in 256,256")
        elif kind(known[name]) == "tuple[str, ...]":
            given[name] = tuple(value)
    return given


def parse(
    own: flags.FlagValues, arguments: Sequence[str], positional: str | None = None
) -> None:
    """Parses a command line without its first word.

    Args:
        own: the command's flags.
        arguments: the words.
        positional: a flag whose value may stand alone.

    Raises:
        UsageError: naming the flag and the fix.
    """
    try:
        rest = own(["", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = _close(error.flagname, own)
        raise UsageError(
            f"--{error.flagname}: there is no such flag; {hint}"
        ) from error
    except flags.Error as error:
        raise UsageError(_parse_error(own, error)) from error
    if positional and len(rest) == 1 and own[positional].value is None:
        own[positional].parse(rest.pop())
        own[positional].present += 1
    if rest:
        raise UsageError(
            f"unexpected argument {rest[0]!r}: settings are given as --name value, "
            f"true and false as --name and --noname"
        )


def _parse_error(own: flags.FlagValues, error: flags.Error) -> str:
    """What absl has against a command line, in one line."""
    text = " ".join(str(error).split())
    illegal = re.match(r"flag --(\w+)=(.*?): ", text)
    if not (illegal and isinstance(error, flags.IllegalFlagValueError)):
        return text
    name, value = illegal.groups()
    parser = own[name].parser
    if name in fields(own):
        fix = wanted(fields(own)[name])
    elif isinstance(parser, flags.EnumParser):
        fix = f"choose one of {', '.join(parser.enum_values)}"
    else:
        fix = f"give {_NOUNS.get(type(parser), 'another value')}"
    return f"--{name} {value}: {fix}"


def _close(name: str, own: flags.FlagValues) -> str:
    """Which flags were perhaps meant, by spelling, initials, or words of their help."""
    word = name.lower().replace("-", "_")
    shorter = word.removeprefix("no")  # of a flag that is true or false
    initials = [f for f in own if word == "".join(part[0] for part in f.split("_"))]
    near = difflib.get_close_matches(word, own, 2, 0.7)
    near += difflib.get_close_matches(shorter, own, 1, 0.6)
    whole_word = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    told = [flag for flag in own if whole_word.search(own[flag].help or "")]
    found = list(dict.fromkeys([*initials, *near, *told]))[:3]
    if found:
        return f"did you mean {' or '.join(f'--{flag}' for flag in found)}?"
    return "--help lists those that there are"
