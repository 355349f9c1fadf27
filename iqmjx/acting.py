"""Acting: what of an agent chooses actions, apart from what learns.

An `Actor` and its policy class are all that playing needs. Training acts by an agent's
newest parameters; evaluations, saved policies and whoever loads them play the average.
"""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import normalize
from iqmjx.normalize import Normalizer
from iqmjx.policies.base import Policy


@struct.dataclass
class Actor:
    """The numbers that acting needs, beside a policy class; of one seed, or of each."""

    params: Any  # of the policy class
    temperature: Float[Array, "*S"]  # reward
    normalizer: Normalizer | None  # None: the policy sees raw observations


def act(
    policy: Policy, actor: Actor, obs: Float[Array, "*B O"], key: PRNGKeyArray
) -> Array:
    """Samples actions [*B, ...] for raw observations; `key` is consumed."""
    obs = observe(actor.normalizer, obs)
    return policy.sample(actor.params, obs, key, actor.temperature)


def act_greedily(policy: Policy, actor: Actor, obs: Float[Array, "*B O"]) -> Array:
    """The policy's modes [*B, ...] for raw observations."""
    obs = observe(actor.normalizer, obs)
    return policy.mode(actor.params, obs, actor.temperature)


def observe(
    normalizer: Normalizer | None, obs: Float[Array, "*B O"]
) -> Float[Array, "*B O"]:
    """Raw observations as an agent sees them."""
    return obs if normalizer is None else normalize.normalize(normalizer, obs)
