"""What the Adroit hand's tasks share."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from iqmjx.envs import adroit
from iqmjx.envs.base import Env, Start
from iqmjx.envs.physics import PhysicsState

# First and last actuator of a group, and the gain of its position servos, which
# gymnasium-robotics sets in the compiled model.
SERVO_GAINS = (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0))
SPARSE_REWARD, SPARSE_COST = 10.0, -0.1


class AdroitHand(Env):
    """A task of the hand. Subclasses name their model and score a state."""

    gymnasium_package = "iqmjx.envs.adroit.gymnasium_ids"
    xml: str
    sparse = False
    frame_skip = 5
    terminates = False
    episode_length = 200
    # Random play has at most 17 contacts, 111 rows (door).
    contacts_per_world = 32
    constraints_per_world = 192
    camera = {  # noqa: RUF012
        "azimuth": 60.0,
        "elevation": -40.0,
        "distance": 1.4,
        "lookat": (0.0, -0.1, 0.2),  # about where the hand begins, metres
    }
    largest_speed = 3000.0  # 253 under controls held at their limits (door)

    def __init__(self, physics_engine: str = "auto", num_worlds: int = 1):
        super().__init__(physics_engine, num_worlds)
        # gymnasium-robotics maps [-1, 1] to the actuators' range in its own step.
        ones = np.ones(self.action_size, np.float32)
        self.action_range = -ones, ones
        self._palm = self.physics.model.site("S_grasp").id

    @abc.abstractmethod
    def score(self, state: PhysicsState) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """The dense reward, and whether the task is achieved."""

    def spec(self):
        spec = adroit.load(self.xml)
        actuators = list(spec.actuators)
        names = [actuator.name for actuator in actuators]
        for first, last, gain in SERVO_GAINS:
            for actuator in actuators[names.index(first) : names.index(last) + 1]:
                actuator.gainprm[:3] = [gain, 0, 0]
                actuator.biasprm[:3] = [0, -gain, 0]
        return spec

    def judge(self, before, after, ctrl):
        reward, success = self.score(after)
        if self.sparse:
            reward = jnp.where(success, SPARSE_REWARD, SPARSE_COST)
        return reward, jnp.zeros((), bool), {"success": success}

    def start(self, **model_fields: jax.Array) -> Start:
        """An episode begins at rest; what differs is in the model."""
        return Start(self._init_qpos, jnp.zeros(self.physics.model.nv), model_fields)

    def palm(self, state: PhysicsState) -> Float[Array, " 3"]:
        """Where the palm is, metres."""
        return state.fields["site_xpos"][self._palm]


def uniform(
    key: PRNGKeyArray, low: tuple[float, ...], high: tuple[float, ...]
) -> Float[Array, " D"]:
    """Draws one number from each of D intervals; `key` is consumed."""
    return jax.random.uniform(
        key, (len(low),), minval=jnp.array(low), maxval=jnp.array(high)
    )


def distance(a: Float[Array, " 3"], b: Float[Array, " 3"]) -> Float[Array, ""]:
    """Euclidean distance, metres."""
    return jnp.linalg.norm(a - b)
