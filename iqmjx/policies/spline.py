"""A monotone map of [-1, 1] onto itself: a rational-quadratic spline on even bins.

Logits of n bins, evenly spaced along x, give the shares of the u-axis that the bins are
mapped onto; the slope where two bins meet is the harmonic mean of their mean slopes,
which keeps the map monotone (Gregory and Delbourgo 1982; Durkan et al. 2019). With u
uniform, x has the density |du/dx| / 2: a histogram softmax(logits) with round edges.

All is computed from the logarithms of the slopes. From differences of positions along
u, as in libraries, a bin of less than 1e-7 of the mass would have the density 0 in
float32, and no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAST_RATIO = 1e-3
"""Of the slope at the end of a bin to the bin's mean slope, so that it has a
logarithm."""
_TINY = 1e-12


class _Bins(NamedTuple):
    """What the map is made of, [*B, n] each."""

    log_slope: Array  # of the mean slope
    left: Array  # slope at the left end, in units of the mean slope
    right: Array  # at the right end
    top: Array  # u at the right end, as (u + 1) * n / 2


def forward(
    logits: Float[Array, "*B n"], x: Float[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """U of x, and log du/dx."""
    bins = _bins(logits)
    n = logits.shape[-1]
    position = (x + 1) * (n / 2)
    index = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, n - 1)
    log_slope, left, right, top = _pick(bins, index)
    rise, log_ratio = _rational(left, right, jnp.clip(position - index, 0, 1))
    u = (top - jnp.exp(log_slope) * (1 - rise)) * (2 / n) - 1
    return jnp.clip(u, -1, 1), log_slope + log_ratio


def inverse(
    logits: Float[Array, "*B n"], u: Float[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """X of u, and log du/dx there."""
    bins = _bins(logits)
    n = logits.shape[-1]
    height = (u + 1) / 2 * bins.top[..., -1]
    index = jnp.clip(jnp.sum(height[..., None] > bins.top, -1), 0, n - 1)
    log_slope, left, right, top = _pick(bins, index)
    rise = 1 - (top - height) / jnp.maximum(jnp.exp(log_slope), _TINY)
    rise = jnp.clip(rise, 0, 1)
    # The root of rise = _rational(left, right, share), without cancellation.
    b = left - (left + right - 2) * rise
    root = jnp.sqrt(jnp.square(b) + 4 * (1 - b) * rise)
    share = jnp.clip(2 * rise / jnp.maximum(b + root, _TINY), 0, 1)
    _, log_ratio = _rational(left, right, share)
    x = (index + share) * (2 / n) - 1
    return jnp.clip(x, -1, 1), log_slope + log_ratio


def _bins(logits: Array) -> _Bins:
    log_slope = jax.nn.log_softmax(logits) + math.log(logits.shape[-1])
    step = jnp.diff(log_slope)
    one = jnp.ones_like(logits[..., :1])
    # The harmonic mean of p and q, divided by p.
    left, right = 2 * jax.nn.sigmoid(-step), 2 * jax.nn.sigmoid(step)
    return _Bins(
        log_slope,
        jnp.concatenate([one, jnp.maximum(left, _LEAST_RATIO)], -1),
        jnp.concatenate([jnp.maximum(right, _LEAST_RATIO), one], -1),
        jnp.cumsum(jnp.exp(log_slope), -1),
    )


def _pick(bins: _Bins, index: Array) -> list[Array]:
    """The bins' entries at an index [*B]."""
    # A one-hot product rather than a gather, whose gradient is a slow scatter.
    where = jax.nn.one_hot(index, bins.top.shape[-1])
    return [jnp.sum(where * leaf, -1) for leaf in bins]


def _rational(left: Array, right: Array, share: Array) -> tuple[Array, Array]:
    """How far a bin has risen after a share of it, and the logarithm of its slope.

    Both in units of the whole bin.
    """
    both = share * (1 - share)
    divisor = 1 + (left + right - 2) * both
    slope = right * jnp.square(share) + 2 * both + left * jnp.square(1 - share)
    rise = (jnp.square(share) + left * both) / divisor
    return rise, jnp.log(slope) - 2 * jnp.log(divisor)
