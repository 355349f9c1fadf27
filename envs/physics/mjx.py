"""MJX in pure JAX: the engine for TPUs and any other device that XLA compiles for."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from iqmjx.envs.physics import FAULT_CONTACTS, _rk4
from iqmjx.envs.physics._mjx_base import MjxEngine
from iqmjx.errors import UsageError

# Newton converges in a few iterations and stops there; this bounds the worst world, for
# which all others wait.
ITERATIONS = 8
# The line search always runs to its limit, so all of it is paid, always.
LS_ITERATIONS = 8


class Engine(MjxEngine):
    """The `mjx` engine (see `iqmjx.envs.physics`).

    MJX solves for every contact that could ever be (138 in Gymnasium's humanoid). Here
    the deepest ones are kept, per contact dimension one more than there is to be room
    for: if that one touches as well, there were too many.
    """

    name = "mjx"

    def _prepare(self, spec: mujoco.MjSpec, contacts_per_world: int):
        spec.option.iterations = ITERATIONS
        spec.option.ls_iterations = LS_ITERATIONS
        # MJX finds a number by its index among the names, which is wrong behind a
        # numeric of several numbers (Gymnasium's ant has one).
        for numeric in list(spec.numerics):
            if numeric.size > 1:
                spec.delete(numeric)
        self._kept = contacts_per_world + 1
        spec.add_numeric(name="max_contact_points", data=[self._kept], size=1)

    def _make_model(self) -> mjx.Model:
        self._joints = _rk4.Joints(self.model)
        try:
            model = mjx.put_model(self.model, impl="jax")
        except NotImplementedError as error:  # names what MJX lacks
            what = str(error).replace("mjtGeom.mjGEOM_", "").rstrip(".")
            raise UsageError(
                f"mjx cannot step this model: {what}; use warp or native"
            ) from error
        if self.model.opt.noslip_iterations:
            _warn_of_noslip(self.model.opt.noslip_iterations)
        return model

    def _make_data(self, contacts: int, constraints_per_world: int) -> mjx.Data:
        return mjx.make_data(self.model, impl="jax")

    # Matrix units round float32 products to 10 bits unless told otherwise.
    @jax.default_matmul_precision("highest")
    def _forward(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        return mjx.forward(model, data)

    @jax.default_matmul_precision("highest")
    def _substep(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        if self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            return _rk4.step(self._joints, model, data)
        return mjx.step(model, data)

    @jax.default_matmul_precision("highest")
    def _finish(self, model: mjx.Model, data: mjx.Data) -> mjx.Data:
        if "cfrc_ext" not in self._shapes:
            return data
        return mjx.rne_postconstraint(model, data)

    def _faults(self, data: mjx.Data) -> jax.Array:
        contact, dims = data._impl.contact, self._blank._impl.contact.dim
        touching = contact.dist < contact.includemargin
        full = jnp.zeros((), bool)
        for dim in set(dims.tolist()):
            if (dims == dim).sum() == self._kept:
                full |= touching[dims == dim].all()
        return jnp.where(full, FAULT_CONTACTS, 0).astype(jnp.int32)


@functools.cache  # said once
def _warn_of_noslip(iterations: int) -> None:
    warnings.warn(
        f"mjx has no noslip solver: contacts slip a little more than in MuJoCo C, "
        f"which spends {iterations} iterations on it",
        stacklevel=1,
    )
