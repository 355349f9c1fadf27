"""What agents share: the steps of their parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from iqmjx.config import Config


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


def polyak(target: Any, online: Any, rate: float | Float[Array, ""]) -> Any:
    """Moves target parameters towards the online ones by a share of the way."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)


def average(old: Any, new: Any, rate: float, updates: Int[Array, ""]) -> Any:
    """The moving average of parameters after one more update.

    Plain over the first 1 / rate updates, then exponential at that rate: so the
    untrained parameters, which the average starts from, weigh nothing.

    Args:
        old: the average so far.
        new: the parameters after the update.
        rate: weight of the newest parameters in the long run; 1 follows them.
        updates: how many updates the average has seen.
    """
    return polyak(old, new, jnp.maximum(rate, 1 / (updates + 1)))
