"""MJX in pure JAX: the engine for TPUs and any other device that XLA compiles for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from envs.physics import OVERFLOW_CONTACTS
from envs.physics._mjx_base import MjxEngine

# Newton converges in a few iterations and then stops early.
ITERATIONS = 8
# The line search always runs to its limit, so this limit is paid in full.
LS_ITERATIONS = 8


class Engine(MjxEngine):
    """The `mjx` engine (see `envs.physics`)."""

    name = "mjx"

    def _prepare(self, spec: mujoco.MjSpec, contacts_per_world: int):
        spec.option.iterations = ITERATIONS
        spec.option.ls_iterations = LS_ITERATIONS
        # MJX solves for every contact that could ever be (138 in Gymnasium's humanoid);
        # this keeps, per contact dimension, the deepest ones only.
        spec.add_numeric(name="max_contact_points", data=[contacts_per_world], size=1)

    def _make_model(self) -> mjx.Model:
        return mjx.put_model(self.model, impl="jax")

    def _make_data(self, contacts: int, constraints_per_world: int) -> mjx.Data:
        return mjx.make_data(self.model, impl="jax")

    def _forward(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        # Matrix units round float32 products to 10 bits unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return mjx.forward(model, data)

    def _substep(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        with jax.default_matmul_precision("highest"):
            return mjx.step(model, data)

    def _finish(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        if "cfrc_ext" not in self._shapes:
            return data
        with jax.default_matmul_precision("highest"):
            return mjx.rne_postconstraint(model, data)

    def _overflow(self, data: mjx.Data) -> jax.Array:
        return jnp.zeros((), jnp.int32)
