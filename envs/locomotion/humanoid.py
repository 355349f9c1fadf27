"""Humanoid-v5: walk forward upright; terminates on falling."""

import jax
import jax.numpy as jnp

from iqmjx.envs.base import Env, Start
from iqmjx.envs.locomotion import load

FORWARD_REWARD_WEIGHT = 1.25
CTRL_COST_WEIGHT = 0.1
CONTACT_COST_WEIGHT = 5e-7
CONTACT_COST_MAX = 10.0
HEALTHY_REWARD = 5.0
HEALTHY_Z_RANGE = (1.0, 2.0)
RESET_NOISE_SCALE = 1e-2
FREE_JOINT_DOFS = 6  # the root's; not actuated


class Humanoid(Env):
    """Humanoid-v5 (gymnasium/envs/mujoco/humanoid_v5.py)."""

    name = "humanoid"
    gymnasium_id = "Humanoid-v5"
    frame_skip = 5
    fields = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    # Random play has at most 5 contacts, 12 rows; 10 and 39 when left lying.
    contacts_per_world = 20
    constraints_per_world = 80
    largest_speed = 1000.0  # 77 under controls held at their limits

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mass = jnp.asarray(self.physics.model.body_mass, jnp.float32)
        self._mass_share = mass / mass.sum()

    def spec(self):
        return load("humanoid.xml")

    def initial(self, key):
        nq, nv = self.physics.model.nq, self.physics.model.nv
        noise = jax.random.uniform(
            key, (nq + nv,), minval=-RESET_NOISE_SCALE, maxval=RESET_NOISE_SCALE
        )
        return Start(self._init_qpos + noise[:nq], noise[nq:])

    def observe(self, state):
        fields = state.fields  # by body, without the world body
        return jnp.concatenate(
            [
                state.qpos[2:],
                state.qvel,
                fields["cinert"][1:].ravel(),
                fields["cvel"][1:].ravel(),
                fields["qfrc_actuator"][FREE_JOINT_DOFS:],
                fields["cfrc_ext"][1:].ravel(),
            ]
        )

    def judge(self, before, after, ctrl):
        # The difference first, then the weighted sum: exact far from the origin.
        moved = after.fields["xipos"][:, :2] - before.fields["xipos"][:, :2]
        x_velocity, y_velocity = self._mass_share @ moved / self.dt
        ctrl_cost = CTRL_COST_WEIGHT * jnp.sum(jnp.square(ctrl))
        contact_cost = jnp.minimum(
            CONTACT_COST_WEIGHT * jnp.sum(jnp.square(after.fields["cfrc_ext"])),
            CONTACT_COST_MAX,
        )
        z = after.qpos[2]
        healthy = (HEALTHY_Z_RANGE[0] < z) & (z < HEALTHY_Z_RANGE[1])
        forward, survive = FORWARD_REWARD_WEIGHT * x_velocity, HEALTHY_REWARD * healthy
        metrics = {
            "x_velocity": x_velocity,
            "y_velocity": y_velocity,
            "reward_forward": forward,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
            "reward_survive": survive,
        }
        return forward + survive - ctrl_cost - contact_cost, ~healthy, metrics
