"""One-step transitions by Gymnasium itself, and the same by our engines.

Both sides start from exactly the same full state: (qpos, qvel) rounded to float32, time
and warm start zero, `mj_forward` done. Ours is `Physics.init`; theirs is `mj_resetData`
and `set_state`. Actions are float32 as well.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from iqmjx.envs.base import Env, State
from iqmjx.envs.locomotion.ant import Ant
from iqmjx.envs.locomotion.half_cheetah import HalfCheetah
from iqmjx.envs.locomotion.hopper import Hopper
from iqmjx.envs.locomotion.humanoid import Humanoid
from iqmjx.envs.locomotion.walker2d import Walker2d
from iqmjx.run import gymnasium_play

TASKS = {env.name: env for env in (Hopper, Walker2d, HalfCheetah, Ant, Humanoid)}
STATES, ACTIONS = 64, 20
STEPS_PLAYED = 3000
# MJX makes programs that take XLA minutes to optimise for a CPU; this leaves out the
# last of the polish, not any of the arithmetic.
QUICK_COMPILE: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones have no such option
    QUICK_COMPILE["xla_cpu_use_fusion_emitters"] = False


class Transitions(NamedTuple):
    """What stepping each of B = 64 x 20 (state, action) pairs once led to."""

    first_obs: np.ndarray  # [B, O], before the step
    qpos: np.ndarray  # [B, nq]
    qvel: np.ndarray  # [B, nv]
    obs: np.ndarray  # [B, O]
    reward: np.ndarray  # [B]
    terminated: np.ndarray  # [B]
    fields: dict[str, np.ndarray]  # the derived fields that the task reads, [B, ...]


def gym_env(task: str):
    """Gymnasium's own environment, without wrappers."""
    return gymnasium_play.make(TASKS[task]).unwrapped


def gym_place(env, qpos, qvel) -> np.ndarray:
    """Puts Gymnasium's env at a state with nothing left of its past; observes."""
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos.astype(np.float64), qvel.astype(np.float64))
    return env._get_obs()


def controls(env, action: np.ndarray) -> np.ndarray:
    """Gymnasium's own actions for ours in [-1, 1]."""
    low, high = env.action_space.low, env.action_space.high
    return (high + low) / 2 + (high - low) / 2 * action


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
    *places, action = starts(task)
    rows = []
    for qpos, qvel, ctrl in zip(*places, controls(env, action), strict=True):
        first_obs = gym_place(env, qpos, qvel)
        obs, reward, terminated, _, _ = env.step(ctrl)
        data = env.data
        fields = {name: getattr(data, name).copy() for name in TASKS[task].fields}
        after = data.qpos.copy(), data.qvel.copy(), obs, reward, terminated, fields
        rows.append(Transitions(first_obs, *after))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def computed(env: Env, task: str) -> Transitions:
    """What our env makes of `starts`, all in one vmapped call."""

    def transition(qpos, qvel, action):
        start = place(env, qpos, qvel)
        state = env.step(start, action)
        world = state.pipeline_state
        done = state.done > 0
        after = world.qpos, world.qvel, state.obs, state.reward, done, world.fields
        return Transitions(start.obs, *after)

    options = QUICK_COMPILE if env.physics.name == "mjx" else None
    step = jax.jit(jax.vmap(transition), compiler_options=options)
    return jax.tree.map(np.asarray, step(*starts(task)))


def worst_errors(task: str, found: Transitions) -> dict[str, float]:
    """The largest error over all B transitions and all entries, by field.

    Absolute for qpos, qvel and reward; divided by the field's largest entry in the set
    for derived fields; `terminated` counts the transitions that differ.
    """
    want = expected(task)
    errors = {
        name: np.abs(getattr(found, name) - getattr(want, name)).max()
        for name in ("qpos", "qvel", "reward")
    }
    for name, field in want.fields.items():
        errors[name] = np.abs(found.fields[name] - field).max() / np.abs(field).max()
    errors["terminated"] = (found.terminated != want.terminated).sum()
    return {name: float(error) for name, error in errors.items()}


def place(env: Env, qpos, qvel, model_fields=None) -> State:
    """One world of ours at a state in which nothing has happened yet."""
    world = env.physics.init(qpos, qvel, model_fields)
    zero = jnp.zeros(())
    info = {"faults": world.faults}
    return State(world, env.observe(world), zero, zero, info=info)
