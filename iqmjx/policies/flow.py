"""A normalizing flow over the action box (Sec. 4, after Ward et al. 2019).

    a_j = f_j(u_j; s, a_1 ... a_{j-1}), u uniform on [-1, 1]^A
    log pi(a|s) = sum_j log |d u_j / d a_j| - A log 2

A masked autoregressive flow (Papamakarios et al. 2017) of one layer, whose f_j are
monotone splines (`iqmjx.policies.spline`): what the autoregressive policy is to bins,
for points. Actions are points of [-1, 1]^A, float32, in replay as well.

The splines' bins are even along the action, and depend on actions alone. So they are
filled by replayed actions, as those of discrete policies are, and temperature * log pi
does not change with the temperature, but for the values of the conditionals. Knots that
move along the action let a fit squeeze the mass into gaps between replayed actions, and
coupling layers on u change the advantage whenever the temperature does
(launch/results/recipe.md).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx.policies import base, spline
from iqmjx.policies.base import DensityPolicy, Settings, Temperature
from iqmjx.policies.conditionals import Conditionals


@dataclasses.dataclass(frozen=True)
class Flow(DensityPolicy[Conditionals]):
    """Flow policy; implements `iqmjx.policies.Policy`.

    Attributes:
        num_bins: n, bins of each spline, and the scale of `entropy_at`.
        advantage_scale: c of the scaled softmax, by which c * F / temperature are the
            splines' logits. None: they are F.
    """

    num_bins: int
    advantage_scale: float | None

    @classmethod
    def from_settings(cls, settings: Settings, action_size: int) -> Flow:
        """The policy that an algorithm's settings describe."""
        return cls(
            network=Conditionals.from_settings(
                settings, action_size, settings.num_bins
            ),
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
        context = self.network.context(params, obs)
        return self.to_latent(params, context, action, temperature)[1]

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and an estimate of the entropy: -log pi of an action of its own.

        The estimate passes no gradient on.
        """
        context = self.network.context(params, obs)
        _, log_prob = self.to_latent(params, context, action, temperature)
        fixed, context = jax.lax.stop_gradient((params, context))
        latent = self.random(key, *obs.shape[:-1])
        _, own = self.from_latent(fixed, context, latent, temperature)
        return log_prob, -own

    def entropy_at(self, share: float) -> float:
        return base.density_entropy_at(share, self.num_bins)

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Float[Array, "*B A"]:
        latent = self.random(key, *obs.shape[:-1])
        context = self.network.context(params, obs)
        return self.from_latent(params, context, latent, temperature)[0]

    def mode(
        self, params: Any, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Float[Array, "*B A"]:
        """The median of each dimension given those before: the action of u = 0.

        The densest action has no closed form.
        """
        context = self.network.context(params, obs)
        middle = jnp.zeros((*obs.shape[:-1], self.action_size))
        return self.from_latent(params, context, middle, temperature)[0]

    def to_latent(
        self,
        params: Any,
        context: Float[Array, "*B C"],
        action: Float[Array, "*B A"],
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """U of actions, and their log-density."""

        def choose(logits, action):
            return action, spline.forward(logits, action)

        return self._walk(params, context, temperature, action, choose)

    def from_latent(
        self,
        params: Any,
        context: Float[Array, "*B C"],
        latent: Float[Array, "*B A"],
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """Actions of u, and their log-density."""

        def choose(logits, latent):
            action, log_slope = spline.inverse(logits, latent)
            return action, (action, log_slope)

        return self._walk(params, context, temperature, latent, choose)

    def _walk(self, params, context, temperature, inputs, choose):
        """Chooses dimension after dimension: the points found, and the log-density."""

        def weigh(outputs, inputs):
            logits = base.scaled(outputs, self.advantage_scale, temperature)
            action, found = choose(logits, inputs)
            return self._weights(action), found

        points, log_slope = self.network.walk(params, context, inputs, weigh)
        uniform = self.action_size * math.log(2)
        return points, jnp.sum(log_slope, axis=-1) - uniform

    def _weights(self, action: Float[Array, "*B"]) -> Float[Array, "*B n"]:
        """An action between two of n points is that much of each."""
        points = jnp.linspace(-1.0, 1.0, self.num_bins)
        points = jnp.broadcast_to(points, (*action.shape, self.num_bins))
        distance = jnp.abs(action[..., None] - points) * ((self.num_bins - 1) / 2)
        return jax.nn.relu(1 - distance)
