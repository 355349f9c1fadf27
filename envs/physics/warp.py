"""MuJoCo Warp through MJX: the engine for NVIDIA GPUs (slowly, it runs on CPUs too)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import warp
from mujoco import mjx
from mujoco.mjx._src import math
from mujoco.mjx.third_party.mujoco_warp import OverflowType

from iqmjx.envs.physics import FAULT_CONSTRAINTS, FAULT_CONTACTS
from iqmjx.envs.physics._mjx_base import MjxEngine

_COMPUTE_CFRC_EXT = "opt._impl.run_rne_postconstraint"
_CONSTRAINT_BITS = OverflowType.NEFC | OverflowType.NJMAX_NNZ
_CONTACT_BITS = OverflowType.BROADPHASE | OverflowType.NARROWPHASE | OverflowType.CCD


class Engine(MjxEngine):
    """The `warp` engine (see `iqmjx.envs.physics`).

    The solver keeps the model's own limits: it stops as soon as all worlds have
    converged, so a large limit costs nothing.
    """

    name = "warp"

    def _prepare(self, spec: mujoco.MjSpec, contacts_per_world: int):
        if warp.config.log_level == warp.LOG_INFO:  # the default: banner, module loads
            warp.config.log_level = warp.LOG_WARNING

    def _make_model(self) -> mjx.Model:
        # Overflows are in the state; a line printed by each world would flood the
        # terminal. Forward passes compute cfrc_ext only where told to.
        options = {
            "opt._impl.warn_overflow": 0,
            _COMPUTE_CFRC_EXT: "cfrc_ext" in self._shapes,
        }
        model = mjx.put_model(self.model, impl="warp").tree_replace(options)
        return _with_repeated_pairs(self.model, model)

    def _make_data(self, contacts: int, constraints_per_world: int) -> mjx.Data:
        return mjx.make_data(
            self.model, impl="warp", naconmax=contacts, njmax=constraints_per_world
        )

    def _substeps(self, model, carry, count):
        if "cfrc_ext" not in self._shapes:
            return super()._substeps(model, carry, count)
        # It is read after the last substep alone; each of RK4's stages computes it.
        without = model.tree_replace({_COMPUTE_CFRC_EXT: False})
        carry = super()._substeps(without, carry, count - 1)
        return super()._substeps(model, carry, 1)

    def _data(self, model: mjx.Model) -> mjx.Data:
        data = super()._data(model)
        if {"body_pos", "body_quat"}.isdisjoint(self._model_fields):
            return data
        return _place_static_geoms(model, data)

    def _faults(self, data: mjx.Data) -> jax.Array:
        bits = data._impl.overflow
        constraints = jnp.where(bits & int(_CONSTRAINT_BITS), FAULT_CONSTRAINTS, 0)
        contacts = jnp.where(bits & int(_CONTACT_BITS), FAULT_CONTACTS, 0)
        return (constraints | contacts).astype(jnp.int32)


def _with_repeated_pairs(model: mujoco.MjModel, on_device: mjx.Model) -> mjx.Model:
    """Lets Warp collide a contact pair as often as the model lists it, as MuJoCo does.

    Adroit's hand lists the tips of its ring and little fingers twice, which makes their
    contact twice as stiff. Warp keeps one such pair for two geoms. Its list of what to
    collide, which the others are added to, is read by its default broad phase: that of
    models with less than 250,000 pairs of geoms.
    """
    listed = on_device._impl.nxn_pairid_filtered
    missing = np.setdiff1d(np.arange(model.npair), listed[:, 0])
    geoms = np.sort(np.stack([model.pair_geom1, model.pair_geom2], axis=1)[missing])
    pairs = np.stack([missing, np.full_like(missing, -1)], axis=1)  # -1: no sensor's
    more = {"nxn_geom_pair_filtered": geoms, "nxn_pairid_filtered": pairs}
    return on_device.tree_replace(
        {
            f"_impl.{name}": np.concatenate(
                [getattr(on_device._impl, name), rows.astype(np.int32)]
            )
            for name, rows in more.items()
        }
    )


def _place_static_geoms(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Puts the geoms of bodies without joints where this world's model has them.

    Warp does so once, when data are made, and never again: without this, a door's frame
    would be drawn (and sensed) where its world has it, and collide where the file has.
    """
    static = [body for body, weld in enumerate(model.body_weldid) if weld == 0]
    places = {0: (jnp.zeros(3), jnp.array([1.0, 0, 0, 0]))}
    for body in static[1:]:
        position, turn = places[int(model.body_parentid[body])]
        places[body] = (
            position + math.rotate(model.body_pos[body], turn),
            math.quat_mul(turn, math.normalize(model.body_quat[body])),
        )
    xpos, xmat = data.geom_xpos, data.geom_xmat
    for geom, body in enumerate(model.geom_bodyid):
        if body in places:
            position, turn = places[int(body)]
            moved = position + math.rotate(model.geom_pos[geom], turn)
            turned = math.quat_to_mat(math.quat_mul(turn, model.geom_quat[geom]))
            xpos, xmat = xpos.at[geom].set(moved), xmat.at[geom].set(turned)
    return data.replace(geom_xpos=xpos, geom_xmat=xmat)
