"""A normalizing flow over the action box (Sec. 4, after Ward et al. 2019).

    a = f(u; s), u uniform on [-1, 1]^A, f a bijection of the box onto itself
    log pi(a|s) = -A log 2 + log |d u / d a|

f is a chain of coupling layers, each a rational-quadratic spline of half of the
dimensions given the other half and the observation (Durkan et al. 2019), of flowjax.
Actions are points of [-1, 1]^A, float32, in replay as well.

A spline spaces its knots by two softmaxes, along u and along a: between two knots its
log-density is about the difference of their logits F. The scaled softmax of Sec. 3.3
takes c * F / temperature for them, so that advantages are about c * F in units of
reward at every temperature.

Slopes are bounded. Without bounds a fit can squeeze all mass out of the replayed
actions within a hundred updates: the value makes up for their log-density, nothing
calls the mass back, and float32 gives out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import networks
from iqmjx.config import Config
from iqmjx.policies import base
from iqmjx.policies.base import DensityPolicy, Temperature

_CONTEXT = 64
"""Width of the observation's context, and of each layer's hidden layer."""
_LAYERS = 4
_STEEPEST = 10.0
"""Largest slope of a spline at its knots, and the inverse of the least. Knots are at
least 1 / _STEEPEST of their even distance apart."""


@struct.dataclass
class Params:
    """The trained parameters."""

    network: Any
    flow: list[Array]  # leaves of flowjax's bijection


@dataclasses.dataclass(frozen=True, eq=False)
class Flow(DensityPolicy):
    """Flow policy; implements `iqmjx.policies.Policy`.

    Its network maps observations to the context.

    Attributes:
        num_bins: n, bins of each spline, and the scale of `entropy_at`.
        advantage_scale: c of the scaled form. None: the logits are F.
        zero_last_layer: start as the identity, a uniform policy.
    """

    num_bins: int
    advantage_scale: float | None
    zero_last_layer: bool

    @classmethod
    def from_config(cls, config: Config, action_size: int) -> Flow:
        """The policy that a config describes.

        Raises:
            ValueError: without flowjax, which is not installed by default.
        """
        try:
            import flowjax  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"--policy {config.policy}: needs flowjax: "
                "pip install -c constraints.txt '.[flow]'"
            ) from error
        return cls(
            network=networks.of_context(config, _CONTEXT),
            action_size=action_size,
            num_bins=config.num_bins,
            advantage_scale=base.advantage_scale(config, action_size),
            zero_last_layer=config.zero_last_layer,
        )

    def init(self, key: PRNGKeyArray, observation_size: int) -> Params:
        network_key, flow_key = jax.random.split(key)
        return Params(
            network=self.network.init(network_key, jnp.zeros(observation_size)),
            flow=jax.tree.leaves(self._partition(flow_key)[0]),
        )

    def log_prob(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        context = self._context(params, obs)
        return self.to_latent(params, context, action, temperature)[1]

    def log_prob_and_entropy(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        action: Float[Array, "*B A"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and an estimate of the entropy: -log pi of an action of its own.

        The estimate passes no gradient on.
        """
        context = self._context(params, obs)
        _, log_prob = self.to_latent(params, context, action, temperature)
        fixed, context = jax.lax.stop_gradient((params, context))
        latent = self.random(key, *obs.shape[:-1])
        _, own = self.from_latent(fixed, context, latent, temperature)
        return log_prob, -own

    def entropy_at(self, share: float) -> float:
        return base.density_entropy_at(share, self.num_bins)

    def sample(
        self,
        params: Params,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Float[Array, "*B A"]:
        latent = self.random(key, *obs.shape[:-1])
        context = self._context(params, obs)
        return self.from_latent(params, context, latent, temperature)[0]

    def mode(
        self, params: Params, obs: Float[Array, "*B O"], temperature: Temperature
    ) -> Float[Array, "*B A"]:
        """The action that the middle of the latent box, u = 0, stands for.

        Not the densest, which has no closed form, and often is a thin spike beside the
        mass.
        """
        context = self._context(params, obs)
        middle = jnp.zeros((*obs.shape[:-1], self.action_size))
        return self.from_latent(params, context, middle, temperature)[0]

    def to_latent(self, params: Params, context, action, temperature: Temperature):
        """U of actions [*B, A], and their log-density [*B]."""
        latent, log_det = self._map(
            "inverse_and_log_det", params, context, action, temperature
        )
        return latent, log_det - self.action_size * math.log(2)

    def from_latent(self, params: Params, context, latent, temperature: Temperature):
        """Actions of u [*B, A], and their log-density [*B]."""
        action, log_det = self._map(
            "transform_and_log_det", params, context, latent, temperature
        )
        return action, -log_det - self.action_size * math.log(2)

    def _context(self, params: Params, obs) -> Float[Array, "*B C"]:
        context: Any = self.network.apply(params.network, obs)
        return context

    def _map(self, direction: str, params: Params, context, points, temperature):
        import equinox as eqx

        trained, rest = self._template
        flow = jax.tree.unflatten(jax.tree.structure(trained), params.flow)
        flow = eqx.combine(flow, rest)
        if self.advantage_scale is not None:
            scale = self.advantage_scale / temperature
            flow = eqx.tree_at(_logits, flow, replace_fn=lambda leaf: leaf * scale)
        apply = getattr(flow, direction)
        batch = points.shape[:-1]
        flat = [leaf.reshape(-1, leaf.shape[-1]) for leaf in (points, context)]
        mapped, log_det = jax.vmap(apply)(*flat)
        return mapped.reshape(points.shape), log_det.reshape(batch)

    @functools.cached_property
    def _template(self) -> tuple[Any, Any]:
        with jax.ensure_compile_time_eval():  # it closes over arrays
            return self._partition(jax.random.key(0))

    def _partition(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Flowjax's bijection from u to actions: what is trained, and the rest."""
        import equinox as eqx
        import paramax
        from flowjax import bijections

        def layer(key):
            even = 2 / (self.num_bins + 1)
            spline = bijections.RationalQuadraticSpline(
                knots=self.num_bins, interval=1, min_width=even / _STEEPEST
            )
            slopes = paramax.Parameterize(
                lambda x: jnp.exp(math.log(_STEEPEST) * jnp.tanh(x)),
                jnp.zeros(self.num_bins + 2),
            )
            spline = eqx.tree_at(lambda spline: spline.derivatives, spline, slopes)
            coupling = bijections.Coupling(
                key,
                transformer=spline,
                untransformed_dim=self.action_size // 2,
                dim=self.action_size,
                cond_dim=_CONTEXT,
                nn_width=_CONTEXT,
                nn_depth=1,
            )
            # The halves change places: every dimension is transformed.
            return bijections.Chain([coupling, bijections.Flip((self.action_size,))])

        layers = eqx.filter_vmap(layer)(jax.random.split(key, _LAYERS))
        bijection = bijections.Invert(bijections.Scan(layers))
        if self.zero_last_layer:
            bijection = eqx.tree_at(_logits, bijection, replace_fn=jnp.zeros_like)
        return eqx.partition(bijection, eqx.is_inexact_array)


def _logits(flow: Any) -> tuple[Array, Array]:
    """Weight and bias of the layers whose outputs are the splines' logits."""
    last = flow.bijection.bijection.bijections[0].conditioner.layers[-1]
    return last.weight, last.bias
