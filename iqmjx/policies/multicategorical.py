"""The paper's policy (Sec. 4): an independent categorical per action dimension.

Each dimension of [-1, 1] is cut uniformly into n bins, both ends included, and
`pi(a|s) = prod_j softmax_j(a_j|s)`, the A * n logits sharing one network. Actions are
bin indices, int8, all the way into replay.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from iqmjx import networks
from iqmjx.config import Config
from iqmjx.networks import MLP
from iqmjx.policies.base import Temperature


@dataclasses.dataclass(frozen=True)
class Multicategorical:
    """Multicategorical policy; implements `iqmjx.policies.Policy`.

    Attributes:
        network: maps observations to A * n outputs.
        action_size: A.
        num_bins: n.
        advantage_scale: c in the scaled softmax of Sec. 3.3, `pi = softmax(c * F /
            temperature)`: c * F are advantages in units of reward, up to a constant.
            None: `pi = softmax(F)`.

    The log-policy adds up A such terms, so with c = 1 a step of the parameters moves it
    A times as far as it moves the value, and it takes the share of a TD error that is
    the value's. A small c gives that back (launch/results/recipe.md).
    """

    network: MLP
    action_size: int
    num_bins: int
    advantage_scale: float | None

    @classmethod
    def from_config(cls, config: Config, action_size: int) -> Multicategorical:
        """The policy that a config describes."""
        return cls(
            network=networks.of_policy(config, action_size * config.num_bins),
            action_size=action_size,
            num_bins=config.num_bins,
            advantage_scale=config.advantage_scale / action_size
            if config.scaled_softmax
            else None,
        )

    @property
    def action_dtype(self) -> Any:
        """int8."""
        return jnp.int8

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one stored action."""
        return (self.action_size,)

    def init(self, key: PRNGKeyArray, observation_size: int) -> Any:
        return self.network.init(key, jnp.zeros(observation_size))

    def log_probs(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Float[Array, "*B A n"]:
        """Log-probability of every bin of every dimension, in nats."""
        return jax.nn.log_softmax(self._logits(params, obs, temperature))

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        return self._chosen(self.log_probs(params, obs, temperature), action)

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and the entropy in closed form."""
        del key
        log_probs = self.log_probs(params, obs, temperature)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(-2, -1))
        return self._chosen(log_probs, action), entropy

    def entropy_at(self, share: float) -> float:
        return share * math.log(self.num_bins)

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Int8[Array, "*B A"]:
        logits = self._logits(params, obs, temperature)
        return jax.random.categorical(key, logits).astype(jnp.int8)

    def mode(self, params: Any, obs: Float[Array, "*B O"]) -> Int8[Array, "*B A"]:
        return jnp.argmax(self._logits(params, obs, 1.0), -1).astype(jnp.int8)

    def random(self, key: PRNGKeyArray, batch: int) -> Int8[Array, "batch A"]:
        shape = (batch, self.action_size)
        return jax.random.randint(key, shape, 0, self.num_bins, jnp.int8)

    def control(self, action: Int8[Array, "*B A"]) -> Float[Array, "*B A"]:
        return jnp.linspace(-1.0, 1.0, self.num_bins)[action]

    def _chosen(self, log_probs, action) -> Float[Array, "*B"]:
        # A one-hot product rather than a gather, whose gradient is a slow scatter.
        chosen = jax.nn.one_hot(action, self.num_bins, dtype=log_probs.dtype)
        return jnp.sum(log_probs * chosen, axis=(-2, -1))

    def _logits(self, params, obs, temperature) -> Float[Array, "*B A n"]:
        outputs: Any = self.network.apply(params, obs)
        outputs = outputs.reshape(*obs.shape[:-1], self.action_size, self.num_bins)
        if self.advantage_scale is None:
            return outputs
        return outputs * (self.advantage_scale / temperature)
