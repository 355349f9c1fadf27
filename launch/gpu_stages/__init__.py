"""The stages of launch/gpu_check.py, each in a file that says what it measures and why.

A stage is a function of a `Check` that yields its result again and again as it grows.
Besides the stages: `scales` has their sizes, `common` all that they know of a training
run, `without_jax` the simulator beside the `warp` engine, `profile` reads a profile,
and `summary` writes the results in Markdown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from . import ceilings, physics, replay, training, updates, whole_run
from .scales import Check, Results

STAGES: dict[str, Callable[[Check], Results]] = {
    "ceilings": ceilings.measure,
    "run": whole_run.measure,
    "training": training.measure,
    "warp": functools.partial(physics.measure, "warp"),
    "updates": updates.measure,
    "replay": replay.measure,
    "native": functools.partial(physics.measure, "native"),
    "mjx": functools.partial(physics.measure, "mjx"),
}
"""By name, in the order in which they run: what matters most comes first."""
