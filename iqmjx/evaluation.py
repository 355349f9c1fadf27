"""Evaluation: whole episodes on separate worlds, on the device.

It reads an actor, and takes its keys from a stream of its own, so that evaluating more
or less often changes nothing in training. An episode whose world diverges
ends there, and is counted instead of scored.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from iqmjx import acting, envs
from iqmjx.acting import Actor
from iqmjx.envs import vector
from iqmjx.parallel import BY_SEED, BY_SHARD, Layout
from iqmjx.policies.base import Policy

_STREAM = 1
"""Folded into the run's seed; training uses stream 0."""


@struct.dataclass
class Track:
    """What R worlds (of each seed) went through in L control steps.

    R is the number of devices that episodes are divided among; the first world of each
    is here. Beyond the end of its episode there is nothing of a meaning.
    """

    positions: Float[Array | np.ndarray, "*S R L nq"]  # MuJoCo's qpos before each step
    model_fields: dict[str, Array | np.ndarray]  # [*S R ...], what the model has there


@struct.dataclass
class Episodes:
    """M finished episodes (of each seed), on the device or the host."""

    returns: Float[Array | np.ndarray, "*S M"]
    lengths: Int[Array | np.ndarray, "*S M"]  # control steps
    valid: Bool[Array | np.ndarray, "*S M"]  # False: it ended by diverging
    succeeded: (
        Bool[Array | np.ndarray, "*S M"] | None
    )  # at any step; None where tasks do not say
    track: Track | None = None  # where the game is recorded


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """What is played, and how: a static argument of `play`."""

    env: envs.Task
    policy: Policy
    episode_length: int
    recorded: bool = False  # the first world, of a task that is an `Env`


def play(
    game: Game,
    actor: Actor,
    greedy: Bool[Array | np.ndarray, " M"],
    keys: Key[Array, " M"],
) -> Episodes:
    """Plays one episode in each of M worlds.

    Args:
        game: the task, the policy class and the time limit.
        actor: what acts.
        greedy: which worlds act by the policy's mode; the others sample from it.
        keys: one for each world [M], consumed.
    """
    split = jax.vmap(jax.random.split, out_axes=1)
    reset_keys, act_keys = split(keys)
    num_worlds = greedy.shape[0]
    worlds = jax.vmap(game.env.reset)(reset_keys)
    act = functools.partial(acting.act, game.policy)

    def unfinished(carry):
        step, _, alive, *_ = carry
        return (step < game.episode_length) & alive.any()

    def advance(carry):
        step, worlds, alive, so_far = carry
        noise = jax.vmap(jax.random.fold_in, (0, None))(act_keys, step)
        sampled = jax.vmap(act, (None, 0, 0))(actor, worlds.obs, noise)
        best = acting.act_greedily(game.policy, actor, worlds.obs)
        mask = greedy.reshape(-1, *[1] * (best.ndim - 1))
        control = game.policy.control(jnp.where(mask, best, sampled))
        track = so_far.track
        if track is not None:
            qpos = worlds.pipeline_state.qpos[0]
            positions = track.positions.at[0, step].set(qpos)
            track = dataclasses.replace(track, positions=positions)
        worlds = jax.vmap(game.env.step)(worlds, control)
        diverged = vector.has_diverged(worlds, control)
        counts = alive & ~diverged
        succeeded = so_far.succeeded
        if succeeded is not None:
            succeeded |= counts & (worlds.metrics["success"] > 0)
        so_far = Episodes(
            returns=so_far.returns + jnp.where(counts, worlds.reward, 0.0),
            lengths=so_far.lengths + alive,
            valid=so_far.valid & ~(alive & diverged),
            succeeded=succeeded,
            track=track,
        )
        alive = counts & (worlds.done == 0)
        return step + 1, worlds, alive, so_far

    track = None
    if game.recorded:
        first = jax.tree.map(lambda leaf: leaf[:1], worlds.pipeline_state)
        positions = jnp.zeros((1, game.episode_length, first.qpos.shape[-1]))
        track = Track(positions, first.model_fields)
    all_worlds = jnp.ones(num_worlds, bool)
    nothing = Episodes(
        returns=jnp.zeros(num_worlds),
        lengths=jnp.zeros(num_worlds, jnp.int32),
        valid=all_worlds,
        succeeded=~all_worlds if "success" in worlds.metrics else None,
        track=track,
    )
    start = (jnp.zeros((), jnp.int32), worlds, all_worlds, nothing)
    return jax.lax.while_loop(unfinished, advance, start)[-1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def play_all(
    game: Game,
    layout: Layout,
    actors: Actor,
    greedy: Bool[Array | np.ndarray, " M"],
    seeds: Int[Array, " S"],
    env_steps: UInt32[Array, ""],
) -> Episodes:
    """Plays M episodes [S, M] of every seed, on the devices that the seeds lie on.

    Args:
        game: as for `play`; its environment has room for `worlds_on_a_device`.
        layout: where the seeds lie.
        actors: one for each seed [S].
        greedy: as for `play`.
        seeds: of the runs.
        env_steps: how long they have trained, modulo 2^32. Both decide the start
            states and the noise.
    """
    each = _where_episodes_lie(layout, greedy.shape[0])
    keys = jax.vmap(_keys, (0, None, None))(seeds, env_steps, greedy.shape[0])
    greedy = jnp.broadcast_to(greedy, keys.shape)
    play_here = jax.vmap(functools.partial(play, game))
    return layout.on_devices(play_here, (BY_SEED, each, each), each)(
        actors, greedy, keys
    )


def _keys(
    seed: Int[Array, ""], env_steps: UInt32[Array, ""], count: int
) -> Key[Array, " count"]:
    """Keys [count] for an evaluation of the run with this seed."""
    stream = jax.random.fold_in(jax.random.key(seed), _STREAM)
    return jax.random.split(jax.random.fold_in(stream, env_steps), count)


def worlds_on_a_device(layout: Layout, num_episodes: int) -> int:
    """Worlds that `play_all` steps on one device."""
    if _where_episodes_lie(layout, num_episodes) == BY_SHARD:
        num_episodes //= layout.devices_per_seed
    return layout.own_seeds * num_episodes


def _where_episodes_lie(layout: Layout, num_episodes: int) -> PartitionSpec:
    """Divided among a seed's devices if that is even; else each plays all of them."""
    return BY_SEED if num_episodes % layout.devices_per_seed else BY_SHARD


def both_modes(num_episodes: int) -> np.ndarray:
    """The `greedy` mask [2 * num_episodes] for half greedy, half sampled episodes."""
    return np.arange(2 * num_episodes) < num_episodes


def summarize(episodes: Episodes, greedy: np.ndarray) -> dict[str, float]:
    """Log entries: the greedy episodes' under eval/, the sampled ones' apart.

    Of valid episodes; NaN where none is left.
    """
    returns = np.asarray(episodes.returns, np.float64)
    lengths = np.asarray(episodes.lengths)
    valid = np.asarray(episodes.valid)
    greedy, sampled = greedy & valid, ~greedy & valid
    rows = {"eval/diverged": float((~valid).sum())}
    for name, chosen in (("episode", greedy), ("sampled_episode", sampled)):
        rows[f"eval/{name}_reward"] = over(np.mean, returns[chosen])
        rows[f"eval/{name}_reward_std"] = over(np.std, returns[chosen])
        rows[f"eval/avg_{name}_length"] = over(np.mean, lengths[chosen])
    if episodes.succeeded is not None:
        succeeded = np.asarray(episodes.succeeded)
        rows["eval/success"] = over(np.mean, succeeded[greedy])
        rows["eval/sampled_success"] = over(np.mean, succeeded[sampled])
    return rows


def over(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """A statistic of some values; NaN where there are none."""
    return float(statistic(values)) if values.size else math.nan
