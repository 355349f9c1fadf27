"""An autoregressive multicategorical policy (Sec. 4, after Metz et al. 2017).

    pi(a|s) = prod_j softmax(F_j(s, a_1 ... a_{j-1}))(a_j)

Every distribution over the bins can be written so, where independent dimensions cannot
agree with each other. The logits are those of a neural autoregressive estimator
(Larochelle and Murray 2011):

    F_j = W_j relu(LayerNorm(c(s) + sum_{i<j} E_i[a_i])) + b_j

with a context c of the observation, and an embedding E_i of each bin: the network runs
once for an action, and A short steps walk through its dimensions. Actions are bin
indices, int8, as the multicategorical policy's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from iqmjx import networks
from iqmjx.config import Config
from iqmjx.policies import base
from iqmjx.policies.base import BinnedPolicy, Temperature

_CONTEXT = 64
"""Width of c."""


@struct.dataclass
class Params:
    """The trained parameters."""

    network: Any
    embedding: Float[Array, "A n C"]
    weight: Float[Array, "A C n"]
    bias: Float[Array, "A n"]


@dataclasses.dataclass(frozen=True)
class Autoregressive(BinnedPolicy):
    """Autoregressive multicategorical policy; implements `iqmjx.policies.Policy`.

    Its network maps observations to the context, C outputs.

    Attributes:
        zero_last_layer: start with W_j = 0, a uniform policy.
    """

    zero_last_layer: bool

    @classmethod
    def from_config(cls, config: Config, action_size: int) -> Autoregressive:
        """The policy that a config describes."""
        return cls(
            network=networks.of_context(config, _CONTEXT),
            action_size=action_size,
            num_bins=config.num_bins,
            advantage_scale=base.advantage_scale(config, action_size),
            zero_last_layer=config.zero_last_layer,
        )

    def init(self, key: PRNGKeyArray, observation_size: int) -> Params:
        network_key, embedding_key, weight_key = jax.random.split(key, 3)
        shape = (self.action_size, _CONTEXT, self.num_bins)
        weight = nn.initializers.lecun_normal(batch_axis=0)(weight_key, shape)
        return Params(
            network=self.network.init(network_key, jnp.zeros(observation_size)),
            embedding=jax.random.normal(embedding_key, (shape[0], shape[2], shape[1])),
            weight=jnp.zeros(shape) if self.zero_last_layer else weight,
            bias=jnp.zeros((self.action_size, self.num_bins)),
        )

    def log_probs(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B A n"]:
        """Log-probability of every bin of a dimension given the action's bins before.

        In nats.
        """
        context = self._context(params, obs)
        return self._follow(params, context, action, temperature)

    def log_prob(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        return self.chosen(self.log_probs(params, obs, action, temperature), action)

    def log_prob_and_entropy(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        action: Int8[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and an estimate of the entropy.

        The sum of the conditionals' entropies along one action of the policy's own; it
        passes no gradient on.
        """
        context = self._context(params, obs)
        log_probs = self._follow(params, context, action, temperature)
        fixed, context = jax.lax.stop_gradient((params, context))
        noise = self._noise(key, obs)
        _, own = self._draw(fixed, context, noise, temperature)
        entropy = -jnp.sum(jnp.exp(own) * own, axis=(-2, -1))
        return self.chosen(log_probs, action), entropy

    def sample(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Int8[Array, "*B A"]:
        noise = self._noise(key, obs)
        return self._draw(params, self._context(params, obs), noise, temperature)[0]

    def mode(
        self, params: Params, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Int8[Array, "*B A"]:
        """The likeliest bin of each dimension given those before: a greedy search.

        The likeliest action can be another one, and takes n^A evaluations to find.
        """
        none = jnp.zeros((*obs.shape[:-1], self.action_size, self.num_bins))
        context = self._context(params, obs)
        return self._draw(params, context, none, temperature)[0]

    def _context(self, params: Params, obs) -> Float[Array, "*B C"]:
        context: Any = self.network.apply(params.network, obs)
        return context

    def _follow(self, params: Params, context, action, temperature):
        """The conditionals [*B, A, n] along known actions."""
        bins = jnp.moveaxis(action, -1, 0)
        return self._walk(params, context, temperature, bins, lambda _, bin: bin)[1]

    def _draw(self, params: Params, context, noise, temperature):
        """The bins with the largest log-probability plus noise, and the conditionals.

        Gumbel noise [*B, A, n] samples.
        """

        def choose(log_probs, noise):
            return jnp.argmax(log_probs + noise, -1).astype(jnp.int8)

        noise = jnp.moveaxis(noise, -2, 0)
        return self._walk(params, context, temperature, noise, choose)

    def _walk(self, params: Params, context, temperature, inputs, choose):
        """Chooses bin after bin: the action, and the conditionals [*B, A, n] it met.

        A scan whose steps fit a cache: on a CPU ten times faster than all dimensions at
        once, whose activations are A times a step's.
        """

        def step(hidden, inputs):
            inputs, embedding, weight, bias = inputs
            outputs = self._activate(hidden) @ weight
            outputs += jnp.broadcast_to(bias, outputs.shape)
            log_probs = jax.nn.log_softmax(self.scaled(outputs, temperature))
            chosen = choose(log_probs, inputs)
            hidden += jax.nn.one_hot(chosen, self.num_bins) @ embedding
            return hidden, (chosen, log_probs)

        steps = inputs, params.embedding, params.weight, params.bias
        _, (action, log_probs) = jax.lax.scan(step, context, steps)
        return jnp.moveaxis(action, 0, -1), jnp.moveaxis(log_probs, 0, -2)

    def _noise(self, key, obs):
        shape = (*obs.shape[:-1], self.action_size, self.num_bins)
        return jax.random.gumbel(key, shape)

    def _activate(self, hidden):
        if self.network.layer_norm:
            hidden = jax.nn.standardize(hidden, epsilon=1e-6)
        return nn.relu(hidden)
