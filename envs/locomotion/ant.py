"""Ant-v5: run forward on four legs; terminates on flipping or jumping too high."""

import jax
import jax.numpy as jnp

from iqmjx.envs.base import Env, Start
from iqmjx.envs.locomotion import load

TORSO = 1  # body whose displacement is rewarded
CTRL_COST_WEIGHT = 0.5
CONTACT_COST_WEIGHT = 5e-4
CONTACT_FORCE_RANGE = (-1.0, 1.0)
HEALTHY_REWARD = 1.0
HEALTHY_Z_RANGE = (0.2, 1.0)
RESET_NOISE_SCALE = 0.1


class Ant(Env):
    """Ant-v5 (gymnasium/envs/mujoco/ant_v5.py)."""

    name = "ant"
    gymnasium_id = "Ant-v5"
    frame_skip = 5
    fields = ("xpos", "cfrc_ext")
    # Random play has at most 5 contacts, 22 rows.
    contacts_per_world = 12
    constraints_per_world = 48
    largest_speed = 500.0  # 20 under controls at their limits

    def spec(self):
        return load("ant.xml")

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
        forces = _contact_forces(state)[1:]  # without the world body
        return jnp.concatenate([state.qpos[2:], state.qvel, forces.ravel()])

    def judge(self, before, after, ctrl):
        moved = after.fields["xpos"][TORSO, :2] - before.fields["xpos"][TORSO, :2]
        x_velocity, y_velocity = moved / self.dt
        ctrl_cost = CTRL_COST_WEIGHT * jnp.sum(jnp.square(ctrl))
        contact_cost = CONTACT_COST_WEIGHT * jnp.sum(jnp.square(_contact_forces(after)))
        healthy = _is_healthy(after)
        survive = HEALTHY_REWARD * healthy
        metrics = {
            "x_velocity": x_velocity,
            "y_velocity": y_velocity,
            "reward_forward": x_velocity,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
            "reward_survive": survive,
        }
        return x_velocity + survive - ctrl_cost - contact_cost, ~healthy, metrics


def _contact_forces(state):
    return jnp.clip(state.fields["cfrc_ext"], *CONTACT_FORCE_RANGE)


def _is_healthy(state):
    z = state.qpos[2]
    finite = jnp.isfinite(state.qpos).all() & jnp.isfinite(state.qvel).all()
    return finite & (HEALTHY_Z_RANGE[0] <= z) & (z <= HEALTHY_Z_RANGE[1])
