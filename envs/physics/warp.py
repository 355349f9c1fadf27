"""MuJoCo Warp through MJX: the engine for NVIDIA GPUs (slowly, it runs on CPUs too)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import warp
from mujoco import mjx
from mujoco.mjx.third_party.mujoco_warp import OverflowType

from envs.physics import OVERFLOW_CONSTRAINTS, OVERFLOW_CONTACTS
from envs.physics._mjx_base import MjxEngine

_CONSTRAINT_BITS = OverflowType.NEFC | OverflowType.NJMAX_NNZ
_CONTACT_BITS = OverflowType.BROADPHASE | OverflowType.NARROWPHASE | OverflowType.CCD


class Engine(MjxEngine):
    """The `warp` engine (see `envs.physics`).

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
            "opt._impl.run_rne_postconstraint": "cfrc_ext" in self._shapes,
        }
        return mjx.put_model(self.model, impl="warp").tree_replace(options)

    def _make_data(self, contacts: int, constraints_per_world: int) -> mjx.Data:
        return mjx.make_data(
            self.model, impl="warp", naconmax=contacts, njmax=constraints_per_world
        )

    def _overflow(self, data: mjx.Data) -> jax.Array:
        bits = data._impl.overflow
        constraints = jnp.where(bits & int(_CONSTRAINT_BITS), OVERFLOW_CONSTRAINTS, 0)
        contacts = jnp.where(bits & int(_CONTACT_BITS), OVERFLOW_CONTACTS, 0)
        return (constraints | contacts).astype(jnp.int32)
