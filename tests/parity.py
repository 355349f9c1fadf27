"""One-step transitions by Gymnasium itself, and the same by our engines.

Both sides start from exactly the same full state: (qpos, qvel) rounded to float32, time
and warm start zero, `mj_forward` done. Ours is `Physics.init`; theirs is `mj_resetData`
and `set_state`. Actions are float32 as well.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.base import Env, State
from envs.locomotion.ant import Ant
from envs.locomotion.half_cheetah import HalfCheetah
from envs.locomotion.hopper import Hopper
from envs.locomotion.humanoid import Humanoid
from envs.locomotion.walker2d import Walker2d

TASKS = {env.name: env for env in (Hopper, Walker2d, HalfCheetah, Ant, Humanoid)}
STATES, ACTIONS = 64, 20
STEPS_PLAYED = 3000
# MJX makes programs that take XLA minutes to optimise for a CPU; this leaves out the
# last of the polish, not any of the arithmetic.
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


class Transitions(NamedTuple):
    """What stepping each of B = 64 x 20 (state, action) pairs once led to."""

    qpos: np.ndarray  # [B, nq]
    qvel: np.ndarray  # [B, nv]
    obs: np.ndarray  # [B, O]
    reward: np.ndarray  # [B]
    terminated: np.ndarray  # [B]
    cfrc_ext: np.ndarray  # [B, nbody, 6]


def gym_env(task: str):
    """Gymnasium's own environment, without wrappers."""
    return gymnasium.make(TASKS[task].gymnasium_id).unwrapped


def gym_place(env, qpos, qvel) -> np.ndarray:
    """Puts Gymnasium's env at a state with nothing left of its past; observes."""
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos.astype(np.float64), qvel.astype(np.float64))
    return env._get_obs()


@functools.cache
def played_states(task: str) -> tuple[np.ndarray, np.ndarray]:
    """64 (qpos, qvel) out of random play at all depths; at least half in contact."""
    env, rng = gym_env(task), np.random.default_rng(0)
    low, high = env.action_space.low, env.action_space.high
    env.reset(seed=0)
    seen, touching = [], []
    for step in range(STEPS_PLAYED):
        terminated = env.step(rng.uniform(low, high))[2]
        seen.append((env.data.qpos.copy(), env.data.qvel.copy()))
        touching.append(env.data.ncon > 0)
        if terminated or (step + 1) % 1000 == 0:
            env.reset()
    touching = np.array(touching)
    half = STATES // 2
    contact = rng.choice(np.flatnonzero(touching), half, replace=False)
    others = np.setdiff1d(np.arange(STEPS_PLAYED), contact)
    chosen = np.concatenate([contact, rng.choice(others, half, replace=False)])
    qpos, qvel = (np.stack(arrays)[chosen] for arrays in zip(*seen, strict=True))
    return qpos.astype(np.float32), qvel.astype(np.float32)


@functools.cache
def starts(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The B (qpos, qvel, action in [-1, 1]) that every engine steps once."""
    qpos, qvel = (np.repeat(array, ACTIONS, axis=0) for array in played_states(task))
    size = (len(qpos), gym_env(task).model.nu)
    action = np.random.default_rng(1).uniform(-1, 1, size)
    return qpos, qvel, action.astype(np.float32)


@functools.cache
def expected(task: str) -> Transitions:
    """What Gymnasium makes of `starts`."""
    env = gym_env(task)
    low, high = env.action_space.low, env.action_space.high
    rows = []
    for qpos, qvel, action in zip(*starts(task), strict=True):
        gym_place(env, qpos, qvel)
        obs, reward, terminated, _, _ = env.step((high + low) / 2 + (high - low) / 2 * action)
        data = env.data
        rows.append(
            (data.qpos.copy(), data.qvel.copy(), obs, reward, terminated)
            + (data.cfrc_ext.copy(),)
        )
    return Transitions(*(np.stack(column) for column in zip(*rows, strict=True)))


def observed(env: Env, qpos, qvel) -> np.ndarray:
    """Our observations [B, O] of states in which nothing has happened yet."""
    return np.asarray(_compile(env, _place)(qpos, qvel).obs)


def computed(env: Env, task: str) -> Transitions:
    """What our env makes of `starts`, all in one vmapped call."""

    def transition(env, qpos, qvel, action):
        state = env.step(_place(env, qpos, qvel), action)
        world = state.pipeline_state
        forces = world.fields.get("cfrc_ext", jnp.zeros(0))
        return Transitions(
            world.qpos, world.qvel, state.obs, state.reward, state.done > 0, forces
        )

    found = _compile(env, transition)(*starts(task))
    return jax.tree.map(np.asarray, found)


def worst_errors(task: str, found: Transitions) -> dict[str, float]:
    """The largest error over all B transitions and all entries, by field.

    Absolute, but for cfrc_ext, which is divided by the largest force of the set.
    """
    want = expected(task)
    errors = {
        name: float(np.abs(getattr(found, name) - getattr(want, name)).max())
        for name in ("qpos", "qvel", "reward")
    }
    if found.cfrc_ext.size:
        error = np.abs(found.cfrc_ext - want.cfrc_ext).max()
        errors["cfrc_ext"] = float(error / np.abs(want.cfrc_ext).max())
    errors["terminated"] = float((found.terminated != want.terminated).sum())
    return errors


def _place(env: Env, qpos, qvel) -> State:
    world = env.physics.init(qpos, qvel)
    zero = jnp.zeros(())
    return State(world, env.observe(world), zero, zero)


def _compile(env: Env, function):
    quick = QUICK_COMPILE if env.physics.name == "mjx" else None
    return jax.jit(jax.vmap(functools.partial(function, env)), compiler_options=quick)
