"""The whole training step, changed: more worlds, seeds at once, other tasks.

A row for each change: its rate, and those of the parts. Where worlds grow, batches grow
with them, so that a vector step's updates stay as many, and each env step is learned
from as often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iqmjx.run import throughput

from . import common
from .scales import Check, Results

_TOLD = (
    "compile_seconds",
    "env_steps_per_second",
    "physics_only_env_steps_per_second",
    "updates_per_second",
    "efficiency",
    "peak_memory_bytes",
)


def measure(changes: Sequence[dict[str, Any]], check: Check) -> Results:
    """Yields a row for each of some changes, as `common.changed` takes them."""
    rows = []
    for change in changes:
        config = common.config(check, **common.changed(check, change))
        told = throughput.measure(config, check.scale.rounds)
        sizes = {
            "env": config.env,
            "num_seeds": config.num_seeds,
            "num_envs": config.num_envs,
            "batch_size": config.batch_size,
        }
        rows.append(sizes | {name: told[name] for name in _TOLD})
        yield {"rates": rows}
