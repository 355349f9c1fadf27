"""Fields of settings dataclasses: each knows its flag's help and its range."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

_NOUNS = {
    "str": "a name",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[int, ...]": "whole numbers",
    "tuple[str, ...]": "names",
}
"""The types that flags can have, and what a message calls their values."""


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
        at_most: the largest value.
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

    Lists become tuples. Fields of types that flags cannot have pass.

    Raises:
        ValueError: naming the flag and what to give.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if kind(field) not in _NOUNS:
            continue
        if kind(field).startswith("tuple") and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(settings, field.name, value)
        if not _fits(field, value):
            refuse(field.name, value, _wanted(field))


def kind(field: dataclasses.Field[Any]) -> str:
    """A field's type as written: `float`, `tuple[int, ...]`."""
    written = field.type
    return written.__name__ if isinstance(written, type) else str(written)


def refuse(name: str, value: Any, fix: str) -> NoReturn:
    """Raises the ValueError about a setting: the flag, its value, and the fix."""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    raise ValueError(f"--{name} {shown}: {fix}")


def _fits(field: dataclasses.Field[Any], value: Any) -> bool:
    if not kind(field).startswith("tuple"):
        return _entry_fits(kind(field), field.metadata, value)
    entry = kind(field).removeprefix("tuple[").removesuffix(", ...]")
    return isinstance(value, tuple) and all(
        _entry_fits(entry, field.metadata, each) for each in value
    )


def _entry_fits(kind: str, limits: Any, value: Any) -> bool:
    if kind in ("str", "bool"):
        choices = limits.get("choices", ())
        right = isinstance(value, str if kind == "str" else bool)
        return right and (not choices or value in choices)
    number = numbers.Integral if kind == "int" else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number):
        return False
    low, above, high = (limits.get(name) for name in ("at_least", "above", "at_most"))
    return (
        math.isfinite(float(value))
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
    )


def _wanted(field: dataclasses.Field[Any]) -> str:
    noun, limits = _NOUNS[kind(field)], field.metadata
    if limits.get("choices"):
        return f"choose one of {', '.join(limits['choices'])}"
    low, above, high = (limits.get(name) for name in ("at_least", "above", "at_most"))
    if low is not None and high is not None:
        return f"give {noun} from {low} to {high}"
    bounds = {"of at least": low, "above": above, "of at most": high}
    given = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    return " ".join(["give", noun, " and ".join(given)]).rstrip()
