"""What agents share: acting through a policy class, and steps of their parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyAgent:
    """The part of `iqmjx.agents.Agent` that a policy class answers by itself."""

    policy: Any
    average_rate: float

    @property
    def action_dtype(self) -> Any:
        """Dtype of stored actions."""
        return self.policy.action_dtype

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one stored action."""
        return self.policy.action_shape

    def act_random(self, key: PRNGKeyArray, num_worlds: int) -> Array:
        return self.policy.random(key, num_worlds)

    def control(self, action: Array) -> Float[Array, "N A"]:
        return self.policy.control(action)


def learning_rate(config: Config) -> optax.ScalarOrSchedule:
    """The config's step size, constant or falling linearly to 0."""
    if not config.anneal_learning_rate:
        return config.learning_rate
    return optax.linear_schedule(config.learning_rate, 0.0, config.num_updates)


def descend(
    optimizer: optax.GradientTransformation,
    gradients: Any,
    opt_state: optax.OptState,
    params: Any,
) -> tuple[Any, optax.OptState]:
    """One step of the optimizer: the new parameters, and its new state."""
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


def polyak(target: Any, online: Any, rate: float) -> Any:
    """Moves target parameters towards the online ones by a share of the way."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)
