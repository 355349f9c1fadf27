"""A Gaussian policy, the ablation of the paper's Sec. 6.

    pi(a|s) = N(a; mean(s), diag(deviation(s)^2))

With it the implicit advantage, temperature * log pi, is a quadratic of the action,
which is all that IQ can then represent (Sec. 4). Actions are points of R^A, float32, in
replay as well; an environment is given the nearest point of [-1, 1]^A.
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
from iqmjx.policies.base import DensityPolicy, Settings, Temperature

_LOG_STD_RANGE = (-10.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Gaussian(DensityPolicy[MLP]):
    """Gaussian policy; implements `iqmjx.policies.Policy`.

    Its network maps observations to 2 * A outputs, means and log-deviations.

    Attributes:
        num_bins: n, the scale of `entropy_at`.
        advantage_scale: c of the scaled form, where the variance is temperature / c
            times the network's: the advantage is then c times the network's quadratic,
            in units of reward, at every temperature. None: the variance is the
            network's.
    """

    num_bins: int
    advantage_scale: float | None

    @classmethod
    def from_settings(cls, settings: Settings, action_size: int) -> Gaussian:
        """The policy that an algorithm's settings describe."""
        return cls(
            network=networks.of_policy(settings, 2 * action_size),
            action_size=action_size,
            num_bins=settings.num_bins,
            advantage_scale=base.advantage_scale(settings, action_size),
        )

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        return _log_density(*self._moments(params, obs, temperature), action)

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and the entropy in closed form."""
        del key
        mean, log_std = self._moments(params, obs, temperature)
        entropy = jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)
        return _log_density(mean, log_std, action), entropy

    def entropy_at(self, share: float) -> float:
        return base.density_entropy_at(share, self.num_bins)

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Float[Array, "*B A"]:
        mean, log_std = self._moments(params, obs, temperature)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Float[Array, "*B A"]:
        return self._moments(params, obs, temperature)[0]

    def control(self, action: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
        return jnp.clip(action, -1.0, 1.0)

    def _moments(self, params, obs, temperature):
        outputs: Any = self.network.apply(params, obs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        if self.advantage_scale is not None:
            log_std += 0.5 * jnp.log(temperature / self.advantage_scale)
        return mean, jnp.clip(log_std, *_LOG_STD_RANGE)


def _log_density(mean, log_std, action) -> Float[Array, "*B"]:
    scaled = (action - mean) * jnp.exp(-log_std)
    terms = -0.5 * (jnp.square(scaled) + math.log(2 * math.pi)) - log_std
    return jnp.sum(terms, axis=-1)
