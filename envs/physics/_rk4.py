"""MuJoCo's fourth-order Runge-Kutta step for MJX, as one loop over its four stages.

`mjx.step` unrolls the stages into four copies of the forward pass, which take three to
four times as long to compile (minutes, for a humanoid). The arithmetic is the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float
from mujoco import mjx

# The tableau: where each stage looks, and what it weighs.
_AHEAD = np.array([0.0, 0.5, 0.5, 1.0], np.float32)
_WEIGHT = np.array([1, 2, 2, 1], np.float32) / 6


def step(joints: Joints, model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Advances one world by one timestep.

    Derived quantities are left as MuJoCo leaves them: those of the last stage.
    """
    start, dt = data, model.opt.timestep

    def stage(carry, tableau):
        data, rates, sums = carry
        ahead, weight = tableau
        velocity, acceleration, act_dot = rates
        data = data.replace(
            qpos=joints.integrate(start.qpos, ahead * dt * velocity),
            qvel=start.qvel + ahead * dt * acceleration,
            act=start.act + ahead * dt * act_dot,
            time=start.time + ahead * dt,
        )
        data = mjx.forward(model, data)
        rates = data.qvel, data.qacc, data.act_dot
        sums = jax.tree.map(lambda total, rate: total + weight * rate, sums, rates)
        return (data, rates, sums), None

    zeros = jax.tree.map(jnp.zeros_like, (data.qvel, data.qacc, data.act_dot))
    (data, _, sums), _ = jax.lax.scan(stage, (data, zeros, zeros), (_AHEAD, _WEIGHT))
    velocity, acceleration, act_dot = sums
    return data.replace(
        qpos=joints.integrate(start.qpos, dt * velocity),
        qvel=start.qvel + dt * acceleration,
        act=start.act + dt * act_dot,
        time=start.time + dt,
        qacc_warmstart=data.qacc,
    )


class Joints:
    """Where in qpos and qvel the joints of each kind are."""

    def __init__(self, model: mujoco.MjModel):
        kind, qpos, dof = model.jnt_type, model.jnt_qposadr, model.jnt_dofadr
        free = kind == mujoco.mjtJoint.mjJNT_FREE
        ball = kind == mujoco.mjtJoint.mjJNT_BALL
        linear = ~(free | ball)
        xyz = np.arange(3)
        self._qpos = np.concatenate([qpos[linear], (qpos[free, None] + xyz).ravel()])
        self._dof = np.concatenate([dof[linear], (dof[free, None] + xyz).ravel()])
        # A free joint is a position and, behind it, a ball.
        quats = np.concatenate([qpos[ball], qpos[free] + 3])
        turns = np.concatenate([dof[ball], dof[free] + 3])
        self._quats = quats[:, None] + np.arange(4)
        self._turns = turns[:, None] + xyz

    def integrate(
        self, qpos: Float[Array, " nq"], moved: Float[Array, " nv"]
    ) -> Float[Array, " nq"]:
        """Moves positions by `moved`, a velocity times a duration."""
        new = qpos.at[self._qpos].add(moved[self._dof])
        if not len(self._quats):
            return new
        turned = jax.vmap(_turn)(qpos[self._quats], moved[self._turns])
        return new.at[self._quats].set(turned)


def _turn(quat: Float[Array, " 4"], turn: Float[Array, " 3"]) -> Float[Array, " 4"]:
    """Rotates by a rotation vector (radians, in the body's own frame)."""
    angle = jnp.linalg.norm(turn)
    # sin(angle / 2) / angle, and its limit at zero, where no axis is defined.
    vector = turn * jnp.where(
        angle > 0, jnp.sin(angle / 2) / jnp.where(angle > 0, angle, 1.0), 0.5
    )
    w, xyz, spin = quat[0], quat[1:], jnp.cos(angle / 2)
    product = jnp.concatenate(
        [
            jnp.array([w * spin - xyz @ vector]),
            w * vector + spin * xyz + jnp.cross(xyz, vector),
        ]
    )
    return product / jnp.linalg.norm(product)
