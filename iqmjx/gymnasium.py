"""Our tasks for Gymnasium, N worlds at a time, for those who bring their own agent.

    import gymnasium
    import iqmjx.gymnasium

    worlds = gymnasium.make_vec("iqmjx/Humanoid-v5", num_envs=128)

Importing this module registers every built-in task, under its name in Gymnasium after
`iqmjx/`. Options of `make_vec` are `physics` (`native`, `mjx`, `warp`, or `auto` by
platform) and `max_episode_steps`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from iqmjx import envs
from iqmjx.envs import vector
from iqmjx.envs.vector import Outcome, VectorState
from iqmjx.errors import UsageError

_SEEDS = 2**31


class Worlds(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N worlds of one task.

    Observations, actions and rewards are those of the task's twin in Gymnasium, in
    float32; actions may be JAX arrays. A world whose episode ended is reset in the same
    step: its last observation is in `info["final_obs"]`, and what the task says of that
    step in `info["final_info"]`. There `diverged` is true where the world left the
    numbers; that step terminates, and nothing should be learned from it.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self, task: str, num_envs: int, max_episode_steps: int, physics: str = "auto"
    ):
        """Builds the worlds.

        Args:
            task: a name in `iqmjx.envs.REGISTRY`.
            num_envs: N.
            max_episode_steps: the time limit, control steps.
            physics: `auto`, `native`, `mjx` or `warp`.

        Raises:
            UsageError: where the platform cannot run the engine, or there are no worlds
                or no steps.
        """
        counts = {"num_envs": num_envs, "max_episode_steps": max_episode_steps}
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"{name} {value}: give a whole number of at least 1")
        self.num_envs = num_envs
        self._limit = max_episode_steps
        with jax.enable_x64(False):
            env = envs.make(task, physics, num_envs)
            assert isinstance(env, envs.Env)
            self._env = env
            size = env.observation_size
        box = gymnasium.spaces.Box
        self.single_observation_space = box(-np.inf, np.inf, (size,), np.float32)
        self.single_action_space = box(*env.action_range, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: VectorState | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in every world.

        Args:
            seed: of this and all later random starts; None: they go on as they are.
            options: none are known.

        Raises:
            UsageError: where there are options.
        """
        if options:
            raise UsageError(f"options: {', '.join(options)} is unknown; give none")
        super().reset(seed=seed)
        with jax.enable_x64(False):
            key = jax.random.key(int(self.np_random.integers(_SEEDS)))
            state, key = _begin(self._env, self.num_envs, self._limit, key)
            self._starts, self._key = _draw_starts(self._env, self.num_envs, key)
        self._state = state
        return np.array(state.obs), {}

    def step(
        self, actions: np.ndarray | jax.Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes one control step of every world under actions [N, A].

        Returns:
            Observations [N, O], rewards [N], terminations [N], truncations [N], and the
            task's metrics in `info`. Where a world diverged, `final_obs` is the
            observation before the step, and the reward is 0.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            UsageError: where actions have another shape.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if np.shape(actions) != self.action_space.shape:
            fix = f"give {self.action_space.shape}"
            raise UsageError(f"actions: their shape is {np.shape(actions)}; {fix}")
        with jax.enable_x64(False):
            control = jnp.asarray(actions, jnp.float32)
            state, outcome = _step(
                self._env, self._limit, self._state, self._starts, control
            )
            self._state = state
            obs, outcome = jax.device_get((state.obs, outcome))
            # Both where a task terminates at its time limit, as Gymnasium has it.
            truncated = outcome.truncated | (outcome.length == self._limit)
            ended = outcome.terminated | truncated
            if ended.any():  # a start is taken once
                drawn = _draw_starts(self._env, self.num_envs, self._key)
                self._starts, self._key = drawn
        return (
            np.array(obs),
            np.array(outcome.reward),
            np.array(outcome.terminated),
            truncated,
            _info(outcome, ended),
        )

    def close_extras(self) -> None:
        """Forgets the worlds."""
        self._state = None


def _info(outcome: Outcome, ended: Bool[np.ndarray, " N"]) -> dict[str, Any]:
    """What Gymnasium calls info, of a step whose `outcome` is on the host."""
    info = _masked(outcome.metrics, ~ended)
    if ended.any():
        last = np.full(len(ended), None, object)
        for world in np.flatnonzero(ended):
            last[world] = np.array(outcome.next_obs[world])
        final = _masked({**outcome.metrics, "diverged": outcome.diverged}, ended)
        info |= {"final_obs": last, "_final_obs": ended}
        info |= {"final_info": final, "_final_info": ended}
    return info


def _masked(values: dict[str, Any], mask: Bool[np.ndarray, " N"]) -> dict[str, Any]:
    """Values [N] where the mask says so, zeros elsewhere; each with the mask."""
    zeroed = {
        name: np.where(mask, value, np.zeros_like(value))
        for name, value in values.items()
    }
    return zeroed | {f"_{name}": mask.copy() for name in values}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
    env: envs.Env, num_worlds: int, limit: int, key: PRNGKeyArray
) -> tuple[VectorState, PRNGKeyArray]:
    """The worlds, all at step 0, and the next key."""
    key, own = jax.random.split(key)
    state = vector.init(env, own, num_worlds, limit)
    return dataclasses.replace(state, steps=jnp.zeros_like(state.steps)), key


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_starts(
    env: envs.Env, num_worlds: int, key: PRNGKeyArray
) -> tuple[envs.State, PRNGKeyArray]:
    """A fresh start state for every world [N], and the next key."""
    key, own = jax.random.split(key)
    return jax.vmap(env.reset)(jax.random.split(own, num_worlds)), key


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    env: envs.Env,
    limit: int,
    state: VectorState,
    starts: envs.State,
    actions: Float[Array, "N A"],
) -> tuple[VectorState, Outcome]:
    low, high = env.action_range
    control = (actions - (high + low) / 2) / ((high - low) / 2)
    return vector.step_to(env, state, control, starts, limit)


for _task in envs.REGISTRY.values():
    gymnasium.register(
        f"iqmjx/{_task.gymnasium_id}",
        vector_entry_point=f"{__name__}:{Worlds.__name__}",
        max_episode_steps=_task.episode_length,
        kwargs={"task": _task.name},
    )
