"""Finds classes by name: a family's own names, or `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from iqmjx.errors import UsageError, described

_TOLD = 12  # names in one message


class NotFoundError(UsageError):
    """There is no class where a name says that it is."""


def find(kind: str, name: str, known: Mapping[str, str | type]) -> Any:
    """The class behind a name.

    Args:
        kind: the flag that takes the name, for messages.
        name: one of `known`, or `package.module:Class`.
        known: classes, or where they are (`package.module:Class`), which is imported
            only now.

    Raises:
        NotFoundError: for an unknown name, and as `load`; the message names the flag.
        UsageError: where it is no name.
    """
    if not isinstance(name, str):
        raise UsageError(f"--{kind} {name}: give a name")
    place = known.get(name, name)
    if not isinstance(place, str):
        return place
    try:
        if ":" in place:
            return load(place)
        hint = close(name, known)
        raise NotFoundError(f"{hint}, or any package.module:Class")
    except NotFoundError as error:
        raise NotFoundError(f"--{kind} {name}: {error}") from error.__cause__


def check(kind: str, name: str, found: Any, calls: Mapping[str, str]) -> None:
    """Holds a class to the calls that its family is asked for.

    Args:
        kind: the flag that takes the name, for messages.
        name: what the flag was given.
        found: the class.
        calls: the methods, each with the arguments it is given: `{"write": "a, b"}`.

    Raises:
        UsageError: where it has no such method, or one that cannot be called so.
    """
    for method, parameters in calls.items():
        function = inspect.getattr_static(found, method, None)
        unbound = inspect.isfunction(function)
        arguments = [*["self"] * unbound, *parameters.split(", ")]
        try:
            inspect.signature(getattr(found, method)).bind(*filter(None, arguments))
        except (AttributeError, TypeError) as error:
            raise UsageError(
                f"--{kind} {name}: the class needs a method {method}({parameters})"
            ) from error


def load(place: str) -> Any:
    """The class or function at `package.module:Class`.

    The module may lie in the working directory, which `python -m` searches by itself
    and an installed command's script does not.

    Raises:
        NotFoundError: in one line, where there is none, or its module cannot be
            imported.
    """
    module_name, _, attribute = place.partition(":")
    if not all(p.isidentifier() for p in (*module_name.split("."), attribute)):
        raise NotFoundError("give package.module:Class")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except NotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module_name):
            raise NotFoundError(
                f"there is no module {error.name}; it must be installed, or lie in the "
                f"working directory or on PYTHONPATH"
            ) from error
        what = f"{module_name} cannot be imported: {described(error)}"
        raise NotFoundError(what) from error
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    its_own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    what = f"{module_name} has no {attribute}"
    if found is not None:
        what = f"{attribute} of {module_name} is no class"
    raise NotFoundError(f"{what}; {close(attribute, its_own)}")


def package(module_name: str, requirement: str) -> Any:
    """A module of a package that not everyone has.

    Raises:
        NotFoundError: where it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        why = f"{missing.split('.')[0]} is not installed" if missing else str(error)
        raise NotFoundError(f"{why}: pip install '{requirement}'") from None


def close(name: str, known: Iterable[str]) -> str:
    """Which of the known names may have been meant, in words."""
    lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    if found:
        return f"did you mean {' or '.join(lower[each] for each in found)}?"
    if not lower:
        return "there is none"
    others = f" or {len(lower) - _TOLD} others" if len(lower) > _TOLD else ""
    return f"choose one of {', '.join(list(lower.values())[:_TOLD])}{others}"


def _is_part(missing: str | None, module_name: str) -> bool:
    """Whether the module that is missing is the one asked for, or a package of it."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")
