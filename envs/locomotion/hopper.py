"""Hopper-v5: hop forward on one leg; terminates on falling."""

import jax
import jax.numpy as jnp

from iqmjx.envs.base import Env, Start
from iqmjx.envs.locomotion import load

CTRL_COST_WEIGHT = 1e-3
HEALTHY_REWARD = 1.0
HEALTHY_STATE_RANGE = (-100.0, 100.0)
HEALTHY_Z_RANGE = (0.7, jnp.inf)
HEALTHY_ANGLE_RANGE = (-0.2, 0.2)
RESET_NOISE_SCALE = 5e-3
VELOCITY_CLIP = 10.0


class Hopper(Env):
    """Hopper-v5 (gymnasium/envs/mujoco/hopper_v5.py)."""

    name = "hopper"
    gymnasium_id = "Hopper-v5"
    frame_skip = 4
    # Random play has at most 2 contacts, 10 rows; 5 and 19 when left lying.
    contacts_per_world = 8
    constraints_per_world = 48
    largest_speed = 500.0  # 49 under controls held at their limits, 22 when trained

    def spec(self):
        return load("hopper.xml")

    def initial(self, key):
        nq, nv = self.physics.model.nq, self.physics.model.nv
        noise = jax.random.uniform(
            key, (nq + nv,), minval=-RESET_NOISE_SCALE, maxval=RESET_NOISE_SCALE
        )
        return Start(self._init_qpos + noise[:nq], noise[nq:])

    def observe(self, state):
        velocity = jnp.clip(state.qvel, -VELOCITY_CLIP, VELOCITY_CLIP)
        return jnp.concatenate([state.qpos[1:], velocity])

    def judge(self, before, after, ctrl):
        x_velocity = (after.qpos[0] - before.qpos[0]) / self.dt
        ctrl_cost = CTRL_COST_WEIGHT * jnp.sum(jnp.square(ctrl))
        healthy = self._is_healthy(after)
        survive = HEALTHY_REWARD * healthy
        metrics = {
            "x_velocity": x_velocity,
            "reward_forward": x_velocity,
            "reward_ctrl": -ctrl_cost,
            "reward_survive": survive,
        }
        return x_velocity + survive - ctrl_cost, ~healthy, metrics

    def _is_healthy(self, state):
        z, angle = state.qpos[1], state.qpos[2]
        rest = jnp.concatenate([state.qpos[2:], state.qvel])
        low, high = HEALTHY_STATE_RANGE
        return (
            jnp.all((low < rest) & (rest < high))
            & (HEALTHY_Z_RANGE[0] < z)
            & (z < HEALTHY_Z_RANGE[1])
            & (HEALTHY_ANGLE_RANGE[0] < angle)
            & (angle < HEALTHY_ANGLE_RANGE[1])
        )
