"""One action dimension after the other: the network of policies that factorize so.

    F_j = W_j relu(LayerNorm(c(s) + sum_{i<j} w(a_i) E_i)) + b_j

are n outputs for dimension j, given the observation and the dimensions before: a neural
autoregressive estimator (Larochelle and Murray 2011). Its context c runs once for an
action, and A short steps walk through its dimensions. E_i are embeddings of n points of
a dimension, and w(a_i) the weights of these points in a_i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import networks
from iqmjx.networks import MLP

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
class Conditionals:
    """The outputs F_j.

    Attributes:
        network: maps observations to the context, C outputs.
        action_size: A.
        num_bins: n.
        zero_last_layer: start with W_j = 0.
    """

    network: MLP
    action_size: int
    num_bins: int
    zero_last_layer: bool

    @classmethod
    def from_settings(
        cls, settings: networks.Settings, action_size: int, num_bins: int
    ) -> Conditionals:
        """The network that an algorithm's settings describe."""
        return cls(
            network=networks.of_context(settings, _CONTEXT),
            action_size=action_size,
            num_bins=num_bins,
            zero_last_layer=settings.zero_last_layer,
        )

    def init(self, key: PRNGKeyArray, obs: Float[Array, " O"]) -> Params:
        """Fresh parameters; `key` is consumed."""
        network_key, embedding_key, weight_key = jax.random.split(key, 3)
        shape = (self.action_size, _CONTEXT, self.num_bins)
        weight = nn.initializers.lecun_normal(batch_axis=0)(weight_key, shape)
        return Params(
            network=self.network.init(network_key, obs),
            embedding=jax.random.normal(embedding_key, (shape[0], shape[2], shape[1])),
            weight=jnp.zeros(shape) if self.zero_last_layer else weight,
            bias=jnp.zeros((self.action_size, self.num_bins)),
        )

    def context(
        self, params: Params, obs: Float[Array, "*B O"]
    ) -> Float[Array, "*B C"]:
        """c(s)."""
        context: Any = self.network.apply(params.network, obs)
        return context

    def walk(
        self,
        params: Params,
        context: Float[Array, "*B C"],
        inputs: Any,
        choose: Callable[[Array, Any], tuple[Array, Any]],
    ) -> Any:
        """Chooses dimension after dimension.

        A scan whose steps fit a cache: on a CPU ten times faster than all dimensions at
        once, whose activations are A times a step's.

        Args:
            params: as `init` returns them.
            context: as `context` returns it.
            inputs: what `choose` is given for each dimension: leaves [*B, A, ...].
            choose: maps F_j [*B, n] and its inputs [*B, ...] to the weights w(a_j)
                [*B, n] of what it chose, and to any results [*B, ...].

        Returns:
            The results of all dimensions, [*B, A, ...].
        """
        axis = context.ndim - 1  # of the dimensions

        def step(hidden, inputs):
            inputs, embedding, weight, bias = inputs
            outputs = self._activate(hidden) @ weight
            outputs += jnp.broadcast_to(bias, outputs.shape)
            weights, results = choose(outputs, inputs)
            return hidden + weights @ embedding, results

        inputs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), inputs)
        steps = inputs, params.embedding, params.weight, params.bias
        _, results = jax.lax.scan(step, context, steps)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), results)

    def _activate(self, hidden):
        if self.network.layer_norm:
            hidden = jax.nn.standardize(hidden, epsilon=1e-6)
        return nn.relu(hidden)
