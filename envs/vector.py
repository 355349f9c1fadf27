"""N worlds of one task: time limit, auto-reset and the true last observation.

A finished episode is replaced, in the same step, by a start state from a bank of fresh
random resets; the observation that the step really reached is returned beside it. A
time limit is a truncation: it ends the episode, never the bootstrap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from iqmjx.envs.base import Env, State
from iqmjx.envs.physics import PhysicsState


@struct.dataclass
class VectorState:
    """N worlds between two steps."""

    physics: PhysicsState  # [N, ...]
    obs: Float[Array, "N O"]
    steps: Int[Array, " N"]  # control steps into the episode, its random phase included
    length: Int[Array, " N"]  # control steps really taken in the episode
    episode_return: Float[Array, " N"]
    whole: Bool[Array, " N"]  # the episode began at step 0: its return counts


@struct.dataclass
class Bank:
    """M start states to reset to."""

    physics: PhysicsState  # [M, ...]
    obs: Float[Array, "M O"]


@struct.dataclass
class Outcome:
    """What one step of N worlds brought, before any reset."""

    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    next_obs: Float[Array, "N O"]  # the true last observation where the episode ended
    diverged: Bool[Array, " N"]  # the simulation left the finite numbers
    overflow: Int[Array, " N"]  # OVERFLOW_* bits of this step
    counted: Bool[Array, " N"]  # an episode ended here and its return counts
    episode_return: Float[Array, " N"]
    length: Int[Array, " N"]


def make_bank(env: Env, key: PRNGKeyArray, size: int) -> Bank:
    """Draws `size` fresh start states; `key` is consumed."""
    states: State = jax.vmap(env.reset)(jax.random.split(key, size))
    return Bank(states.pipeline_state, states.obs)


def init(
    env: Env, key: PRNGKeyArray, num_worlds: int, episode_length: int
) -> VectorState:
    """Starts N worlds; `key` is consumed.

    Where the task never terminates, each world begins at a random phase of its episode,
    so that the time limit does not end all episodes at once, forever. Those shortened
    first episodes are left out of the statistics.
    """
    bank_key, phase_key = jax.random.split(key)
    bank = make_bank(env, bank_key, num_worlds)
    zeros = jnp.zeros(num_worlds, jnp.int32)
    steps = zeros
    if not env.terminates:
        steps = jax.random.randint(phase_key, (num_worlds,), 0, episode_length)
    return VectorState(
        physics=bank.physics,
        obs=bank.obs,
        steps=steps,
        length=zeros,
        episode_return=jnp.zeros(num_worlds),
        whole=steps == 0,
    )


def step(
    env: Env,
    state: VectorState,
    action: Float[Array, "N A"],
    bank: Bank,
    key: PRNGKeyArray,
    episode_length: int,
) -> tuple[VectorState, Outcome]:
    """Steps N worlds, resetting those whose episode ended; `key` is consumed.

    A world that leaves the finite numbers is reset as well, its step replaced by one
    that stays where it was, terminal and without reward, so that no NaN is learned
    from.
    """
    stepped: State = jax.vmap(env.step)(_as_env_state(state), action)
    diverged = ~(jnp.isfinite(stepped.obs).all(-1) & jnp.isfinite(stepped.reward))
    reward = jnp.where(diverged, 0.0, stepped.reward)
    next_obs = _where(diverged, state.obs, stepped.obs)
    terminated = diverged | (stepped.done > 0)
    steps = state.steps + 1
    truncated = (steps >= episode_length) & ~terminated
    done = terminated | truncated
    outcome = Outcome(
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=next_obs,
        diverged=diverged,
        overflow=stepped.pipeline_state.overflow,
        counted=done & state.whole,
        episode_return=state.episode_return + reward,
        length=state.length + 1,
    )

    # Each world draws its own start state, whether or not it needs one.
    drawn = jax.random.randint(key, done.shape, 0, bank.obs.shape[0])
    fresh = jax.tree.map(lambda leaf: leaf[drawn], bank)
    next_state = VectorState(
        physics=_where(done, fresh.physics, stepped.pipeline_state),
        obs=_where(done, fresh.obs, next_obs),
        steps=jnp.where(done, 0, steps),
        length=jnp.where(done, 0, outcome.length),
        episode_return=jnp.where(done, 0.0, outcome.episode_return),
        whole=state.whole | done,
    )
    return next_state, outcome


def _as_env_state(state: VectorState) -> State:
    zeros = jnp.zeros(state.steps.shape)
    return State(state.physics, state.obs, zeros, zeros)


def _where(condition, if_true, if_false):
    """`jnp.where` by world (the leading axis) over whole trees."""

    def select(a, b):
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(select, if_true, if_false)
