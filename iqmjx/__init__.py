"""iqmjx: IQ (Implicit Q-values) trained fast on MuJoCo.

Array shapes are written with one letter per dimension throughout the package:

    N  parallel worlds                 O  observation entries
    B  transitions in one batch        A  action dimensions
    C  replay capacity, transitions    n  bins per action dimension
    K  updates per vector step         T  vector steps in one chunk
    M  evaluation episodes, or start states in a bank
    V  value networks                  S  seeds

A vector step is one control step of all N worlds; env steps count worlds, so a vector
step is N env steps.

Read the training step in three files: `agents/iq.py` (the equation), `replay.py` (the
data), `loop.py` (the loop).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqmjx.api import train as train
    from iqmjx.run.trained_policy import load as load

__version__ = "0.1.0"

_LAZY = {"load": "iqmjx.run.trained_policy", "train": "iqmjx.api"}
"""Functions that are imported when they are asked for, and where they are: JAX takes
a second to import."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
