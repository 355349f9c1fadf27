"""Walker2d-v5: walk forward on two legs; terminates on falling."""

import jax.numpy as jnp

from iqmjx.envs.locomotion import load
from iqmjx.envs.locomotion.hopper import Hopper

HEALTHY_Z_RANGE = (0.8, 2.0)
HEALTHY_ANGLE_RANGE = (-1.0, 1.0)


class Walker2d(Hopper):
    """Walker2d-v5 (gymnasium/envs/mujoco/walker2d_v5.py).

    Reset noise, observation and reward are Hopper's; the model and what counts as
    healthy are its own.
    """

    name = "walker2d"
    gymnasium_id = "Walker2d-v5"
    # Random play has at most 4 contacts, 18 rows; 7 and 28 when left lying.
    contacts_per_world = 16
    constraints_per_world = 64
    largest_speed = 1500.0  # 137 under controls held at their limits, 69 when trained

    def spec(self):
        return load("walker2d_v5.xml")

    def _is_healthy(self, state):
        z, angle = state.qpos[1], state.qpos[2]
        return (
            (HEALTHY_Z_RANGE[0] < z)
            & (z < HEALTHY_Z_RANGE[1])
            & (HEALTHY_ANGLE_RANGE[0] < angle)
            & (angle < HEALTHY_ANGLE_RANGE[1])
            & jnp.isfinite(z)
        )
