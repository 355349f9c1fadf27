"""What a task is (`Task`), and the base of tasks that are a MuJoCo model (`Env`).

A task is two pure functions of one world, batched by the caller with `jax.vmap`. Its
`State` has the fields of `brax.envs.State`, and an `Env` the attributes of
`brax.envs.Env`, so brax's wrappers and learners take our tasks as they are.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx.envs import physics
from iqmjx.envs.physics import FAULT_STATE, PhysicsState
from iqmjx.errors import UsageError


@struct.dataclass
class State:
    """The state of one world (of N worlds under `jax.vmap`).

    Every leaf belongs to one world and holds at least one number, and none is weakly
    typed: callers may `vmap`, select by world, scan over and save the whole of it.

    Two entries of `info` have a meaning to a run; a task has them in all of its states
    or in none:

    - `truncation`, float32: 1 where the task ended the episode by a limit of its own.
      `done` is 1 there too, and the episode counts as cut off, not as terminated.
    - `faults`, int32: what went wrong in this step, bits of `iqmjx.envs.physics`.
      `FAULT_CONTACTS` and `FAULT_CONSTRAINTS`, 2 and 1: some were dropped for want of
      room, which is counted. `FAULT_STATE`, 4: the world diverged; nothing is
      learned from the step, and the world is reset.
    """

    pipeline_state: Any  # the task's own: a PhysicsState in tasks that are an Env
    obs: Float[Array, "*N O"]
    reward: Float[Array, "*N"]
    done: Float[Array, "*N"]  # 1 where the task ended the episode; our limit is not it
    metrics: dict[str, jax.Array] = struct.field(default_factory=dict)  # "*N", to log
    info: dict[str, Any] = struct.field(default_factory=dict)


class Engine(Protocol):
    """What a run asks of the physics under a task."""

    name: str  # as logs and benchmarks give it

    def scratch_bytes(self, num_worlds: int) -> int:
        """Memory that stepping so many worlds takes besides their states."""
        ...


class Task(Protocol):
    """All that a run asks of a task. `Env` has it, and so has a task from outside."""

    name: str
    gymnasium_id: str | None  # its twin in Gymnasium, where there is one
    terminates: bool  # False: every episode lasts until the time limit
    episode_length: int  # control steps, the task's own time limit

    @property
    def frame_skip(self) -> int | None:
        """Physics steps per control step, where known."""
        ...

    @property
    def physics(self) -> Engine:
        """The engine that steps it."""
        ...

    @property
    def observation_size(self) -> int:
        """O, the number of entries of an observation."""
        ...

    @property
    def action_size(self) -> int:
        """A, the number of action dimensions."""
        ...

    def reset(self, rng: PRNGKeyArray) -> State:
        """Begins an episode of one world; `rng` is consumed."""
        ...

    def step(self, state: State, control: Float[Array, " A"]) -> State:
        """Takes one control step of one world; `control` is in [-1, 1].

        The new state has the shapes and types of the one given.
        """
        ...

    def for_worlds(self, num_worlds: int) -> Task:
        """The same task on the same engine, for another number of worlds."""
        ...


class Start(NamedTuple):
    """What an episode of one world begins with."""

    qpos: Float[Array, " nq"]
    qvel: Float[Array, " nv"]
    model_fields: dict[str, jax.Array] | None = None  # its own, by MjModel name


class Env(abc.ABC):
    """One task. Subclasses set the constants and write the short methods.

    A subclass that says nothing of `name` is called `module:Class`, and one that says
    nothing of `gymnasium_id` has no twin in Gymnasium, whatever it derives from.
    """

    name: str
    xml: str  # the model's file, beside the module of the class; or write `spec`
    gymnasium_id: str | None = None
    gymnasium_package: str = "gymnasium"  # whose import registers that name
    frame_skip: int = 1  # physics steps per control step
    fields: tuple[str, ...] = ()  # derived MjData fields that the task reads
    model_fields: tuple[str, ...] = ()  # MjModel fields that a reset draws per world
    terminates: bool = True  # False: every episode lasts until the time limit
    episode_length: int = 1000  # control steps, Gymnasium's time limit
    contacts_per_world: int = 16
    constraints_per_world: int = 64
    # Where videos look from: attributes of MjvCamera by name, degrees and metres; as
    # `run.video.look_through` takes them. By default it follows the first body.
    camera: Mapping[str, Any] = {
        "type": mujoco.mjtCamera.mjCAMERA_TRACKING,
        "trackbodyid": 1,
        "elevation": -15.0,
    }
    # A state beyond these is none (`FAULT_STATE`): ten times what the task reaches, or
    # more, as launch/largest_speeds.py measures it.
    largest_speed: float = 1e4  # |qvel|, m/s or rad/s
    largest_position: float = 1e5  # |qpos|, m or rad
    # [A] each: the lowest and the highest action in the task's own units, as the step
    # of its twin in Gymnasium takes it. The actuators', unless a subclass sets others.
    action_range: tuple[np.ndarray, np.ndarray]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "name" not in own:
            cls.name = f"{cls.__module__}:{cls.__qualname__}"
        if "gymnasium_id" not in own:
            cls.gymnasium_id = None

    def __init__(self, physics_engine: str = "auto", num_worlds: int = 1):
        """Builds the task on an engine.

        Args:
            physics_engine: `auto`, `native`, `mjx` or `warp`.
            num_worlds: how many worlds one vmapped call will step.

        Raises:
            UsageError: where the platform cannot run the engine, or an actuator of the
                model has no control range for actions to span.
        """
        self.physics = self._build(physics_engine, num_worlds)
        model = self.physics.model
        self.dt = model.opt.timestep * self.frame_skip  # seconds per control step
        self._init_qpos = jnp.asarray(model.qpos0, jnp.float32)
        low, high = np.asarray(model.actuator_ctrlrange, np.float32).T
        for actuator in np.flatnonzero(low >= high):
            named = model.actuator(actuator).name or actuator
            raise UsageError(f"its actuator {named} needs a ctrlrange")
        self._ctrl_center, self._ctrl_scale = (high + low) / 2, (high - low) / 2
        self.action_range = low, high

    def spec(self) -> mujoco.MjSpec:
        """The task's MuJoCo model; of the file `xml` unless a subclass says otherwise.

        Raises:
            UsageError: where there is no such file, or MuJoCo cannot read it.
        """
        owners = [kind for kind in type(self).__mro__ if "xml" in vars(kind)]
        if not owners:
            raise UsageError("set xml, the model's file, or write spec()")
        path = Path(inspect.getfile(owners[0])).parent / self.xml
        try:
            return mujoco.MjSpec.from_file(str(path))
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _build(self, physics_engine: str, num_worlds: int) -> physics.Physics:
        return physics.make(
            physics_engine,
            self.spec(),
            frame_skip=self.frame_skip,
            fields=self.fields,
            model_fields=self.model_fields,
            num_worlds=num_worlds,
            contacts_per_world=self.contacts_per_world,
            constraints_per_world=self.constraints_per_world,
        )

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
        """Begins an episode; `rng` is consumed.

        Raises:
            UsageError: where `initial` draws other fields than `model_fields` names.
        """
        start = self.initial(rng)
        drawn, named = set(start.model_fields or {}), set(self.model_fields)
        if drawn != named:
            raise UsageError(
                f"model_fields names {sorted(named)}, and initial() draws "
                f"{sorted(drawn)}"
            )
        world = self._bounded(self.physics.init(*start))
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
            info={"faults": world.faults},
        )

    def step(self, state: State, control: Float[Array, " A"]) -> State:
        """Takes one control step; `control` in [-1, 1] spans the actuators' range."""
        ctrl = self.ctrl(control)
        before = state.pipeline_state
        world = self._bounded(self.physics.step(before, ctrl))
        # What has diverged stays there; a start may have.
        faults = world.faults | (before.faults & FAULT_STATE)
        world = dataclasses.replace(world, faults=faults)
        reward, terminated, metrics = self.judge(before, world, ctrl)
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
            info={**state.info, "faults": world.faults},
        )

    def _bounded(self, world: PhysicsState) -> PhysicsState:
        """A world with `FAULT_STATE` where it is beyond the task's bounds, or NaN."""
        sane = (jnp.abs(world.qvel) <= self.largest_speed).all()
        sane &= (jnp.abs(world.qpos) <= self.largest_position).all()
        faults = world.faults | jnp.where(sane, 0, FAULT_STATE)
        return dataclasses.replace(world, faults=faults.astype(jnp.int32))

    def ctrl(self, control: Float[Array, "*B A"]) -> Float[Array, "*B nu"]:
        """MuJoCo's `ctrl`, in the actuators' units, for a control in [-1, 1]."""
        return self._ctrl_center + self._ctrl_scale * control

    def for_worlds(self, num_worlds: int) -> Env:
        """The same task on the same engine, for another number of worlds."""
        other = copy.copy(self)
        other.physics = self._build(self.physics.name, num_worlds)
        return other

    def constant(self, name: str) -> jax.Array:
        """An array of the model, float32, by MjModel name."""
        return jnp.asarray(getattr(self.physics.model, name), jnp.float32)

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
