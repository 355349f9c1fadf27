"""Finds classes by name: a family's own names, or `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def find(kind: str, name: str, known: Mapping[str, str | type]) -> Any:
    """The class behind a name.

    Args:
        kind: the flag that takes the name, for messages.
        name: one of `known`, or `package.module:Class`.
        known: classes, or where they are (`package.module:Class`), which is imported
            only now.

    Raises:
        ValueError: for an unknown name, module or class, in one line. An error inside
            the module itself is raised as it is.
    """
    place = known.get(name, name)
    if not isinstance(place, str):
        return place
    module, colon, attribute = place.partition(":")
    if not colon:
        raise ValueError(f"--{kind} {name}: {_choose(name, known)}")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"--{kind} {name}: give package.module:Class")
    found = getattr(_import(kind, name, module), attribute, None)
    if found is None:
        raise ValueError(f"--{kind} {name}: module {module} has no {attribute}")
    return found


def _import(kind: str, name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # of something that the module imports
        raise ValueError(
            f"--{kind} {name}: there is no module {error.name}; it must be installed, "
            f"or lie in the working directory or on PYTHONPATH"
        ) from error


def _choose(name: str, known: Mapping[str, str | type]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}choose one of {', '.join(known)}, or give package.module:Class"
