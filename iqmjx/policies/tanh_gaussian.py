"""SAC's policy: a diagonal Gaussian squashed by tanh (Haarnoja et al. 2018b, App. C).

    a = tanh(u), u ~ N(mean(s), std(s)^2)
    log pi(a|s) = sum_j log N(u_j) - log(1 - tanh(u_j)^2)

Actions are points of [-1, 1]^A, float32, in replay as well. The temperature plays no
part in the distribution: every method takes one, as `Policy` asks, and ignores it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import networks
from iqmjx.networks import MLP
from iqmjx.policies import base
from iqmjx.policies.base import DensityPolicy, Temperature

_LOG_STD_RANGE = (-20.0, 2.0)
_LARGEST_ACTION = 1 - 1e-6
"""Where stored actions are clipped: float32 rounds tanh(u) to 1 from u = 9 on."""


@dataclasses.dataclass(frozen=True)
class TanhGaussian(DensityPolicy[MLP]):
    """Tanh-Gaussian policy; implements `iqmjx.policies.Policy`.

    Its network maps observations to 2 * A outputs, means and log-deviations.

    Attributes:
        num_bins: n, the scale of `entropy_at`.
    """

    num_bins: int = 11

    @classmethod
    def from_settings(
        cls, settings: networks.Settings, action_size: int
    ) -> TanhGaussian:
        """The policy that an algorithm's settings describe; SAC's have no bins."""
        return cls(
            network=networks.of_policy(settings, 2 * action_size),
            action_size=action_size,
            num_bins=getattr(settings, "num_bins", cls.num_bins),
        )

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        temperature: Temperature = 1.0,
    ) -> Float[Array, "*B"]:
        """Log-density of stored actions, in nats; those at the edge as just inside."""
        del temperature
        mean, log_std = self._moments(params, obs)
        raw = jnp.arctanh(jnp.clip(action, -_LARGEST_ACTION, _LARGEST_ACTION))
        return _log_density(raw, (raw - mean) * jnp.exp(-log_std), log_std)

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature = 1.0,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and an estimate of the entropy: -log pi of an action of its own.

        The estimate passes no gradient on.
        """
        _, own = self.sample_with_log_prob(params, obs, key)
        log_prob = self.log_prob(params, obs, action, temperature)
        return log_prob, -jax.lax.stop_gradient(own)

    def entropy_at(self, share: float) -> float:
        return base.density_entropy_at(share, self.num_bins)

    def sample_with_log_prob(
        self, params: Any, obs: Float[Array, "*B O"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """Reparameterized actions and their log-densities, in nats."""
        mean, log_std = self._moments(params, obs)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        return jnp.tanh(raw), _log_density(raw, noise, log_std)

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature = 1.0,
    ) -> Float[Array, "*B A"]:
        """Actions drawn from the distribution; `key` is consumed."""
        del temperature
        return self.sample_with_log_prob(params, obs, key)[0]

    def mode(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        temperature: Temperature = 1.0,
    ) -> Float[Array, "*B A"]:
        """The squashed mean, by which SAC is evaluated."""
        del temperature
        return jnp.tanh(self._moments(params, obs)[0])

    def _moments(self, params, obs):
        outputs: Any = self.network.apply(params, obs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, *_LOG_STD_RANGE)


def _log_density(raw, noise, log_std) -> Float[Array, "*B"]:
    """Of tanh(raw), where raw = mean + exp(log_std) * noise; all [*B, A]."""
    log_normal = -0.5 * (jnp.square(noise) + math.log(2 * math.pi)) - log_std
    # log(1 - tanh(u)^2), without cancellation for large u.
    log_slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
    return jnp.sum(log_normal - log_slope, axis=-1)
