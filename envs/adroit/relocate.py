"""AdroitHandRelocate: carry the ball to the target."""

import jax.numpy as jnp

from iqmjx.envs.adroit.hand import AdroitHand, distance, uniform

# Where the ball starts (x, y), and where the target hangs (x, y, z), metres.
PLACE_LOW, PLACE_HIGH = (-0.15, -0.15, -0.2, -0.2, 0.15), (0.15, 0.3, 0.2, 0.2, 0.35)
ARRIVED = 0.1  # metres
TARGET_BONUSES = ((ARRIVED, 10.0), (0.05, 20.0))
LIFTED, LIFT_BONUS = 0.04, 1.0  # metres of height
CARRY_WEIGHT = -0.5


class Relocate(AdroitHand):
    """AdroitHandRelocate-v2: the less the palm is from the ball, the more is paid."""

    name = "relocate"
    gymnasium_id = "AdroitHandRelocate-v2"
    xml = "adroit_relocate.xml"
    fields = ("site_xpos", "xpos")
    model_fields = ("body_pos", "site_pos")
    reach_weight = -0.1  # for each metre between palm and ball

    def __init__(self, physics_engine="auto", num_worlds=1):
        super().__init__(physics_engine, num_worlds)
        model = self.physics.model
        self._object = model.body("Object").id
        self._target = model.site("target").id

    def initial(self, key):
        place = uniform(key, PLACE_LOW, PLACE_HIGH)
        return self.start(
            body_pos=self.constant("body_pos").at[self._object, :2].set(place[:2]),
            site_pos=self.constant("site_pos").at[self._target].set(place[2:]),
        )

    def observe(self, state):
        palm, ball, target = self._places(state)
        return jnp.concatenate(
            [state.qpos[:-6], palm - ball, palm - target, ball - target]
        )

    def score(self, state):
        palm, ball, target = self._places(state)
        away = distance(ball, target)
        reward = self.reach_weight * distance(palm, ball)
        carried = LIFT_BONUS + CARRY_WEIGHT * (distance(palm, target) + away)
        reward += jnp.where(ball[2] > LIFTED, carried, 0.0)
        for threshold, bonus in TARGET_BONUSES:
            reward += jnp.where(away < threshold, bonus, 0.0)
        return reward, away < ARRIVED

    def _places(self, state):
        """Positions [3] of palm, ball and target."""
        sites = state.fields["site_xpos"]
        return self.palm(state), state.fields["xpos"][self._object], sites[self._target]


class RelocateV1(Relocate):
    """AdroitHandRelocate-v1, which pays for distance: see `iqmjx.envs.adroit`."""

    name = "relocate-v1"
    gymnasium_id = "AdroitHandRelocate-v1"
    reach_weight = 0.1


class RelocateSparse(Relocate):
    """AdroitHandRelocateSparse-v1: 10 where the ball has arrived, else -0.1."""

    name = "relocatesparse"
    gymnasium_id = "AdroitHandRelocateSparse-v1"
    sparse = True
