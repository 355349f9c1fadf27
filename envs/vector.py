"""N worlds of one task: time limit, auto-reset and the true last observation.

A finished episode is replaced, in the same step, by a start state from a bank of fresh
random resets; the observation that the step really reached is returned beside it. A
time limit is a truncation: it ends the episode, never the bootstrap. So is an end that
the task itself calls one, in `info["truncation"]`.

A world that diverges ends its episode too, and its step teaches nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from iqmjx.envs.base import State, Task
from iqmjx.envs.physics import (
    FAULT_CONSTRAINTS,
    FAULT_CONTACTS,
    FAULT_STATE,
    PhysicsState,
)

_LEAST_STARTS = 256
"""Start states in a bank of few worlds, which reset many times while it lasts."""
LARGEST_CONTROL = 10.0
"""Ten times the range of a control: one beyond it, or NaN, is none."""


@struct.dataclass
class VectorState:
    """N worlds between two steps."""

    worlds: State  # [N, ...], as the task returned them
    steps: Int[Array, " N"]  # control steps into the episode, its random phase included
    length: Int[Array, " N"]  # control steps really taken in the episode
    episode_return: Float[Array, " N"]
    whole: Bool[Array, " N"]  # the episode began at step 0: its return counts

    @property
    def obs(self) -> Float[Array, "*N O"]:
        """What the worlds show now."""
        return self.worlds.obs


@struct.dataclass
class Offender:
    """A world whose step diverged, as it was before (`iqmjx.run.offenders`)."""

    found: Bool[Array, ""]  # whether there is one; if not, this is some other world
    qpos: Float[Array, " nq"]
    qvel: Float[Array, " nv"]
    model_fields: dict[str, Float[Array, " ..."]]  # its own, by MjModel name
    control: Float[Array, " A"]  # which it was given


@struct.dataclass
class Outcome:
    """What one step of N worlds brought, before any reset."""

    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    next_obs: Float[Array, "N O"]  # the true last observation where the episode ended
    diverged: Bool[Array, " N"]  # the world diverged (see `has_diverged`)
    offender: Offender | None  # the first that did; None where a task is no `Env`
    overflowed: Bool[Array, " N"]  # contacts or constraints were dropped
    counted: Bool[Array, " N"]  # an episode ended here, in numbers; its return counts
    episode_return: Float[Array, " N"]
    length: Int[Array, " N"]
    metrics: dict[str, Float[Array, " N"]]  # the task's own


def bank_size(num_worlds: int) -> int:
    """Start states in a bank for N worlds."""
    return num_worlds * -(-_LEAST_STARTS // num_worlds)


def make_bank(env: Task, key: PRNGKeyArray, num_worlds: int) -> State:
    """Draws fresh start states [M, ...] for N worlds; `key` is consumed.

    At least as many as worlds, and no fewer than 256. They are drawn N at a time,
    because an engine may have room for that many worlds alone.
    """
    keys = jax.random.split(key, (bank_size(num_worlds) // num_worlds, num_worlds))
    drawn = jax.lax.map(jax.vmap(env.reset), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), drawn)


def init(
    env: Task, key: PRNGKeyArray, num_worlds: int, episode_length: int
) -> VectorState:
    """Starts N worlds; `key` is consumed.

    Where the task never terminates, each world begins at a random phase of its episode,
    so that the time limit does not end all episodes at once, forever. Those shortened
    first episodes are left out of the statistics.
    """
    reset_key, phase_key = jax.random.split(key)
    worlds = jax.vmap(env.reset)(jax.random.split(reset_key, num_worlds))
    zeros = jnp.zeros(num_worlds, jnp.int32)
    steps = zeros
    if not env.terminates:
        steps = jax.random.randint(phase_key, (num_worlds,), 0, episode_length)
    return VectorState(
        worlds=worlds,
        steps=steps,
        length=zeros,
        episode_return=jnp.zeros(num_worlds),
        whole=steps == 0,
    )


def step(
    env: Task,
    state: VectorState,
    control: Float[Array, "N A"],
    bank: State,
    key: PRNGKeyArray,
    episode_length: int,
) -> tuple[VectorState, Outcome]:
    """Steps N worlds, resetting those whose episode ended; `key` is consumed.

    Each world draws its own start state from the bank [M], whether or not it needs one.
    """
    drawn = jax.random.randint(key, state.steps.shape, 0, bank.obs.shape[0])
    starts = jax.tree.map(lambda leaf: leaf[drawn], bank)
    return step_to(env, state, control, starts, episode_length)


def step_to(
    env: Task,
    state: VectorState,
    control: Float[Array, "N A"],
    starts: State,
    episode_length: int,
) -> tuple[VectorState, Outcome]:
    """Steps N worlds, putting those whose episode ended at their start states [N].

    A world that diverges is reset as well. Its outcome keeps the observation
    that it had, without reward, so that no NaN is stored, and says `diverged`, so that
    nothing is learned from it.
    """
    stepped: State = jax.vmap(env.step)(state.worlds, control)
    diverged = has_diverged(stepped, control)
    done = stepped.done > 0
    told = stepped.info.get("truncation", jnp.zeros_like(stepped.done)) > 0
    steps = state.steps + 1
    terminated = diverged | (done & ~told)
    truncated = ((steps >= episode_length) | (done & told)) & ~terminated
    ended = terminated | truncated
    reward = jnp.where(diverged, 0.0, stepped.reward)
    outcome = Outcome(
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=where(diverged, state.obs, stepped.obs),
        diverged=diverged,
        offender=_offender(diverged, state.worlds, control),
        overflowed=_faults(stepped) & (FAULT_CONSTRAINTS | FAULT_CONTACTS) != 0,
        counted=ended & state.whole & ~diverged,
        episode_return=state.episode_return + reward,
        length=state.length + 1,
        metrics={
            name: where(diverged, jnp.zeros_like(value), value)
            for name, value in stepped.metrics.items()
        },
    )

    next_state = VectorState(
        worlds=where(ended, starts, stepped),
        steps=jnp.where(ended, 0, steps),
        length=jnp.where(ended, 0, outcome.length),
        episode_return=jnp.where(ended, 0.0, outcome.episode_return),
        whole=state.whole | ended,
    )
    return next_state, outcome


def has_diverged(stepped: State, control: Float[Array, "N A"]) -> Bool[Array, " N"]:
    """Which of N worlds diverged in a step under these controls.

    Their observation or reward is not finite, the task or the engine under it says so
    (`FAULT_STATE`), or the control was none.
    """
    return ~(
        jnp.isfinite(stepped.obs).all(-1)
        & jnp.isfinite(stepped.reward)
        & (_faults(stepped) & FAULT_STATE == 0)
        & (jnp.abs(control) <= LARGEST_CONTROL).all(-1)
    )


def _faults(stepped: State) -> Int[Array, " N"]:
    """FAULT_* bits of a step; 0 where the task does not say."""
    return stepped.info.get("faults", jnp.zeros(stepped.reward.shape, jnp.int32))


def _offender(
    diverged: Bool[Array, " N"], before: State, control: Float[Array, "N A"]
) -> Offender | None:
    """The first of N worlds that diverged, as it was before."""
    world = before.pipeline_state
    if not isinstance(world, PhysicsState):
        return None
    all_worlds = world.qpos, world.qvel, world.model_fields, control
    first = jnp.argmax(diverged)
    return Offender(diverged.any(), *jax.tree.map(lambda leaf: leaf[first], all_worlds))


def where(condition: Bool[Array, " N"], if_true: Any, if_false: Any) -> Any:
    """`jnp.where` by world (the leading axis) over whole trees."""

    def select(a, b):
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(select, if_true, if_false)
