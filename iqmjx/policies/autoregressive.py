"""An autoregressive multicategorical policy (Sec. 4, after Metz et al. 2017).

    pi(a|s) = prod_j softmax(F_j(s, a_1 ... a_{j-1}))(a_j)

Every distribution over the bins can be written so, where independent dimensions cannot
agree with each other. Actions are bin indices, int8, as the multicategorical policy's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from iqmjx.policies import base
from iqmjx.policies.base import BinnedPolicy, Settings, Temperature
from iqmjx.policies.conditionals import Conditionals


@dataclasses.dataclass(frozen=True)
class Autoregressive(BinnedPolicy[Conditionals]):
    """Autoregressive multicategorical policy; implements `iqmjx.policies.Policy`."""

    @classmethod
    def from_settings(cls, settings: Settings, action_size: int) -> Autoregressive:
        """The policy that an algorithm's settings describe."""
        return cls(
            network=Conditionals.from_settings(
                settings, action_size, settings.num_bins
            ),
            action_size=action_size,
            num_bins=settings.num_bins,
            advantage_scale=base.advantage_scale(settings, action_size),
        )

    def log_probs(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B A n"]:
        """Log-probability of every bin of a dimension given the action's bins before.

        In nats.
        """
        context = self.network.context(params, obs)
        return self._follow(params, context, action, temperature)

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        return self.chosen(self.log_probs(params, obs, action, temperature), action)

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and an estimate of the entropy.

        The sum of the conditionals' entropies along one action of the policy's own; it
        passes no gradient on.
        """
        context = self.network.context(params, obs)
        log_probs = self._follow(params, context, action, temperature)
        fixed, context = jax.lax.stop_gradient((params, context))
        noise = self._noise(key, obs)
        _, own = self._draw(fixed, context, noise, temperature)
        entropy = -jnp.sum(jnp.exp(own) * own, axis=(-2, -1))
        return self.chosen(log_probs, action), entropy

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Int8[Array, "*B A"]:
        noise = self._noise(key, obs)
        context = self.network.context(params, obs)
        return self._draw(params, context, noise, temperature)[0]

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Int8[Array, "*B A"]:
        """The likeliest bin of each dimension given those before: a greedy search.

        The likeliest action can be another one, and takes n^A evaluations to find.
        """
        none = jnp.zeros((*obs.shape[:-1], self.action_size, self.num_bins))
        context = self.network.context(params, obs)
        return self._draw(params, context, none, temperature)[0]

    def _follow(self, params, context, action, temperature):
        """The conditionals [*B, A, n] along known actions."""
        return self._walk(params, context, temperature, action, lambda _, bin: bin)[1]

    def _draw(self, params, context, noise, temperature):
        """The bins with the largest log-probability plus noise, and the conditionals.

        Gumbel noise [*B, A, n] samples.
        """

        def pick(log_probs, noise):
            return jnp.argmax(log_probs + noise, -1).astype(jnp.int8)

        return self._walk(params, context, temperature, noise, pick)

    def _walk(self, params, context, temperature, inputs, pick):
        """Picks bin after bin: the action, and the conditionals [*B, A, n] it met."""

        def choose(outputs, inputs):
            logits = base.scaled(outputs, self.advantage_scale, temperature)
            log_probs = jax.nn.log_softmax(logits)
            bin = pick(log_probs, inputs)
            return jax.nn.one_hot(bin, self.num_bins), (bin, log_probs)

        return self.network.walk(params, context, inputs, choose)

    def _noise(self, key, obs):
        shape = (*obs.shape[:-1], self.action_size, self.num_bins)
        return jax.random.gumbel(key, shape)
