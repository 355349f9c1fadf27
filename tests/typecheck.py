"""Checks the annotations of `iqmjx` at run time, shapes included, while tests run.

By beartype and jaxtyping; every function of the package is decorated as it is imported.

- Protocols are passed over: an isinstance() would compute their properties.
- A class of the package whose fields have shapes is held to them where a function takes
  or returns it. Its __init__ is left alone, because trees are made of specs too.
"""

import functools
import inspect
import operator
import types
import typing
from typing import Annotated, Any

import jax
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from beartype.vale import Is
from jaxtyping import AbstractArray, install_import_hook, jaxtyped

PACKAGE = "iqmjx"

_decorate = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may be a float


def install():
    """From here on; nothing of the package must have been imported."""
    install_import_hook(PACKAGE, f"{__name__}.{check.__name__}")


def check(function):
    """A function that raises where its arguments or results are not as annotated."""
    if function.__name__ == "__init__":
        return function
    hints = function.__annotations__.items()
    function.__annotations__ = {name: _checked(hint) for name, hint in hints}
    return _decorate(function)


def _checked(hint):
    """What an annotation is checked as."""
    if _names(hint, lambda kind: getattr(kind, "_is_protocol", False)):
        return Any
    if isinstance(hint, type) and hint.__module__.startswith(f"{PACKAGE}."):
        return Annotated[hint, Is[_holds_its_shapes]]
    parts = tuple(map(_checked, typing.get_args(hint)))
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(operator.or_, parts)
    return tuple[parts] if origin is tuple else hint


def _holds_its_shapes(value):
    """True where fields that hold arrays hold such as annotated; raises elsewhere."""
    with jaxtyped("context"):
        for name, hint in _shaped_fields(type(value)).items():
            held = getattr(value, name)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(held)):
                die_if_unbearable(held, hint, exception_prefix=f"{name}: ")
    return True


@functools.cache
def _shaped_fields(kind):
    hints = inspect.get_annotations(kind, eval_str=True).items()
    return {name: hint for name, hint in hints if _names(hint, _is_shape)}


def _is_shape(kind):
    return isinstance(kind, type) and issubclass(kind, AbstractArray)


def _names(hint, is_one):
    """Whether an annotation is such a type, or has one within it."""
    return is_one(hint) or any(_names(part, is_one) for part in typing.get_args(hint))
