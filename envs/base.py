"""The environment interface, and the base of tasks that are a MuJoCo model.

An environment is two pure functions of one world, batched by the caller with
`jax.vmap`. Its `State` has the fields of `brax.envs.State` and its attributes those of
`brax.envs.Env`, so brax's wrappers and learners take these environments as they are.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx.envs import physics
from iqmjx.envs.physics import PhysicsState


@struct.dataclass
class State:
    """The state of one world (of N worlds under `jax.vmap`)."""

    pipeline_state: PhysicsState
    obs: Float[Array, "*N O"]
    reward: Float[Array, "*N"]
    done: Float[Array, "*N"]  # 1 where the task terminated; a time limit is not its own
    metrics: dict[str, jax.Array] = struct.field(default_factory=dict)
    info: dict[str, Any] = struct.field(default_factory=dict)


class Start(NamedTuple):
    """What an episode of one world begins with."""

    qpos: Float[Array, " nq"]
    qvel: Float[Array, " nv"]
    model_fields: dict[str, jax.Array] | None = None  # its own, by MjModel name


class Env(abc.ABC):
    """One task. Subclasses set the constants and write the four short methods."""

    name: str
    gymnasium_id: str
    gymnasium_package: str = "gymnasium"  # which registers that name
    frame_skip: int
    fields: tuple[str, ...] = ()  # derived MjData fields that the task reads
    model_fields: tuple[str, ...] = ()  # MjModel fields that a reset draws per world
    terminates: bool = True  # False: every episode lasts until the time limit
    episode_length: int = 1000  # control steps, Gymnasium's time limit
    contacts_per_world: int = 16
    constraints_per_world: int = 64

    def __init__(self, physics_engine: str = "auto", num_worlds: int = 1):
        """Builds the task on an engine.

        Args:
            physics_engine: `auto`, `native`, `mjx` or `warp`.
            num_worlds: how many worlds one vmapped call will step.

        Raises:
            ValueError: where the platform cannot run the engine.
        """
        self.physics = physics.make(
            physics_engine,
            self.spec(),
            frame_skip=self.frame_skip,
            fields=self.fields,
            model_fields=self.model_fields,
            num_worlds=num_worlds,
            contacts_per_world=self.contacts_per_world,
            constraints_per_world=self.constraints_per_world,
        )
        model = self.physics.model
        self.dt = model.opt.timestep * self.frame_skip  # seconds per control step
        self._init_qpos = jnp.asarray(model.qpos0, jnp.float32)
        low, high = np.asarray(model.actuator_ctrlrange, np.float32).T
        self._ctrl_center, self._ctrl_scale = (high + low) / 2, (high - low) / 2

    @abc.abstractmethod
    def spec(self) -> mujoco.MjSpec:
        """The task's MuJoCo model."""

    @abc.abstractmethod
    def initial(self, key: PRNGKeyArray) -> Start:
        """Draws what an episode begins with; `key` is consumed."""

    @abc.abstractmethod
    def observe(self, state: PhysicsState) -> Float[Array, " O"]:
        """The observation of a world."""

    @abc.abstractmethod
    def judge(
        self, before: PhysicsState, after: PhysicsState, ctrl: Float[Array, " nu"]
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """The reward [], whether the task terminated (bool []), and metrics to log."""

    def reset(self, rng: PRNGKeyArray) -> State:
        """Begins an episode; `rng` is consumed."""
        world = self.physics.init(*self.initial(rng))
        zero = jnp.zeros(())
        _, _, metrics = jax.eval_shape(
            self.judge, world, world, jnp.zeros(self.action_size)
        )
        return State(
            pipeline_state=world,
            obs=self.observe(world),
            reward=zero,
            done=zero,
            metrics=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), metrics),
            info={"overflow": world.overflow},
        )

    def step(self, state: State, control: Float[Array, " A"]) -> State:
        """Takes one control step; `control` in [-1, 1] spans the actuators' range."""
        ctrl = self.ctrl(control)
        world = self.physics.step(state.pipeline_state, ctrl)
        reward, terminated, metrics = self.judge(state.pipeline_state, world, ctrl)
        # Never weakly typed: one compilation serves the first step and the others.
        reward, done, metrics = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float32), (reward, terminated, metrics)
        )
        return dataclasses.replace(
            state,
            pipeline_state=world,
            obs=self.observe(world),
            reward=reward,
            done=done,
            metrics={**state.metrics, **metrics},
            info={**state.info, "overflow": world.overflow},
        )

    def ctrl(self, control: Float[Array, "*B A"]) -> Float[Array, "*B nu"]:
        """MuJoCo's `ctrl`, in the actuators' units, for a control in [-1, 1]."""
        return self._ctrl_center + self._ctrl_scale * control

    def for_worlds(self, num_worlds: int) -> Env:
        """The same task on the same engine, for another number of worlds."""
        return type(self)(self.physics.name, num_worlds)

    @property
    def observation_size(self) -> int:
        """O, the number of entries of an observation."""
        return jax.eval_shape(self.reset, jax.random.key(0)).obs.shape[-1]

    @property
    def action_size(self) -> int:
        """A, the number of action dimensions."""
        return self.physics.model.nu

    @property
    def backend(self) -> str:
        """The physics engine's name."""
        return self.physics.name

    @property
    def unwrapped(self) -> Env:
        """This environment: there is no wrapper around it."""
        return self
