"""MuJoCo C on the CPU, stepped by threads inside the jitted program.

The exact double-precision state of each world rides in the carry as raw bits
(`uint32`, two per double), because the surrounding program computes in float32. A
trajectory is therefore the one that Gymnasium would produce, and a saved state
continues bit for bit.

Worlds are stepped by `mujoco.batch`, whose threads never enter Python. It cannot give
`cfrc_ext` as Gymnasium reads it (`mj_rnePostConstraint` on what the last substep left
behind), so tasks that ask for it are stepped world by world from Python threads.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from iqmjx.envs.physics import (
    BAD_STATE,
    FAULT_CONSTRAINTS,
    FAULT_CONTACTS,
    FAULT_STATE,
    PhysicsState,
    host_call,
    quiet_compilation,
    silence,
)

_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)
_STATE_AND_CTRL = _STATE | int(mujoco.mjtState.mjSTATE_CTRL)
_BATCH_ROW = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_FAULTS = np.zeros(int(mujoco.mjtWarning.mjNWARNING), np.int32)
"""The FAULT_* bit that a warning stands for, by its number."""
_FAULTS[mujoco.mjtWarning.mjWARN_CNSTRFULL] = FAULT_CONSTRAINTS
_FAULTS[mujoco.mjtWarning.mjWARN_CONTACTFULL] = FAULT_CONTACTS
_FAULTS[list(BAD_STATE)] = FAULT_STATE
_CONTACT_FORCES = "cfrc_ext"
_WORLDS_AT_A_TIME = 2  # worlds differ in cost, so the last that a thread takes are few


def cpus() -> list[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Worlds(NamedTuple):
    """W worlds on the host; its arrays are good until the next call."""

    states: Any  # [W, S] double: the parts of a state named in _STATE
    fields: dict[str, Any]  # [W, ...] by MjData name
    warnings: Any  # [W, mjNWARNING] counts during the call


class Engine:
    """The `native` engine (see `iqmjx.envs.physics`)."""

    name = "native"

    def __init__(
        self,
        spec: mujoco.MjSpec,
        *,
        frame_skip: int,
        fields: tuple[str, ...],
        model_fields: tuple[str, ...],
        **_sizes: int,  # MuJoCo C sizes its own arena
    ):
        with quiet_compilation():
            self.model = spec.compile()
        self.frame_skip = frame_skip
        self.num_threads = len(cpus())
        self._model_fields = model_fields
        self._state_size = mujoco.mj_stateSize(self.model, _STATE)
        shared = (self.model, frame_skip, fields, model_fields, self.num_threads)
        self._batch = functools.cache(functools.partial(_Batch, *shared))
        self._workers = _Workers(*shared) if _CONTACT_FORCES in fields else None
        self._lock = threading.Lock()  # both kinds hold one call's worlds

        model, data = self.model, mujoco.MjData(self.model)
        shape: Any = jax.ShapeDtypeStruct
        float32 = functools.partial(shape, dtype=jnp.float32)
        self._outputs = PhysicsState(
            qpos=float32((model.nq,)),
            qvel=float32((model.nv,)),
            fields={name: float32(getattr(data, name).shape) for name in fields},
            model_fields={},
            faults=shape((), jnp.int32),
            carry=shape((2 * self._state_size,), jnp.uint32),
        )
        # Where qpos and qvel start in a state vector: [time, qpos, qvel, act, ...].
        self._qpos = slice(1, 1 + model.nq)
        self._qvel = slice(1 + model.nq, 1 + model.nq + model.nv)

    def init(self, qpos, qvel, model_fields=None) -> PhysicsState:
        return self._call(self._init, model_fields or {}, qpos, qvel)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        return self._call(self._step, state.model_fields, state.carry, ctrl)

    def scratch_bytes(self, num_worlds: int) -> int:
        del num_worlds  # each thread has one buffer, and steps world after world in it
        return self.num_threads * mujoco.MjData(self.model).narena

    def _call(self, function, model_fields: dict, *inputs) -> PhysicsState:
        """Runs `function` on the host, over all worlds at once."""
        number = self._number(function.__name__)
        host_call.register(number, function)
        state = jax.lax.platform_dependent(
            *inputs,
            *(model_fields[name] for name in self._model_fields),
            cpu=functools.partial(host_call.call, number, self._outputs),
            default=functools.partial(
                jax.pure_callback,
                function,
                self._outputs,
                vmap_method="broadcast_all",
            ),
        )
        return dataclasses.replace(state, model_fields=model_fields)

    def _number(self, name: str) -> int:
        """Of one of its functions: the same for engines that compute the same."""
        digest = hashlib.sha256(self._identity + name.encode()).digest()
        return int.from_bytes(digest[:7])

    @functools.cached_property
    def _identity(self) -> bytes:
        """What decides what the engine computes, in short; a model may be megabytes."""
        model = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, model)
        said = repr((self.frame_skip, [*self._outputs.fields], self._model_fields))
        return hashlib.sha256(model.tobytes() + said.encode()).digest()

    def _init(self, qpos, qvel, *model_fields) -> PhysicsState:
        """Host side of `init`, over any leading batch dimensions."""
        qpos = np.asarray(qpos)
        states = np.zeros((*qpos.shape[:-1], self._state_size))
        states[..., self._qpos] = qpos
        states[..., self._qvel] = qvel
        return self._run(states, None, model_fields)

    def _step(self, bits, ctrl, *model_fields) -> PhysicsState:
        """Host side of `step`, over any leading batch dimensions."""
        states = np.ascontiguousarray(bits).view(np.float64)
        return self._run(states, np.asarray(ctrl), model_fields)

    def _run(self, states, ctrl, model_fields) -> PhysicsState:
        """Steps worlds under `ctrl`, or computes their fields where it is None."""
        batch = states.shape[:-1]
        count = int(np.prod(batch))
        states = states.reshape(count, -1)
        overrides = [
            np.asarray(value).reshape(count, *getattr(self.model, name).shape)
            for name, value in zip(self._model_fields, model_fields, strict=True)
        ]
        with self._lock, silence:
            if ctrl is None:
                worlds = self._batch(count).forward(states, overrides)
            else:
                stepper = self._workers or self._batch(count)
                worlds = stepper.step(states, ctrl.reshape(count, -1), overrides)
            results = PhysicsState(
                qpos=worlds.states[:, self._qpos],
                qvel=worlds.states[:, self._qvel],
                fields=worlds.fields,
                model_fields={},
                faults=np.bitwise_or.reduce(
                    np.where(worlds.warnings > 0, _FAULTS, 0), axis=1
                ),
                carry=worlds.states.view(np.uint32),
            )
            return jax.tree.map(
                lambda values, out: values.astype(out.dtype).reshape(
                    (*batch, *out.shape)
                ),
                results,
                self._outputs,
            )


class _Batch:
    """Worlds as rows of a `mujoco.batch`, for one number of worlds."""

    def __init__(self, model, frame_skip, fields, model_fields, threads, count):
        self._batch = mujoco.batch.Batch(model, count, threads)
        self._frame_skip = frame_skip
        self._ctrl = self._batch.bind("ctrl")
        self._fields = {name: self._batch.bind(name) for name in fields}
        self._model_fields = [self._batch.expand(name) for name in model_fields]
        # Which columns of a row are the state's.
        numbers = np.arange(self._batch.nstate, dtype=np.float64)
        columns = np.empty(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_extractState(model, numbers, _BATCH_ROW, columns, _STATE)
        self._columns = columns.astype(int)

    def step(self, states, ctrl, overrides) -> _Worlds:
        self._load(states, overrides)
        self._ctrl[:] = ctrl
        self._batch.step(nstep=self._frame_skip)
        return self._worlds(self._fields)

    def forward(self, states, overrides) -> _Worlds:
        self._load(states, overrides)
        self._ctrl[:] = 0
        self._batch.forward()
        fields = dict(self._fields)
        if _CONTACT_FORCES in fields:  # not computed by mj_forward
            fields[_CONTACT_FORCES] = np.zeros_like(fields[_CONTACT_FORCES])
        return self._worlds(fields)

    def _load(self, states, overrides) -> None:
        self._batch.state[:, self._columns] = states
        self._batch.warning[:] = 0
        for target, values in zip(self._model_fields, overrides, strict=True):
            target[:] = values

    def _worlds(self, fields) -> _Worlds:
        warnings = self._batch.warning[..., 1]  # pairs of (last info, count)
        states = self._batch.state.take(self._columns, axis=1)
        return _Worlds(states, fields, warnings)


class _Workers:
    """Python threads, each with a model and data that it steps worlds in."""

    def __init__(self, model, frame_skip, fields, model_fields, threads):
        self._model, self._frame_skip = model, frame_skip
        self._model_fields, self._threads = model_fields, threads
        self._state_size = mujoco.mj_stateSize(model, _STATE)
        data = mujoco.MjData(model)
        self._shapes = {name: getattr(data, name).shape for name in fields}
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(threads, "mujoco")
        self._worlds = functools.cache(self._room)

    def step(self, states, ctrl, overrides) -> _Worlds:
        count = len(states)
        worlds = self._worlds(count)
        worlds.warnings[:] = 0
        before = np.concatenate([states, ctrl], axis=1)
        starts = iter(range(0, count, _WORLDS_AT_A_TIME))  # each taken by one thread
        futures = [
            self._pool.submit(self._step, starts, before, overrides, worlds)
            for _ in range(self._threads)
        ]
        for future in futures:
            future.result()
        return worlds

    def _room(self, count) -> _Worlds:
        return _Worlds(
            np.empty((count, self._state_size)),
            {name: np.empty((count, *shape)) for name, shape in self._shapes.items()},
            np.empty((count, len(_FAULTS)), int),
        )

    def _step(self, starts, before, overrides, worlds) -> None:
        """Steps worlds while there are any; MuJoCo's functions release the GIL."""
        model, data, sources, targets = self._thread()
        warnings = data.warning.number
        reads = [(sources[name], out) for name, out in worlds.fields.items()]
        for start in starts:
            for world in range(start, min(start + _WORLDS_AT_A_TIME, len(before))):
                for target, values in zip(targets, overrides, strict=True):
                    target[:] = values[world]
                mujoco.mj_setState(model, data, before[world], _STATE_AND_CTRL)
                mujoco.mj_step(model, data, self._frame_skip)
                mujoco.mj_rnePostConstraint(model, data)
                mujoco.mj_getState(model, data, worlds.states[world], _STATE)
                for source, out in reads:
                    out[world] = source
                if warnings.any():
                    worlds.warnings[world] = warnings
                    warnings[:] = 0

    def _thread(self):
        """This thread's model, data, the fields to read and those to override."""
        if not hasattr(self._own, "objects"):
            model = self._model.__copy__()
            data = mujoco.MjData(model)
            sources = {name: getattr(data, name) for name in self._shapes}
            targets = [getattr(model, name) for name in self._model_fields]
            self._own.objects = model, data, sources, targets
        return self._own.objects
