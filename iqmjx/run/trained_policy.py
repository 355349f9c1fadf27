"""A trained policy for use: raw observations in, the task's own actions out."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import acting, envs
from iqmjx.acting import Actor
from iqmjx.config import Config
from iqmjx.errors import UsageError
from iqmjx.policies.base import Policy
from iqmjx.run import saved_policy
from iqmjx.run.saved_policy import SavedPolicy


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedPolicy:
    """A policy that acts: NumPy in, NumPy out.

    Attributes:
        saved: what was read of its run.
        lowest: the lowest action [A], in the task's own units.
        highest: the highest.
    """

    saved: SavedPolicy
    lowest: Float[np.ndarray, " A"]
    highest: Float[np.ndarray, " A"]

    @property
    def center(self) -> Float[np.ndarray, " A"]:
        """The action of control 0, in the task's own units."""
        return (self.highest + self.lowest) / 2

    @property
    def scale(self) -> Float[np.ndarray, " A"]:
        """How far from it the action of control 1 is."""
        return (self.highest - self.lowest) / 2

    @property
    def config(self) -> Config:
        """The settings of its run."""
        return self.saved.config

    @property
    def env(self) -> str:
        """The name of its task."""
        return self.config.env

    @property
    def env_steps(self) -> int:
        """For how many env steps it was trained."""
        return self.saved.env_steps

    @property
    def observation_size(self) -> int:
        """O, entries of an observation."""
        return self.saved.observation_size

    @property
    def action_size(self) -> int:
        """A, dimensions of an action."""
        return self.saved.action_size

    def __call__(
        self,
        obs: npt.ArrayLike,
        key: PRNGKeyArray | None = None,
    ) -> Float[np.ndarray, "*B A"]:
        """The actions for raw observations, as the step of Gymnasium's task takes them.

        Args:
            obs: one observation [O] or a batch of them [B, O].
            key: draws the actions from the policy, for instance `jax.random.key(0)`; a
                key always draws the same, so give each call its own. None: the action
                is the policy's mode.

        Raises:
            UsageError: where `obs` has another shape.
        """
        obs = np.asarray(obs, np.float32)
        size = self.observation_size
        if obs.ndim not in (1, 2) or obs.shape[-1] != size:
            raise UsageError(
                f"obs: its shape is {obs.shape}; give [{size}] or [B, {size}]"
            )
        actions = self.act(np.atleast_2d(obs), key)
        return np.asarray(actions).reshape(*obs.shape[:-1], self.action_size)

    def act(
        self, obs: Float[Array | np.ndarray, "B O"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B A"]:
        """What a call computes, for JAX to trace."""
        saved = self.saved
        return _act(saved.policy, saved.actor, self.center, self.scale, obs, key)

    def __repr__(self) -> str:
        return (
            f"<{self.config.algo} policy for {self.env}, trained for "
            f"{self.env_steps:,} env steps>"
        )


def load(path: str | os.PathLike[str]) -> TrainedPolicy:
    """Loads a trained policy.

        policy = iqmjx.load("checkpoints/humanoid")
        action = policy(obs)

    Args:
        path: a run folder, its `policy` or `best`, or one step in them.

    Raises:
        UsageError: where there is no saved policy, or it cannot be read here.
    """
    return of(saved_policy.load(saved_policy.locate(Path(path).expanduser())))


def of(saved: SavedPolicy) -> TrainedPolicy:
    """A saved policy, with the actions of its task.

    Raises:
        UsageError: where its task cannot be built here.
    """
    task = envs.task_class(saved.config.env)
    if task is None:  # its own engine takes controls
        highest = np.ones(saved.action_size, np.float32)
        lowest = -highest
    else:
        lowest, highest = task("native").action_range
    saved = dataclasses.replace(saved, actor=jax.device_put(saved.actor))
    return TrainedPolicy(saved, lowest, highest)


@functools.partial(jax.jit, static_argnums=0)
def _act(policy: Policy, actor: Actor, center, scale, obs, key):
    if key is None:
        action = acting.act_greedily(policy, actor, obs)
    else:
        action = acting.act(policy, actor, obs, key)
    return center + scale * policy.control(action)
