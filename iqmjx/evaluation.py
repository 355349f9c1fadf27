"""Evaluation: whole episodes on separate worlds, on the device.

It reads the learner and the normalizer, and takes its keys from a stream of its own, so
that evaluating more or less often changes nothing in training.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from iqmjx import envs, loop, normalize

_STREAM = 1
"""Folded into the run's seed; training uses stream 0."""


@struct.dataclass
class Episodes:
    """M finished episodes, on the device or the host."""

    returns: Float[Array | np.ndarray, " M"]
    lengths: Int[Array | np.ndarray, " M"]  # control steps
    succeeded: (
        Bool[Array | np.ndarray, " M"] | None
    )  # at any step; None where tasks do not say


def make_setup(setup: loop.Setup, num_episodes: int, physics: str) -> loop.Setup:
    """The setup with an environment for `num_episodes` worlds on an engine.

    Raises:
        ValueError: where the platform cannot run the engine.
    """
    env = envs.make(setup.config.env, physics, num_episodes)
    return dataclasses.replace(setup, env=env)


def key(seed: int, env_steps: int) -> PRNGKeyArray:
    """The key for an evaluation after `env_steps` of the run with this seed."""
    stream = jax.random.fold_in(jax.random.key(seed), _STREAM)
    return jax.random.fold_in(stream, env_steps % 2**32)


@functools.partial(jax.jit, static_argnums=0)
def play(
    setup: loop.Setup,
    learner: Any,
    normalizer: normalize.Normalizer,
    greedy: Bool[Array, " M"],
    key: PRNGKeyArray,
) -> Episodes:
    """Plays one episode in each of M worlds; `key` is consumed.

    A world acts greedily (its policy's mode) where `greedy`, else it samples.
    """
    reset_key, act_key = jax.random.split(key)
    num_worlds = greedy.shape[0]
    worlds = jax.vmap(setup.env.reset)(jax.random.split(reset_key, num_worlds))

    def unfinished(carry):
        step, _, alive, *_ = carry
        return (step < setup.config.episode_length) & alive.any()

    def advance(carry):
        step, worlds, alive, returns, lengths, succeeded = carry
        obs = loop.observe(setup, normalizer, worlds.obs)
        sampled = setup.agent.act(learner, obs, jax.random.fold_in(act_key, step))
        best = setup.agent.act_greedy(learner, obs)
        mask = greedy.reshape(-1, *[1] * (best.ndim - 1))
        control = setup.agent.control(jnp.where(mask, best, sampled))
        worlds = jax.vmap(setup.env.step)(worlds, control)
        returns = returns + jnp.where(alive, worlds.reward, 0.0)
        lengths = lengths + alive
        if succeeded is not None:
            succeeded |= alive & (worlds.metrics["success"] > 0)
        alive &= worlds.done == 0
        return step + 1, worlds, alive, returns, lengths, succeeded

    start = (
        jnp.zeros((), jnp.int32),
        worlds,
        jnp.ones(num_worlds, bool),
        jnp.zeros(num_worlds),
        jnp.zeros(num_worlds, jnp.int32),
        jnp.zeros(num_worlds, bool) if "success" in worlds.metrics else None,
    )
    *_, returns, lengths, succeeded = jax.lax.while_loop(unfinished, advance, start)
    return Episodes(returns, lengths, succeeded)


def both_modes(num_episodes: int) -> np.ndarray:
    """The `greedy` mask [2 * num_episodes] for half greedy, half sampled episodes."""
    return np.arange(2 * num_episodes) < num_episodes


def summarize(episodes: Episodes, greedy: np.ndarray) -> dict[str, float]:
    """Log entries: the greedy episodes' under eval/, the sampled ones' apart."""
    returns, lengths = np.asarray(episodes.returns), np.asarray(episodes.lengths)
    rows: dict[str, float] = {}
    for name, chosen in (("episode", greedy), ("sampled_episode", ~greedy)):
        rows[f"eval/{name}_reward"] = float(returns[chosen].mean())
        rows[f"eval/{name}_reward_std"] = float(returns[chosen].std())
        rows[f"eval/avg_{name}_length"] = float(lengths[chosen].mean())
    if episodes.succeeded is not None:
        succeeded = np.asarray(episodes.succeeded)
        rows["eval/success"] = float(succeeded[greedy].mean())
        rows["eval/sampled_success"] = float(succeeded[~greedy].mean())
    return rows
