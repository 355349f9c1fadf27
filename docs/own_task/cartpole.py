"""A cart that keeps a pole upright; the pole's weight differs from episode to episode.

python -m iqmjx.train --env cartpole:CartPole
"""

import jax
import jax.numpy as jnp

from iqmjx.envs import Env, Start

LIGHTEST, HEAVIEST = 0.5, 4.0  # times the file's mass
FALLEN, OFF_THE_RAIL = 0.5, 1.0  # radians, metres


class CartPole(Env):
    """Observation: position, sine and cosine of the angle, velocities; 1 a step."""

    xml = "cartpole.xml"  # beside this file
    frame_skip = 2  # of the file's timestep: one action every 0.02 s
    episode_length = 500  # control steps
    model_fields = ("body_mass", "body_inertia")  # drawn anew by each reset

    def __init__(self, physics_engine="auto", num_worlds=1):
        super().__init__(physics_engine, num_worlds)
        self._pole = self.physics.model.body("pole").id

    def initial(self, key):
        """Nearly upright, nearly at rest, with a pole of a random density."""
        weight_key, place_key = jax.random.split(key)
        factor = jax.random.uniform(weight_key, minval=LIGHTEST, maxval=HEAVIEST)
        place = jax.random.uniform(place_key, (2, 2), minval=-0.05, maxval=0.05)
        mass = self.constant("body_mass").at[self._pole].multiply(factor)
        inertia = self.constant("body_inertia").at[self._pole].multiply(factor)
        return Start(place[0], place[1], {"body_mass": mass, "body_inertia": inertia})

    def observe(self, state):
        """Does not tell the weight: the policy has to do with any."""
        position, angle = state.qpos
        seen = jnp.stack([position, jnp.sin(angle), jnp.cos(angle)])
        return jnp.concatenate([seen, state.qvel])

    def judge(self, before, after, ctrl):
        """The reward of a step, whether the episode is over, and what to log."""
        position, angle = after.qpos
        over = (jnp.abs(angle) > FALLEN) | (jnp.abs(position) > OFF_THE_RAIL)
        reward = jnp.cos(angle) - 0.1 * jnp.square(position)
        return reward, over, {"tilt": jnp.abs(angle)}
