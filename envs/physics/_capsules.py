"""MuJoCo's contact frame between a plane and a capsule, for MJX and MuJoCo Warp.

MuJoCo always turns the first tangent along the capsule. MJX and Warp (3.17) stop doing
so where the capsule is steeper than 60 degrees to the plane, and a pyramidal friction
cone is not the same in all directions: on Gymnasium's ant one control step then differs
by up to 1.7 in qvel. Both look the function up when they build a program, so it is
replaced there, for the whole process; contact distances and positions remain theirs.
"""

from __future__ import annotations

from typing import no_type_check

import jax.numpy as jnp
import warp
from mujoco.mjx._src import collision_driver
from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive

_PAIR = (collision_driver.GeomType.PLANE, collision_driver.GeomType.CAPSULE)
_theirs_jax = collision_driver._COLLISION_FUNC[_PAIR]
_theirs_warp = collision_primitive.plane_capsule


def _plane_capsule_jax(model, data, key, geom):
    """Contacts [2 P] of P pairs, those of one pair side by side."""
    dist, pos, _ = _theirs_jax(model, data, key, geom)
    normal, axis = (data.geom_xmat[geom[:, side], :, 2] for side in (0, 1))
    tangent = axis - normal * jnp.sum(normal * axis, axis=1, keepdims=True)
    length = jnp.linalg.norm(tangent, axis=1, keepdims=True)
    upright = length == 0
    tangent = jnp.where(
        upright, jnp.array([1.0, 0.0, 0.0]), tangent / jnp.where(upright, 1.0, length)
    )
    aligned = jnp.stack([normal, tangent, jnp.cross(normal, tangent)], axis=1)
    return dist, pos, jnp.repeat(aligned, _theirs_jax.ncon, axis=0)


@warp.func
@no_type_check  # the types are Warp's, which its own annotations do not describe
def _plane_capsule_warp(
    normal: warp.vec3,
    plane_pos: warp.vec3,
    capsule_pos: warp.vec3,
    axis: warp.vec3,
    radius: float,
    half_length: float,
):
    dist, pos, _ = _theirs_warp(
        normal, plane_pos, capsule_pos, axis, radius, half_length
    )
    tangent = axis - normal * warp.dot(normal, axis)
    if warp.length(tangent) > 0.0:
        tangent = warp.normalize(tangent)
    else:
        tangent = warp.vec3(1.0, 0.0, 0.0)
    return (
        dist,
        pos,
        warp.matrix_from_rows(normal, tangent, warp.cross(normal, tangent)),
    )


def install():
    """Replaces the two functions; again is harmless."""
    _plane_capsule_jax.ncon = _theirs_jax.ncon
    collision_driver._COLLISION_FUNC[_PAIR] = _plane_capsule_jax
    collision_primitive.plane_capsule = _plane_capsule_warp
