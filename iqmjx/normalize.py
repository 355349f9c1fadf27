"""Running statistics: mean and variance of observations, and the size of rewards.

Replay stores raw observations and rewards; they are normalized when they are read, so
that the statistics always are the newest.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from iqmjx import parallel

CLIP = 10.0
"""Normalized entries are clipped to +-CLIP standard deviations."""
VARIANCE_FLOOR = 1e-4
"""Added to the variance: an entry that never moves is scaled by 100 at most, so that
float32 noise in it (1e-7 of its size) stays noise."""


@struct.dataclass
class Normalizer:
    """Statistics over all observations seen so far."""

    mean: Float[Array, " O"]
    variance: Float[Array, " O"]
    count: Float[Array, ""]  # observations seen


def init(observation_size: int) -> Normalizer:
    """Statistics of nothing: mean 0, variance 1, count 0."""
    return Normalizer(
        jnp.zeros(observation_size), jnp.ones(observation_size), jnp.zeros(())
    )


def update(
    normalizer: Normalizer,
    obs: Float[Array, "N O"],
    shards: parallel.Shards = parallel.ALONE,
) -> Normalizer:
    """Adds a batch, by the parallel form of Welford's algorithm (Chan et al. 1979).

    Args:
        normalizer: the statistics so far.
        obs: one shard's part of the batch.
        shards: those that hold the other parts, as large as this one.
    """
    added = obs.shape[0] * shards.count
    count = normalizer.count + added
    mean = shards.mean(obs.mean(0))
    variance = shards.mean(jnp.square(obs - mean).mean(0))
    delta = mean - normalizer.mean
    share = added / count  # of all observations, the new ones
    return Normalizer(
        mean=normalizer.mean + share * delta,
        variance=(1 - share) * normalizer.variance
        + share * (variance + (1 - share) * jnp.square(delta)),
        count=count,
    )


def normalize(
    normalizer: Normalizer, obs: Float[Array, "*B O"]
) -> Float[Array, "*B O"]:
    """Observations with mean 0 and variance about 1, clipped to +-CLIP."""
    scale = 1 / jnp.sqrt(normalizer.variance + VARIANCE_FLOOR)
    return jnp.clip((obs - normalizer.mean) * scale, -CLIP, CLIP)


RETURN_BOUND = 5.0
"""The largest discounted sum of rewards so far is scaled to this."""
_LEAST_SCALE = 1e-6


@struct.dataclass
class RewardNormalizer:
    """Statistics of the running discounted sums of rewards of all worlds so far."""

    moments: Normalizer  # [1]
    largest: Float[Array, ""]  # absolute value


def init_rewards() -> RewardNormalizer:
    """Statistics of nothing: a scale of 1."""
    return RewardNormalizer(init(1), jnp.zeros(()))


def update_rewards(
    normalizer: RewardNormalizer,
    returns: Float[Array, " N"],
    shards: parallel.Shards = parallel.ALONE,
) -> RewardNormalizer:
    """Adds each world's discounted sum of rewards since its episode began.

    Args:
        normalizer: the statistics so far.
        returns: one shard's part of them.
        shards: those that hold the other parts, as large as this one.
    """
    largest = shards.max(jnp.abs(returns).max())
    return RewardNormalizer(
        moments=update(normalizer.moments, returns[:, None], shards),
        largest=jnp.maximum(normalizer.largest, largest),
    )


def reward_scale(normalizer: RewardNormalizer) -> Float[Array, ""]:
    """What rewards are divided by.

    Their discounted sums then deviate by 1 or less, and none so far is beyond
    RETURN_BOUND (as in SimbaV2, Lee et al. 2025). A soft Q-function of rewards and
    temperature divided by a number is that of the undivided, divided by it: the policy
    stays what it was.
    """
    deviation = jnp.sqrt(normalizer.moments.variance[0])
    scale = jnp.maximum(deviation, normalizer.largest / RETURN_BOUND)
    return jnp.maximum(scale, _LEAST_SCALE)
