"""What stages share: how long a call takes, and all that they know of a training run.

How a config is made and what a training state and an agent look like inside is asked
here alone, so that a change of theirs is met in one file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from iqmjx import loop, presets, replay
from iqmjx.config import Config
from iqmjx.envs.vector import VectorState
from iqmjx.replay import ReplayState, Transition

from .scales import Check

PRECISIONS = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
"""Of matrix products: our names, and JAX's."""


def seconds(call: Callable[..., Any], *arguments: Any, rounds: int) -> float:
    """Least time of a call, after a first one that may compile."""
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def config(check: Check, **changes: Any) -> Config:
    """The `gpu` preset at the check's scale, with changes."""
    given = {"env": check.env} | check.scale.settings | changes
    if "num_envs" in changes:  # a ring of whole inserts
        scaled = {"env": check.env} | check.scale.settings
        rows = presets.resolve(scaled, "gpu").config.max_replay_size
        given["max_replay_size"] = rows // changes["num_envs"] * changes["num_envs"]
    return presets.resolve(given, "gpu").config


def changed(check: Check, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings, of changes of the `gpu` preset.

    `worlds` is how many times its worlds are taken, and its batch, so that each env
    step is learned from as often; all others are settings already.
    """
    settings = dict(changes)
    if factor := settings.pop("worlds", None):
        preset = config(check)
        settings["num_envs"] = int(preset.num_envs * factor)
        settings["batch_size"] = int(preset.batch_size * factor)
    return settings


def setup(check: Check, **changes: Any) -> loop.Setup:
    """What a run of `config` is built from."""
    return loop.make_setup(config(check, **changes))


def with_networks(setup: loop.Setup, wrap: Callable[[Any], Any]) -> loop.Setup:
    """The same, with a wrapper around each of the agent's networks."""
    agent: Any = setup.agent
    policy = dataclasses.replace(agent.policy, network=wrap(agent.policy.network))
    agent = dataclasses.replace(
        agent, policy=policy, value_network=wrap(agent.value_network)
    )
    return dataclasses.replace(setup, agent=agent)


def with_optimizer(setup: loop.Setup, wrap: Callable[[Any], Any]) -> loop.Setup:
    """The same, with a wrapper around the agent's optimizer."""
    agent: Any = setup.agent
    agent = dataclasses.replace(agent, optimizer=wrap(agent.optimizer))
    return dataclasses.replace(setup, agent=agent)


def begin(setup: loop.Setup) -> loop.TrainState:
    """The state that a run begins with."""
    return loop.init(setup)


def worlds(state: loop.TrainState) -> VectorState:
    """A run's worlds [S, G, N/G, ...]."""
    return state.envs


def as_one(worlds: Any) -> Any:
    """All worlds [N, ...] of a run, from those of its seeds and shards."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), worlds)


def full_ring(state: loop.TrainState) -> ReplayState:
    """A run's rings [S, G, C/G, ...] as if they had been filled, with zeros."""
    ring = state.replay
    capacity = ring.data.reward.shape[-1]
    return dataclasses.replace(ring, size=jnp.asarray(capacity, jnp.int32))


def compile_chunk(setup: loop.Setup, state: loop.TrainState) -> Any:
    """The program that training is, compiled."""
    return loop.train_chunk.lower(setup, state).compile()


def rows_sampled(config: Config) -> int:
    """Transitions that a vector step's updates learn from, K * B."""
    return config.grad_updates_per_step * config.batch_size


def sampled(ring: ReplayState, keys: jax.Array, count: int) -> Transition:
    """Rows [S, G, count] drawn and gathered, as a vector step does."""
    return replay.take(ring, replay.sample(ring, keys, count))
