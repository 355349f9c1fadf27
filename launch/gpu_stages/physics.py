"""A physics engine: one control step against MuJoCo C, then env steps/s by worlds.

Physics is most of a training step, and on a GPU it waits for launches rather than for
the card: how the rate grows with the number of worlds says how many to train with. The
worlds are stepped as training steps them (`vector.step`, resets included, in one scan),
under random controls. A rate is worth nothing if the step is wrong, so an engine whose
step differs from MuJoCo C's is refused first.

For `warp`, MuJoCo Warp takes the same steps without JAX (`without_jax`): the difference
is what crossing from JAX costs.
"""

from __future__ import annotations

import functools
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from iqmjx import envs
from iqmjx.commands import cli
from iqmjx.run import throughput

from . import common
from .scales import Check, Results
from .without_jax import without_jax

_CHECKED_WORLDS = 32
_TOLERANCE = 1e-3
"""Largest difference in qpos, of any world, that a step from MuJoCo C's may have."""


def measure(engine: str, check: Check) -> Results:
    """Yields the step's error, and a row for each number of worlds."""
    if engine == "mjx":
        cli.give_mjx_threads()
    try:
        envs.make(check.env, engine)
    except ValueError as error:  # mjx does not know every collision
        yield {"refused": str(error)}
        return
    result: dict[str, Any] = {"rates": []}
    if engine != "native":
        result["largest_qpos_error"] = _step_error(check.env, engine)
    for count in check.scale.worlds[engine]:
        result["rates"].append(_rate(engine, check, count))
        yield result


def _step_error(task: str, engine: str) -> float:
    """Largest |qpos - MuJoCo C's| after one control step from the same states.

    Raises:
        RuntimeError: where it is above _TOLERANCE; its rate would mean nothing.
    """
    after = []
    for name in ("native", engine):
        env = envs.make(task, name, _CHECKED_WORLDS)
        keys = jax.random.split(jax.random.key(0), _CHECKED_WORLDS)
        worlds = jax.jit(jax.vmap(env.reset))(keys)
        control = jax.random.uniform(
            jax.random.key(1), (_CHECKED_WORLDS, env.action_size), minval=-1.0
        )
        after.append(jax.jit(jax.vmap(env.step))(worlds, control).pipeline_state.qpos)
    error = float(jnp.abs(after[0] - after[1]).max())
    if not error <= _TOLERANCE:
        raise RuntimeError(f"{engine}: a step differs from MuJoCo C's by {error:.1e}")
    return error


def _rate(engine: str, check: Check, count: int) -> dict[str, Any]:
    """A row: `count` worlds, stepped for a chunk at a time."""
    steps, rounds = check.scale.vector_steps, check.scale.rounds
    setup = common.setup(check, physics=engine, num_envs=count, chunk_steps=steps)
    start = time.perf_counter()
    worlds = common.worlds(common.begin(setup))
    controls = throughput.random_controls(setup, jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), setup.layout.num_seeds)
    stepping = functools.partial(throughput.stepping(setup), worlds, controls, keys)
    after, (overflowed, diverged) = jax.block_until_ready(stepping())
    compiling, captured = time.perf_counter() - start, _captured_graphs()
    seconds = common.seconds(stepping, rounds=rounds)
    row = {
        "worlds": count,
        "env_steps_per_second": count * steps / seconds,
        "seconds_to_first": compiling,
        "graphs_captured_again": _captured_graphs() - captured,
        "worlds_overflowed": int(overflowed.sum()),
        "worlds_diverged": int(diverged.sum()),
    }
    if engine == "warp":
        begin, after = common.as_one((worlds, after))
        by_step = common.as_one(jnp.moveaxis(controls, 2, 3)).swapaxes(0, 1)
        env = cast(envs.Env, setup.env)  # the check is of our own tasks
        alone = without_jax(env, begin.worlds.pipeline_state, by_step)
        qpos = after.worlds.pipeline_state.qpos
        gaps = np.abs(alone() - np.asarray(qpos)).max(-1)
        unbroken = np.asarray(after.length) == steps  # were not reset on the way
        seconds = common.seconds(alone, rounds=rounds)
        row["without_jax_env_steps_per_second"] = count * steps / seconds
        row["without_jax_median_qpos_gap"] = float(np.median(gaps[unbroken]))
    return row


def _captured_graphs() -> int:
    """CUDA graphs that Warp has captured so far for calls from JAX."""
    from warp._src.jax import ffi

    callables = getattr(ffi, "_FFI_CALLABLE_REGISTRY", {})
    return sum(len(callable.captures) for callable in callables.values())
