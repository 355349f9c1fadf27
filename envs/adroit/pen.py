"""AdroitHandPen-v1: turn the pen in the hand until it points as the target does."""

import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from iqmjx.envs.adroit.hand import AdroitHand, distance, uniform
from iqmjx.envs.physics import PhysicsState

ANGLE_LOW, ANGLE_HIGH = (-1.0, -1.0), (1.0, 1.0)  # of the target, radians
NEAR = 0.075  # metres
ALIGNED = 0.95  # cosine
ALIGNMENT_BONUSES = ((0.9, 10.0), (ALIGNED, 50.0))
DROPPED, DROP_COST = 0.075, -5.0  # metres of height


class Pen(AdroitHand):
    """AdroitHandPen-v1, which is its -v2 too."""

    name = "pen"
    gymnasium_id = "AdroitHandPen-v1"
    xml = "adroit_pen.xml"
    fields = ("site_xpos", "xpos")
    model_fields = ("body_quat",)

    def __init__(self, physics_engine="auto", num_worlds=1):
        super().__init__(physics_engine, num_worlds)
        model = self.physics.model
        self._object = model.body("Object").id
        self._target = model.body("target").id
        self._goal = model.site("eps_ball").id
        ends = ("object_top", "object_bottom", "target_top", "target_bottom")
        self._ends = np.array([model.site(name).id for name in ends])
        # The distances between the ends, which no motion changes.
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        top, bottom = data.site_xpos[self._ends].reshape(2, 2, 3).swapaxes(0, 1)
        self._lengths = np.linalg.norm(top - bottom, axis=-1, keepdims=True)

    def initial(self, key):
        about_x, about_y = uniform(key, ANGLE_LOW, ANGLE_HIGH)
        target = _tilted(about_x, about_y)
        turned = self.constant("body_quat").at[self._target].set(target)
        return self.start(body_quat=turned)

    def observe(self, state):
        position, goal = self._positions(state)
        direction, desired = self._directions(state)
        return jnp.concatenate(
            [
                state.qpos[:-6],
                position,
                state.qvel[-6:],
                direction,
                desired,
                position - goal,
                direction - desired,
            ]
        )

    def score(self, state):
        position, goal = self._positions(state)
        direction, desired = self._directions(state)
        away, alignment = distance(position, goal), direction @ desired
        reward = alignment - away
        for threshold, bonus in ALIGNMENT_BONUSES:
            reward += jnp.where((away < NEAR) & (alignment > threshold), bonus, 0.0)
        reward += jnp.where(position[2] < DROPPED, DROP_COST, 0.0)
        return reward, (away < NEAR) & (alignment > ALIGNED)

    def _positions(self, state: PhysicsState):
        """Where the pen is [3], and where it is wanted [3]."""
        return state.fields["xpos"][self._object], state.fields["site_xpos"][self._goal]

    def _directions(self, state: PhysicsState) -> Float[Array, "2 3"]:
        """Unit vectors along the pen, and along the target."""
        ends = state.fields["site_xpos"][self._ends].reshape(2, 2, 3)
        return (ends[:, 0] - ends[:, 1]) / self._lengths


class PenSparse(Pen):
    """AdroitHandPenSparse-v1: 10 where the pen is aligned, else -0.1."""

    name = "pensparse"
    gymnasium_id = "AdroitHandPenSparse-v1"
    sparse = True


def _tilted(about_x: Float[Array, ""], about_y: Float[Array, ""]) -> Float[Array, " 4"]:
    """Quaternion of a turn about y, and then about x (radians)."""
    cos_x, sin_x = jnp.cos(about_x / 2), jnp.sin(about_x / 2)
    cos_y, sin_y = jnp.cos(about_y / 2), jnp.sin(about_y / 2)
    return jnp.stack([cos_x * cos_y, sin_x * cos_y, cos_x * sin_y, sin_x * sin_y])
