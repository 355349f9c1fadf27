"""Networks: a plain multilayer perceptron, with the recipe's switches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COMPUTE_DTYPES = ("float32", "bfloat16")


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

    @property
    def compute_dtype(self) -> str:
        """Of the factors of the layers' products, one of COMPUTE_DTYPES."""
        ...


class MLP(nn.Module):
    """Dense layers with ReLU, optionally LayerNorm before each ReLU.

    Attributes:
        hidden_sizes: width of each hidden layer.
        num_outputs: width of the linear output layer.
        layer_norm: normalize each hidden layer before its ReLU.
        zero_last_layer: start the output layer at zero.
        output_scale: of the outputs, which are O(1) times it for weights of O(1).
        compute_dtype: of the factors of each layer's products, one of COMPUTE_DTYPES.
            Weights, sums and all else are float32, and so is the product that makes a
            single output, which costs little.
    """

    hidden_sizes: Sequence[int]
    num_outputs: int
    layer_norm: bool = True
    zero_last_layer: bool = False
    output_scale: float = 1.0
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        dot_general = _dot_general if self.compute_dtype == "bfloat16" else None
        for size in self.hidden_sizes:
            x = nn.Dense(size, dot_general=dot_general)(x)
            if self.layer_norm:
                # Without scale and bias: the Dense layers around it have their own,
                # and on a CPU their gradients cost more than all the rest of it.
                x = nn.LayerNorm(use_bias=False, use_scale=False)(x)
            x = nn.relu(x)
        last_init = nn.linear.default_kernel_init
        if self.zero_last_layer:
            last_init = nn.initializers.zeros_init()
        outputs = nn.Dense(
            self.num_outputs,
            kernel_init=last_init,
            dot_general=dot_general if self.num_outputs > 1 else None,
        )(x)
        return self.output_scale * outputs


def of_policy(settings: Settings, num_outputs: int) -> MLP:
    """A policy's network, as an algorithm's settings ask for it."""
    return MLP(
        settings.hidden_sizes,
        num_outputs,
        settings.layer_norm,
        settings.zero_last_layer,
        compute_dtype=settings.compute_dtype,
    )


def of_context(settings: Settings, num_outputs: int) -> MLP:
    """A network whose outputs the rest of a policy reads, as settings ask for it."""
    return MLP(
        settings.hidden_sizes,
        num_outputs,
        settings.layer_norm,
        compute_dtype=settings.compute_dtype,
    )


def of_value(settings: Settings) -> MLP:
    """The network of a value, V(s) or Q(s, a), as the settings ask for it."""
    return MLP(
        settings.hidden_sizes,
        1,
        settings.layer_norm,
        output_scale=settings.value_scale,
        compute_dtype=settings.compute_dtype,
    )


def _dot_general(
    x: Float[Array, "*B inputs"],
    weights: Float[Array, "inputs outputs"],
    dimensions: Any,
    precision: Any = None,
) -> Float[Array, "*B outputs"]:
    """`product` in the place that `nn.Dense` has for it."""
    del dimensions, precision
    return product(x, weights)


@jax.custom_vjp
def product(
    x: Float[Array, "*B inputs"], weights: Float[Array, "inputs outputs"]
) -> Float[Array, "*B outputs"]:
    """A matrix product of factors rounded to bfloat16, summed in float32.

    Its gradients are such products too.
    """
    return _contract(x, weights, 0)


def _forward(x, weights):
    return product(x, weights), (x, weights)


def _backward(saved, gradient):
    x, weights = saved
    rows = gradient.reshape(-1, gradient.shape[-1])
    columns = _transposed(x.reshape(-1, x.shape[-1]))
    return _contract(gradient, weights, 1), _contract(columns, rows, 0)


product.defvjp(_forward, _backward)


def _contract(
    left: Float[Array, "*B n"], right: Float[Array, "_ _"], axis: int
) -> Float[Array, "*B _"]:
    """The product along the left's last axis and one of the right's."""
    return jax.lax.dot_general(
        left.astype(jnp.bfloat16),
        right.astype(jnp.bfloat16),
        (((left.ndim - 1,), (axis,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _transposed(x: Float[Array, "B n"]) -> Float[Array, "n B"]:
    """The transpose of x, rounded to bfloat16.

    On a CPU it is a product with the identity: XLA's own loop takes three times as
    long, and a product along the rows themselves it makes of float32.
    """
    if jax.default_backend() != "cpu":
        return x.T
    return _contract(jnp.eye(x.shape[-1]), x, 1)
