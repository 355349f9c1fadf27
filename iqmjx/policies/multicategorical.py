"""The paper's policy (Sec. 4): an independent categorical per action dimension.

Each dimension of [-1, 1] is cut uniformly into n bins, both ends included, and
`pi(a|s) = prod_j softmax_j(a_j|s)`, the A * n logits sharing one network. Actions are
bin indices, int8, all the way into replay.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from iqmjx import networks
from iqmjx.networks import MLP
from iqmjx.policies import base
from iqmjx.policies.base import BinnedPolicy, Settings, Temperature


@dataclasses.dataclass(frozen=True)
class Multicategorical(BinnedPolicy[MLP]):
    """Multicategorical policy; implements `iqmjx.policies.Policy`.

    Its network maps observations to A * n outputs. The log-policy adds up A terms, so
    with an advantage_scale of 1 a step of the parameters moves it A times as far as it
    moves the value, and it takes the share of a TD error that is the value's. A small
    one gives that back (launch/results/recipe.md).
    """

    @classmethod
    def from_settings(cls, settings: Settings, action_size: int) -> Multicategorical:
        """The policy that an algorithm's settings describe."""
        return cls(
            network=networks.of_policy(settings, action_size * settings.num_bins),
            action_size=action_size,
            num_bins=settings.num_bins,
            advantage_scale=base.advantage_scale(settings, action_size),
        )

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
        return self.chosen(self.log_probs(params, obs, temperature), action)

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
        return self.chosen(log_probs, action), entropy

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Int8[Array, "*B A"]:
        logits = self._logits(params, obs, temperature)
        return jax.random.categorical(key, logits).astype(jnp.int8)

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Int8[Array, "*B A"]:
        logits = self._logits(params, obs, temperature)
        return jnp.argmax(logits, -1).astype(jnp.int8)

    def _logits(self, params, obs, temperature) -> Float[Array, "*B A n"]:
        outputs: Any = self.network.apply(params, obs)
        outputs = outputs.reshape(*obs.shape[:-1], self.action_size, self.num_bins)
        return base.scaled(outputs, self.advantage_scale, temperature)
