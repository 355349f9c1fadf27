"""MuJoCo C on the CPU, stepped by a thread pool inside the jitted program.

The exact double-precision state of each world rides in the carry as raw bits
(`uint32`, two per double), because the surrounding program computes in float32. A
trajectory is therefore the one that Gymnasium would produce, and a saved state
continues bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.physics import (
    OVERFLOW_CONSTRAINTS,
    OVERFLOW_CONTACTS,
    PhysicsState,
    quiet_compilation,
)

_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)
_STATE_AND_CTRL = _STATE | int(mujoco.mjtState.mjSTATE_CTRL)
_CONTACT_FULL = int(mujoco.mjtWarning.mjWARN_CONTACTFULL)
_CONSTRAINT_FULL = int(mujoco.mjtWarning.mjWARN_CNSTRFULL)
# Worlds differ in cost (contacts), so each thread takes several blocks.
_BLOCKS_PER_THREAD = 4


def num_threads() -> int:
    """The number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


class Engine:
    """The `native` engine (see `envs.physics`)."""

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
        self.num_threads = num_threads()
        self._model_fields = model_fields
        self._state_size = mujoco.mj_stateSize(self.model, _STATE)
        self._workers = threading.local()
        self._pool = ThreadPoolExecutor(self.num_threads, "mujoco")

        model, data = self.model, mujoco.MjData(self.model)
        shape: Any = jax.ShapeDtypeStruct
        float32 = functools.partial(shape, dtype=jnp.float32)
        self._outputs = PhysicsState(
            qpos=float32((model.nq,)),
            qvel=float32((model.nv,)),
            fields={name: float32(getattr(data, name).shape) for name in fields},
            model_fields={},
            overflow=shape((), jnp.int32),
            carry=shape((2 * self._state_size,), jnp.uint32),
        )
        # Where qpos and qvel start in a state vector: [time, qpos, qvel, act, ...].
        self._qpos = slice(1, 1 + model.nq)
        self._qvel = slice(1 + model.nq, 1 + model.nq + model.nv)

    def init(self, qpos, qvel, model_fields=None) -> PhysicsState:
        return self._call(self._init, model_fields or {}, qpos, qvel)

    def step(self, state: PhysicsState, ctrl: jax.Array) -> PhysicsState:
        return self._call(self._step, state.model_fields, state.carry, ctrl)

    def scratch_bytes(self) -> int:
        return self.num_threads * mujoco.MjData(self.model).narena

    def _call(self, function, model_fields: dict, *inputs) -> PhysicsState:
        state = jax.pure_callback(
            function,
            self._outputs,
            *inputs,
            *(model_fields[name] for name in self._model_fields),
            vmap_method="broadcast_all",
        )
        return dataclasses.replace(state, model_fields=model_fields)

    def _init(self, qpos, qvel, *model_fields) -> PhysicsState:
        """Host side of `init`, over any leading batch dimensions."""
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        states = np.zeros((*qpos.shape[:-1], self._state_size))
        states[..., self._qpos] = qpos
        states[..., self._qvel] = qvel
        return self._run(states, None, model_fields)

    def _step(self, bits, ctrl, *model_fields) -> PhysicsState:
        """Host side of `step`, over any leading batch dimensions."""
        states = np.ascontiguousarray(bits).view(np.float64)
        return self._run(states, np.asarray(ctrl, np.float64), model_fields)

    def _run(self, states, ctrl, model_fields) -> PhysicsState:
        batch = states.shape[:-1]
        count = int(np.prod(batch))
        inputs = states.reshape(count, -1)
        if ctrl is not None:
            inputs = np.concatenate([inputs, ctrl.reshape(count, -1)], axis=1)
        results = jax.tree.map(
            lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), self._outputs
        )
        results.overflow[:] = 0
        after = np.empty((count, self._state_size))
        overrides = [
            np.asarray(value).reshape(count, *getattr(self.model, name).shape)
            for name, value in zip(self._model_fields, model_fields, strict=True)
        ]
        work = (inputs, ctrl is not None, overrides, after, results)
        blocks = min(count, self.num_threads * _BLOCKS_PER_THREAD)
        edges = np.linspace(0, count, blocks + 1).astype(int).tolist()
        futures = [
            self._pool.submit(self._run_block, start, stop, *work)
            for start, stop in itertools.pairwise(edges)
        ]
        for future in futures:
            future.result()
        results.qpos[:] = after[:, self._qpos]
        results.qvel[:] = after[:, self._qvel]
        results = dataclasses.replace(results, carry=after.view(np.uint32))
        return jax.tree.map(
            lambda leaf: leaf.reshape((*batch, *leaf.shape[1:])), results
        )

    def _run_block(self, start, stop, inputs, stepping, overrides, after, results):
        """Advances worlds `start` to `stop`; on a pool thread, GIL mostly released."""
        model, data, fields = self._worker()
        warnings = data.warning.number
        set_state, get_state = mujoco.mj_setState, mujoco.mj_getState
        spec = _STATE_AND_CTRL if stepping else _STATE
        reads = [(fields[name], out) for name, out in results.fields.items()]
        writes = [
            (getattr(model, name), values)
            for name, values in zip(self._model_fields, overrides, strict=True)
        ]
        rows = zip(inputs[start:stop], after[start:stop], strict=True)
        for world, (before, result) in enumerate(rows, start):
            for target, values in writes:
                target[:] = values[world]
            set_state(model, data, before, spec)
            if stepping:
                mujoco.mj_step(model, data, self.frame_skip)
                if reads:
                    mujoco.mj_rnePostConstraint(model, data)
            else:
                mujoco.mj_forward(model, data)
                data.cfrc_ext[:] = 0
            get_state(model, data, result, _STATE)
            for source, out in reads:
                out[world] = source
            if warnings[_CONSTRAINT_FULL] or warnings[_CONTACT_FULL]:
                results.overflow[world] = OVERFLOW_CONSTRAINTS * bool(
                    warnings[_CONSTRAINT_FULL]
                ) | OVERFLOW_CONTACTS * bool(warnings[_CONTACT_FULL])
                warnings[:] = 0

    def _worker(self):
        """This thread's own model (per-world fields are written into it) and data."""
        if not hasattr(self._workers, "own"):
            model = self.model.__copy__()
            data = mujoco.MjData(model)
            fields = {name: getattr(data, name) for name in self._outputs.fields}
            self._workers.own = model, data, fields
        return self._workers.own
