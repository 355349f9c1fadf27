"""What a policy class is, and what classes over bins or points of the box share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from iqmjx import networks
from iqmjx.networks import MLP
from iqmjx.policies.conditionals import Conditionals

Temperature = float | Float[Array | np.ndarray, ""]
"""A number or a scalar array; a policy read from a file has NumPy's."""

SOFTMAXES = ("raw", "scaled", "shared")
"""What `Settings.softmax` may be."""

Network = TypeVar("Network", MLP, Conditionals)


class Settings(networks.Settings, Protocol):
    """What policies read of an algorithm's settings."""

    @property
    def policy(self) -> str:
        """The policy class, by name."""
        ...

    @property
    def num_bins(self) -> int:
        """n, bins per action dimension."""
        ...

    @property
    def softmax(self) -> str:
        """How logits come from a network's outputs: one of SOFTMAXES."""
        ...

    @property
    def advantage_scale(self) -> float:
        """Scale of the outputs in the scaled softmax, in units of reward."""
        ...


class Policy(Protocol):
    """A distribution over actions given an observation, with parameters apart.

    The temperature is an argument of every call: where the scaled softmax is used, it
    shapes the distribution, and a change of it acts at once.
    """

    @property
    def action_dtype(self) -> Any:
        """The dtype of the actions that sample() returns and replay stores."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one of them."""
        ...

    def init(self, key: PRNGKeyArray, observation_size: int) -> Any:
        """Fresh parameters; `key` is consumed."""
        ...

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Array,
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        """Log-probability of actions as they are stored in replay, in nats."""
        ...

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Array,
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and the entropy of the distribution in nats.

        Exact where it has a closed form; else an unbiased estimate for each observation
        from one action of its own, for which `key` is consumed. The class says which.
        """
        ...

    def entropy_at(self, share: float) -> float:
        """The entropy per action dimension, in nats, that is a share of uniform play's.

        On the scale of n bins, so that a share means as much for every class: share *
        log n for one that has bins, and for a density on [-1, 1] that of the n bins
        that it would fill, share * log n - log(n / 2).
        """
        ...

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Array:
        """Actions drawn from the distribution; `key` is consumed."""
        ...

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Array:
        """The most likely actions, or what stands for them: the class says which."""
        ...

    def random(self, key: PRNGKeyArray, batch: int) -> Array:
        """Uniformly random actions [batch, *action_shape]; `key` is consumed."""
        ...

    def control(self, action: Array) -> Float[Array, "*B A"]:
        """The point of [-1, 1]^A that a stored action stands for."""
        ...


@dataclasses.dataclass(frozen=True)
class NetworkPolicy(Generic[Network]):
    """A policy whose parameters are one network's.

    Attributes:
        network: maps observations to what the class makes a distribution of.
        action_size: A.
    """

    network: Network
    action_size: int

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one stored action."""
        return (self.action_size,)

    def init(self, key: PRNGKeyArray, observation_size: int) -> Any:
        """Fresh parameters; `key` is consumed."""
        return self.network.init(key, jnp.zeros(observation_size))


@dataclasses.dataclass(frozen=True)
class BinnedPolicy(NetworkPolicy[Network]):
    """Actions are bin indices, int8: n bins of each dimension, both ends included.

    Attributes:
        num_bins: n.
        advantage_scale: c in the scaled softmax of Sec. 3.3, `pi = softmax(c * F /
            temperature)`: c * F are advantages in units of reward, up to a constant.
            None: `pi = softmax(F)`.
    """

    num_bins: int
    advantage_scale: float | None

    @property
    def action_dtype(self) -> Any:
        """int8."""
        return jnp.int8

    def entropy_at(self, share: float) -> float:
        """The entropy of the bins (`Policy.entropy_at`)."""
        return share * math.log(self.num_bins)

    def random(self, key: PRNGKeyArray, batch: int) -> Int8[Array, "batch A"]:
        """Uniformly random actions; `key` is consumed."""
        shape = (batch, self.action_size)
        return jax.random.randint(key, shape, 0, self.num_bins, jnp.int8)

    def control(self, action: Int8[Array, "*B A"]) -> Float[Array, "*B A"]:
        """The bins' points, evenly from -1 to 1."""
        return jnp.linspace(-1.0, 1.0, self.num_bins)[action]

    def chosen(
        self, log_probs: Float[Array, "*B A n"], action: Int8[Array, "*B A"]
    ) -> Float[Array, "*B"]:
        """The sum of the log-probabilities of the action's bins."""
        # A one-hot product rather than a gather, whose gradient is a slow scatter.
        chosen = jax.nn.one_hot(action, self.num_bins, dtype=log_probs.dtype)
        return jnp.sum(log_probs * chosen, axis=(-2, -1))


@dataclasses.dataclass(frozen=True)
class DensityPolicy(NetworkPolicy[Network]):
    """Actions are points, float32, in replay as well."""

    @property
    def action_dtype(self) -> Any:
        """float32."""
        return jnp.float32

    def random(self, key: PRNGKeyArray, *batch: int) -> Float[Array, "*batch A"]:
        """Uniformly random points of the box; `key` is consumed."""
        return jax.random.uniform(key, (*batch, self.action_size), minval=-1.0)

    def control(self, action: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
        """The action, which is in [-1, 1]^A already."""
        return action


def scaled(
    outputs: Float[Array, "*B n"],
    advantage_scale: float | None,
    temperature: Temperature,
) -> Float[Array, "*B n"]:
    """Logits of a network's outputs, with the scaled softmax or without (None)."""
    if advantage_scale is None:
        return outputs
    return outputs * (advantage_scale / temperature)


def advantage_scale(settings: Settings, action_size: int) -> float | None:
    """The scale of one dimension's advantage; None for the raw softmax.

    `raw` is the paper's Sec. 4, `scaled` its Sec. 3.3; `shared` divides the scale of
    that among the action dimensions, whose advantages add up.
    """
    if settings.softmax == "raw":
        return None
    parts = action_size if settings.softmax == "shared" else 1
    return settings.advantage_scale / parts


def density_entropy_at(share: float, num_bins: int) -> float:
    """`Policy.entropy_at` of a density: that of the bins it would fill."""
    return share * math.log(num_bins) - math.log(num_bins / 2)
