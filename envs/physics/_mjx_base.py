"""What the two engines built on MJX share.

An `mjx.Data` lives only inside `init` and `step`: made afresh, given the state,
advanced and read. It never enters the state, because some of its leaves (warp's
contacts) belong to all worlds together and could be neither batched nor selected world
by world.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from iqmjx.envs.physics import PhysicsState, _capsules, quiet_compilation

_capsules.install()


_CONTINUED_FROM = ("act", "time", "qacc_warmstart")  # beside qpos and qvel


class MjxEngine(abc.ABC):
    """An engine of `iqmjx.envs.physics` on one implementation of MJX."""

    name: str

    def __init__(
        self,
        spec: mujoco.MjSpec,
        *,
        frame_skip: int,
        fields: tuple[str, ...],
        model_fields: tuple[str, ...],
        num_worlds: int,
        contacts_per_world: int,
        constraints_per_world: int,
    ):
        # MJX has no PGS, which Gymnasium's humanoid asks for. Both solve the same
        # convex problem; one control step of it differs by 4e-9 in qpos.
        spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
        self._prepare(spec, contacts_per_world)
        with quiet_compilation():
            self.model = spec.compile()
        self.frame_skip = frame_skip
        self._model_fields = model_fields
        # MJX keeps matrices as such where MjData has nine numbers in a row.
        data = mujoco.MjData(self.model)
        self._shapes = {name: getattr(data, name).shape for name in fields}
        # Without activations `act` is empty, and an empty array cannot be saved.
        self._carried = [n for n in _CONTINUED_FROM if np.size(getattr(data, n))]
        self._mjx_model = self._make_model()
        self._num_worlds = num_worlds
        self._blank = jax.tree.map(
            np.asarray,
            self._make_data(contacts_per_world * num_worlds, constraints_per_world),
        )

    @abc.abstractmethod
    def _prepare(self, spec: mujoco.MjSpec, contacts_per_world: int):
        """Sets solver limits and sizes in the model before it is compiled."""

    @abc.abstractmethod
    def _make_model(self) -> mjx.Model:
        """Puts the compiled model on the device."""

    @abc.abstractmethod
    def _make_data(self, contacts: int, constraints_per_world: int) -> mjx.Data:
        """Makes one world's data, with room for `contacts` of all worlds together."""

    @abc.abstractmethod
    def _faults(self, data: mjx.Data) -> jax.Array:
        """The FAULT_* bits of the substep that `data` comes from."""

    def _finish(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        """Adds to a control step what the substeps leave out."""
        return data

    def init(self, qpos, qvel, model_fields=None) -> PhysicsState:
        model_fields = model_fields or {}
        model = self._model(model_fields)
        data = self._data(model).replace(qpos=qpos, qvel=qvel)
        data = self._forward(model, data)
        state = self._state(data, model_fields, jnp.zeros((), jnp.int32))
        if "cfrc_ext" in state.fields:
            zero = jnp.zeros_like(state.fields["cfrc_ext"])
            state = dataclasses.replace(
                state, fields={**state.fields, "cfrc_ext": zero}
            )
        # The forward pass leaves qpos and qvel alone; hand back exactly the given ones.
        return dataclasses.replace(state, qpos=qpos, qvel=qvel)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        model = self._model(state.model_fields)
        data = self._data(model).replace(
            qpos=state.qpos, qvel=state.qvel, ctrl=ctrl, **state.carry
        )

        start = (data, jnp.zeros((), jnp.int32))
        data, faults = self._substeps(model, start, self.frame_skip)
        data = self._finish(model, data)
        return self._state(data, state.model_fields, faults)

    def scratch_bytes(self, num_worlds: int) -> int:
        leaves = jax.tree.leaves_with_path(self._blank)
        shared = ("contact", "nacon", "ncollision")  # of all worlds together, in warp
        total = 0
        for path, leaf in leaves:
            of_all = any(name in jax.tree_util.keystr(path) for name in shared)
            once = self.name == "warp" and of_all
            size = leaf.nbytes // self._num_worlds if once else leaf.nbytes
            total += size * num_worlds
        return total

    def _substeps(
        self, model: mjx.Model, carry: tuple[mjx.Data, jax.Array], count: int
    ) -> tuple[mjx.Data, jax.Array]:
        """Takes `count` substeps of (data, FAULT_* bits so far)."""

        def substep(carry, _):
            data, faults = carry
            data = self._substep(model, data)
            return (data, faults | self._faults(data)), None

        return jax.lax.scan(substep, carry, length=count)[0]

    def _substep(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        return mjx.step(model, data)

    def _forward(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        return mjx.forward(model, data)

    def _model(self, model_fields: dict[str, jax.Array]) -> mjx.Model:
        return self._mjx_model.replace(
            **{name: model_fields[name] for name in self._model_fields}
        )

    def _data(self, model: mjx.Model) -> mjx.Data:
        """One world's data, its large constant arrays made by the program itself."""
        return jax.tree.map(_constant, self._blank)

    def _state(self, data: mjx.Data, model_fields: dict, faults) -> PhysicsState:
        return PhysicsState(
            qpos=data.qpos,
            qvel=data.qvel,
            fields={
                name: _read(data, name).reshape(shape)
                for name, shape in self._shapes.items()
            },
            model_fields=model_fields,
            faults=faults,
            carry={name: getattr(data, name) for name in self._carried},
        )


def _constant(leaf: np.ndarray) -> jax.Array:
    """Embeds an array in a program, as one number where all entries are equal."""
    if leaf.size and (leaf == leaf.flat[0]).all():
        return jnp.full(leaf.shape, leaf.flat[0], leaf.dtype)
    return jnp.asarray(leaf)


def _read(data: mjx.Data, name: str) -> Any:
    """A derived field by MjData's name, wherever this implementation keeps it."""
    public = {field.name for field in data.fields()}
    return getattr(data if name in public else data._impl, name)
