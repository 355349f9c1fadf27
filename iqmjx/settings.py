"""Fields of settings dataclasses: each knows its flag's help and its range."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

from iqmjx.errors import UsageError

_NOUNS = {
    "str": "a name",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[int, ...]": "whole numbers",
    "tuple[str, ...]": "names",
}
"""The types that flags can have, and what a message calls their values."""

LARGEST_INT = 2**31 - 1
"""Of the int32 that programs count in, and read seeds and lengths as."""
_SMALLEST_FLOAT, _LARGEST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Sizes of float32's numbers beside 0; smaller ones programs take for 0."""


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    before: Any = dataclasses.MISSING,
) -> Any:
    """A field of a settings dataclass, which `check` holds to its type and range.

    Args:
        default: its value where no preset and no flag gives one.
        help: what the flag's help says.
        at_least: the least value; of each entry, where the field is a tuple.
        above: what the value must be more than.
        at_most: the largest value, or math.inf; by default what int32 and float32 hold.
        choices: the values that it may have.
        before: the value that stands for what runs did before there was this setting.
            It fills in for the setting in their files.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "choices": tuple(choices),
        "before": before,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: Any) -> None:
    """Holds a settings dataclass to its fields' types and ranges; for `__post_init__`.

    A number must also be one that programs can hold, in int32 or float32. Lists become
    tuples. Fields of types that flags cannot have pass.

    Raises:
        UsageError: naming the flag and what to give.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if kind(field) not in _NOUNS:
            continue
        if kind(field).startswith("tuple") and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(settings, field.name, value)
        if problem := _problem(field, value):
            is_text = isinstance(value, str) and kind(field) != "str"
            refuse(field.name, repr(value) if is_text else value, problem)


def kind(field: dataclasses.Field[Any]) -> str:
    """A field's type as written: `float`, `tuple[int, ...]`."""
    written = field.type
    return written.__name__ if isinstance(written, type) else str(written)


def refuse(name: str, value: Any, fix: str) -> NoReturn:
    """Raises the UsageError about a setting: the flag, its value, and the fix."""
    raise UsageError(f"--{name} {shown(value)}: {fix}")


def shown(value: Any) -> str:
    """A value as it is given on the command line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "''"


def _problem(field: dataclasses.Field[Any], value: Any) -> str | None:
    """What to give in place of a value that does not fit; None where it does."""
    if not kind(field).startswith("tuple"):
        return _entry_problem(field, kind(field), value)
    if not isinstance(value, tuple):
        return wanted(field)
    entry = kind(field).removeprefix("tuple[").removesuffix(", ...]")
    problems = (_entry_problem(field, entry, each) for each in value)
    return next(filter(None, problems), None)


def _entry_problem(field: dataclasses.Field[Any], kind: str, value: Any) -> str | None:
    limits = field.metadata
    if kind in ("str", "bool"):
        choices = limits.get("choices", ())
        right = isinstance(value, str if kind == "str" else bool)
        return None if right and (not choices or value in choices) else wanted(field)
    number = numbers.Integral if kind == "int" else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number):
        return wanted(field)
    size: Any = value
    low, above, high = (limits.get(name) for name in ("at_least", "above", "at_most"))
    inside = (
        -math.inf < size < math.inf  # and so not NaN
        and (low is None or size >= low)
        and (above is None or size > above)
        and (high is None or size <= high)
    )
    if not inside:
        return wanted(field)
    largest = LARGEST_INT if kind == "int" else _LARGEST_FLOAT
    if high is None and abs(size) > largest:
        return f"give at most {largest:.10g} in size, such as {shown(field.default)}"
    if kind == "float" and 0 < abs(size) < _SMALLEST_FLOAT:
        return f"float32 holds it as 0; give at least {_SMALLEST_FLOAT:.3g} in size"
    return None


def wanted(field: dataclasses.Field[Any]) -> str:
    """What to give for a setting, in words: its type and its range."""
    noun, limits = _NOUNS[kind(field)], field.metadata
    if limits.get("choices"):
        return f"choose one of {', '.join(limits['choices'])}"
    bounds = (limits.get(name) for name in ("at_least", "above", "at_most"))
    low, above, high = (
        None if b == math.inf else f"{b:g}" if isinstance(b, float) else b
        for b in bounds
    )
    if low is not None and high is not None:
        wanted = f"give {noun} from {low} to {high}"
    else:
        bounds = {"of at least": low, "above": above, "of at most": high}
        given = [
            f"{word} {bound}" for word, bound in bounds.items() if bound is not None
        ]
        wanted = " ".join(["give", noun, " and ".join(given)]).rstrip()
    # Of a range of reals the ends are extremes.
    return f"{wanted}, such as {field.default}" if kind(field) == "float" else wanted
