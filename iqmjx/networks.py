"""Networks: a plain multilayer perceptron, with the recipe's two switches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import flax.linen as nn
from jaxtyping import Array, Float


class Settings(Protocol):
    """What is read here of an algorithm's settings."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        ...

    @property
    def layer_norm(self) -> bool:
        """LayerNorm in the hidden layers."""
        ...

    @property
    def zero_last_layer(self) -> bool:
        """Start a policy's output layer at zero."""
        ...

    @property
    def value_scale(self) -> float:
        """Scale of a value network's output, in units of reward."""
        ...


class MLP(nn.Module):
    """Dense layers with ReLU, optionally LayerNorm before each ReLU.

    Attributes:
        hidden_sizes: width of each hidden layer.
        num_outputs: width of the linear output layer.
        layer_norm: normalize each hidden layer before its ReLU.
        zero_last_layer: start the output layer at zero.
        output_scale: of the outputs, which are O(1) times it for weights of O(1).
    """

    hidden_sizes: Sequence[int]
    num_outputs: int
    layer_norm: bool = True
    zero_last_layer: bool = False
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        for size in self.hidden_sizes:
            x = nn.Dense(size)(x)
            if self.layer_norm:
                # Without scale and bias: the Dense layers around it have their own,
                # and on a CPU their gradients cost more than all the rest of it.
                x = nn.LayerNorm(use_bias=False, use_scale=False)(x)
            x = nn.relu(x)
        last_init = nn.linear.default_kernel_init
        if self.zero_last_layer:
            last_init = nn.initializers.zeros_init()
        outputs = nn.Dense(self.num_outputs, kernel_init=last_init)(x)
        return self.output_scale * outputs


def of_policy(settings: Settings, num_outputs: int) -> MLP:
    """A policy's network, as an algorithm's settings ask for it."""
    return MLP(
        settings.hidden_sizes,
        num_outputs,
        settings.layer_norm,
        settings.zero_last_layer,
    )


def of_context(settings: Settings, num_outputs: int) -> MLP:
    """A network whose outputs the rest of a policy reads, as settings ask for it."""
    return MLP(settings.hidden_sizes, num_outputs, settings.layer_norm)


def of_value(settings: Settings) -> MLP:
    """The network of a value, V(s) or Q(s, a), as the settings ask for it."""
    return MLP(
        settings.hidden_sizes, 1, settings.layer_norm, output_scale=settings.value_scale
    )
