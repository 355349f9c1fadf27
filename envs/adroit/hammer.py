"""AdroitHandHammer: pick up the hammer and drive the nail into the board."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from iqmjx.envs.adroit.hand import AdroitHand, distance, uniform

BOARD_LOW, BOARD_HIGH = (0.1,), (0.25,)  # height, metres
DRIVEN = 0.01  # metres between nail and goal
NAIL_BONUSES = ((0.02, 25.0), (DRIVEN, 75.0))
LIFTED, LIFT_BONUS = 0.04, 2.0  # metres of height
HEAD_WEIGHT, NAIL_WEIGHT, VELOCITY_WEIGHT = -1.0, -10.0, -1e-2


class Hammer(AdroitHand):
    """AdroitHandHammer-v2: the less the palm is from the hammer, the more is paid."""

    name = "hammer"
    gymnasium_id = "AdroitHandHammer-v2"
    xml = "adroit_hammer.xml"
    fields = ("site_xpos", "xpos", "xquat", "sensordata")
    model_fields = ("body_pos",)
    reach_weight = -0.1  # for each metre between palm and hammer

    def __init__(self, physics_engine="auto", num_worlds=1):
        super().__init__(physics_engine, num_worlds)
        model = self.physics.model
        self._board = model.body("nail_board").id
        self._object = model.body("Object").id
        self._head, self._nail, self._goal = (
            model.site(name).id for name in ("tool", "S_target", "nail_goal")
        )
        self._impact = model.sensor("S_nail").adr[0]

    def initial(self, key):
        (height,) = uniform(key, BOARD_LOW, BOARD_HIGH)
        moved = self.constant("body_pos").at[self._board, 2].set(height)
        return self.start(body_pos=moved)

    def observe(self, state):
        impact = state.fields["sensordata"][self._impact]
        return jnp.concatenate(
            [
                state.qpos[:-6],
                jnp.clip(state.qvel[-6:], -1.0, 1.0),
                self.palm(state),
                state.fields["xpos"][self._object],
                _euler_angles(state.fields["xquat"][self._object]),
                state.fields["site_xpos"][self._nail],
                jnp.clip(impact, -1.0, 1.0)[None],
            ]
        )

    def score(self, state):
        hammer, sites = state.fields["xpos"][self._object], state.fields["site_xpos"]
        head, nail = sites[self._head], sites[self._nail]
        left = distance(nail, sites[self._goal])
        reward = self.reach_weight * distance(self.palm(state), hammer)
        reward += HEAD_WEIGHT * distance(head, nail)
        reward += NAIL_WEIGHT * left
        reward += VELOCITY_WEIGHT * jnp.linalg.norm(state.qvel)
        lifted = (hammer[2] > LIFTED) & (head[2] > LIFTED)
        reward += jnp.where(lifted, LIFT_BONUS, 0.0)
        for threshold, bonus in NAIL_BONUSES:
            reward += jnp.where(left < threshold, bonus, 0.0)
        return reward, left < DRIVEN


class HammerV1(Hammer):
    """AdroitHandHammer-v1, which pays for distance: see `iqmjx.envs.adroit`."""

    name = "hammer-v1"
    gymnasium_id = "AdroitHandHammer-v1"
    reach_weight = 0.1


class HammerSparse(Hammer):
    """AdroitHandHammerSparse-v1: 10 where the nail is driven in, else -0.1."""

    name = "hammersparse"
    gymnasium_id = "AdroitHandHammerSparse-v1"
    sparse = True


def _euler_angles(quaternion: Float[Array, " 4"]) -> Float[Array, " 3"]:
    """Euler angles in gymnasium-robotics' convention (utils/rotations.py).

    Its rotations are passive, so that the angles of the active one are negated. Where
    the second is a right angle the first is 0.
    """
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    m00, m01, m02 = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    m10, m11 = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z)
    m12, m22 = 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)
    cosine = jnp.hypot(m22, m12)
    locked = cosine <= 4 * jnp.finfo(jnp.float32).eps
    first = jnp.where(locked, 0.0, -jnp.arctan2(m12, m22))
    second = -jnp.arctan2(-m02, cosine)
    third = -jnp.where(locked, jnp.arctan2(-m10, m11), jnp.arctan2(m01, m00))
    return jnp.stack([first, second, third])
