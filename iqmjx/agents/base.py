"""What agents share: settings, and the steps of their parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from iqmjx import networks
from iqmjx.config import Config
from iqmjx.settings import check, refuse, setting

_LEAST_RATE = 1e-6
"""Of the steps of weights: smaller ones are lost in the rounding of float32, and a
network stands still."""
REWARD_UNITS: dict[str, Any] = {"at_least": 1e-6, "at_most": 1e6}
"""Range of settings in units of reward: losses and Adam's moments hold squares of
products of two, with values and gradients of any size between, in float32."""
_MOST_LAYERS = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that the algorithms here share.

    Raises:
        UsageError: on construction, naming the flag and the fix.
    """

    learning_rate: float = setting(
        3e-4, "Adam's step size.", at_least=_LEAST_RATE, at_most=1
    )
    learning_rate_decay: float = setting(
        0.0,
        "Share of the step size that is gone at the end of training, where it falls "
        "linearly: 0, it is constant; 1, it falls to 0. Resuming with more "
        "--num_timesteps raises it again.",
        at_least=0,
        at_most=1,
    )
    discounting: float = setting(
        0.99,
        "Discount per control step (the paper's gamma).",
        at_least=0,
        at_most=1,
    )
    target_rate: float = setting(
        0.005,
        "Polyak rate of the target networks per update (the paper's lambda).",
        at_least=_LEAST_RATE,
        at_most=1,
    )
    average_rate: float = setting(
        2e-4,
        "Polyak rate per update of the average policy, which greedy evaluations play; "
        "1: the newest policy.",
        at_least=_LEAST_RATE,
        at_most=1,
    )
    hidden_sizes: tuple[int, ...] = setting(
        (256, 256),
        "Widths of the hidden layers of each network.",
        at_least=2,  # LayerNorm makes one unit 0
    )
    layer_norm: bool = setting(True, "LayerNorm in the hidden layers.")
    zero_last_layer: bool = setting(
        True, "Start the policy's output layer at zero: a uniform policy."
    )
    compute_dtype: str = setting(
        "float32",
        "Of the factors of the networks' matrix products; weights and sums are "
        "float32.",
        choices=networks.COMPUTE_DTYPES,
        before="float32",
    )
    value_scale: float = setting(
        1.0,
        "Of the value network's output (SAC: the critics'), in units of reward: near "
        "the size of values, its weights need not grow to reach them.",
        **REWARD_UNITS,
    )

    def __post_init__(self):
        check(self)
        if not 1 <= len(self.hidden_sizes) <= _MOST_LAYERS:
            fix = f"give 1 to {_MOST_LAYERS} widths, such as 256,256"
            refuse("hidden_sizes", self.hidden_sizes, fix)


def learning_rate(config: Config) -> optax.ScalarOrSchedule:
    """Adam's step size in a run, constant or falling linearly."""
    settings: Settings = config.algorithm
    if not settings.learning_rate_decay:
        return settings.learning_rate
    last = settings.learning_rate * (1 - settings.learning_rate_decay)
    return optax.linear_schedule(settings.learning_rate, last, config.num_updates)


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
