"""HalfCheetah-v5: run forward on two legs; never terminates."""

import jax
import jax.numpy as jnp

from iqmjx.envs.base import Env, Start
from iqmjx.envs.locomotion import load

CTRL_COST_WEIGHT = 0.1
RESET_NOISE_SCALE = 0.1


class HalfCheetah(Env):
    """HalfCheetah-v5 (gymnasium/envs/mujoco/half_cheetah_v5.py)."""

    name = "halfcheetah"
    gymnasium_id = "HalfCheetah-v5"
    frame_skip = 5
    terminates = False
    # Random play has at most 5 contacts, 20 rows.
    contacts_per_world = 16
    constraints_per_world = 64
    largest_speed = 500.0  # 38 under controls at their limits, 31 when trained

    def spec(self):
        return load("half_cheetah.xml")

    def initial(self, key):
        pos_key, vel_key = jax.random.split(key)
        noise = jax.random.uniform(
            pos_key,
            self._init_qpos.shape,
            minval=-RESET_NOISE_SCALE,
            maxval=RESET_NOISE_SCALE,
        )
        qvel = RESET_NOISE_SCALE * jax.random.normal(vel_key, (self.physics.model.nv,))
        return Start(self._init_qpos + noise, qvel)

    def observe(self, state):
        return jnp.concatenate([state.qpos[1:], state.qvel])

    def judge(self, before, after, ctrl):
        x_velocity = (after.qpos[0] - before.qpos[0]) / self.dt
        ctrl_cost = CTRL_COST_WEIGHT * jnp.sum(jnp.square(ctrl))
        metrics = {
            "x_velocity": x_velocity,
            "reward_forward": x_velocity,
            "reward_ctrl": -ctrl_cost,
        }
        return x_velocity - ctrl_cost, jnp.zeros((), bool), metrics
