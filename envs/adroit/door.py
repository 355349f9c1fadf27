"""AdroitHandDoor: undo the latch and swing the door open."""

import jax
import jax.numpy as jnp

from iqmjx.envs.adroit.hand import AdroitHand, distance, uniform

OPEN_ANGLE, FULL_ANGLE = 1.35, 1.57  # radians
FRAME_LOW, FRAME_HIGH = (-0.3, 0.25, 0.252), (-0.2, 0.35, 0.35)  # metres
ANGLE_BONUSES = ((0.2, 2.0), (1.0, 8.0), (OPEN_ANGLE, 10.0))
ANGLE_WEIGHT, VELOCITY_WEIGHT = -0.1, -1e-5


class Door(AdroitHand):
    """AdroitHandDoor-v2: the less the palm is from the handle, the more is paid."""

    name = "door"
    gymnasium_id = "AdroitHandDoor-v2"
    xml = "adroit_door.xml"
    fields = ("site_xpos",)
    model_fields = ("body_pos",)
    reach_weight = -0.1  # for each metre between palm and handle

    def __init__(self, physics_engine="auto", num_worlds=1):
        super().__init__(physics_engine, num_worlds)
        model = self.physics.model
        self._frame = model.body("frame").id
        self._hinge = model.joint("door_hinge").qposadr[0]
        self._handle = model.site("S_handle").id

    def initial(self, key):
        frame = uniform(key, FRAME_LOW, FRAME_HIGH)
        moved = self.constant("body_pos").at[self._frame].set(frame)
        return self.start(body_pos=moved)

    def observe(self, state):
        angle = state.qpos[self._hinge]
        palm, handle = self.palm(state), self._handle_pos(state)
        latch = state.qpos[-1]
        is_open = jnp.where(angle > 1.0, 1.0, -1.0)
        return jnp.concatenate(
            [
                state.qpos[1:-2],
                jnp.stack([latch, angle]),
                palm,
                handle,
                palm - handle,
                is_open[None],
            ]
        )

    def score(self, state):
        angle = state.qpos[self._hinge]
        reward = self.reach_weight * distance(self.palm(state), self._handle_pos(state))
        reward += ANGLE_WEIGHT * jnp.square(angle - FULL_ANGLE)
        reward += VELOCITY_WEIGHT * jnp.sum(jnp.square(state.qvel))
        for threshold, bonus in ANGLE_BONUSES:
            reward += jnp.where(angle > threshold, bonus, 0.0)
        return reward, angle >= OPEN_ANGLE

    def _handle_pos(self, state) -> jax.Array:
        return state.fields["site_xpos"][self._handle]


class DoorV1(Door):
    """AdroitHandDoor-v1, which pays for distance: see `iqmjx.envs.adroit`."""

    name = "door-v1"
    gymnasium_id = "AdroitHandDoor-v1"
    reach_weight = 0.1


class DoorSparse(Door):
    """AdroitHandDoorSparse-v1: 10 where the door is open, else -0.1."""

    name = "doorsparse"
    gymnasium_id = "AdroitHandDoorSparse-v1"
    sparse = True
