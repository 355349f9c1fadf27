"""SAC's policy: a diagonal Gaussian squashed by tanh (Haarnoja et al. 2018b, App. C).

    a = tanh(u), u ~ N(mean(s), std(s)^2)
    log pi(a|s) = sum_j log N(u_j) - log(1 - tanh(u_j)^2)

Actions are points of [-1, 1]^A, float32, in replay as well. The temperature plays no
part in the distribution.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import networks
from iqmjx.config import Config
from iqmjx.networks import MLP
from iqmjx.policies.base import DensityPolicy

_LOG_STD_RANGE = (-20.0, 2.0)


@dataclasses.dataclass(frozen=True)
class TanhGaussian(DensityPolicy[MLP]):
    """Tanh-Gaussian policy.

    Its network maps observations to 2 * A outputs, means and log-deviations.
    """

    @classmethod
    def from_config(cls, config: Config, action_size: int) -> TanhGaussian:
        """The policy that a config describes."""
        return cls(networks.of_policy(config, 2 * action_size), action_size)

    def sample_with_log_prob(
        self, params: Any, obs: Float[Array, "*B O"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """Reparameterized actions and their log-densities, in nats."""
        mean, log_std = self._moments(params, obs)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        log_normal = -0.5 * (jnp.square(noise) + math.log(2 * math.pi)) - log_std
        # log(1 - tanh(u)^2), without cancellation for large u.
        log_slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
        return jnp.tanh(raw), jnp.sum(log_normal - log_slope, axis=-1)

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Any = None,
    ) -> Float[Array, "*B A"]:
        """Actions drawn from the distribution; `key` is consumed."""
        return self.sample_with_log_prob(params, obs, key)[0]

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Any = None
    ) -> Float[Array, "*B A"]:
        """The squashed mean, by which SAC is evaluated."""
        return jnp.tanh(self._moments(params, obs)[0])

    def _moments(self, params, obs):
        outputs: Any = self.network.apply(params, obs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, *_LOG_STD_RANGE)
