"""What `numpy_policy` reads of a policy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iqmjx import normalize
from iqmjx.errors import UsageError
from iqmjx.networks import MLP
from iqmjx.policies.autoregressive import Autoregressive
from iqmjx.policies.conditionals import Params
from iqmjx.policies.flow import Flow
from iqmjx.policies.gaussian import Gaussian
from iqmjx.policies.multicategorical import Multicategorical
from iqmjx.policies.tanh_gaussian import TanhGaussian
from iqmjx.run.trained_policy import TrainedPolicy

_KINDS: dict[type, str] = {
    Multicategorical: "multicategorical",
    Autoregressive: "autoregressive",
    Gaussian: "gaussian",
    Flow: "flow",
    TanhGaussian: "tanh_gaussian",
}


def of(policy: TrainedPolicy) -> dict[str, np.ndarray]:
    """The arrays that `numpy_policy.act` takes, by name.

    Raises:
        UsageError: for a policy class that it does not know.
    """
    kind = type(policy.saved.policy)
    if kind not in _KINDS:
        raise UsageError(
            f"{kind.__name__} is a class from elsewhere, which only JAX can compute; "
            f"give --format stablehlo"
        )
    acts: Any = policy.saved.policy
    actor = jax.tree.map(np.asarray, policy.saved.actor)
    arrays: dict[str, Any] = {"kind": _KINDS[kind]}
    arrays |= {"action_center": policy.center, "action_scale": policy.scale}
    arrays |= _of_observations(policy)
    if isinstance(acts, Autoregressive | Flow):
        arrays |= _of_layers(acts.network.network, actor.params.network)
        arrays |= _of_conditionals(actor.params)
    else:
        arrays |= _of_layers(acts.network, actor.params)
    if isinstance(acts, Gaussian | TanhGaussian):
        last = arrays["num_layers"] - 1  # of its outputs, the means are first
        for name in (f"kernel_{last}", f"bias_{last}"):
            arrays[name] = arrays[name][..., : acts.action_size]
    else:
        # Compiled, as in play: the policy's points to the last bit.
        points = jax.jit(lambda: jnp.linspace(-1.0, 1.0, acts.num_bins))
        arrays["points"] = np.asarray(points())
    if isinstance(acts, Flow) and acts.advantage_scale is not None:
        scale = acts.advantage_scale / actor.temperature
        arrays |= {name: arrays[name] * scale for name in ("weight", "bias")}
    return {name: np.asarray(array) for name, array in arrays.items()}


def _of_observations(policy: TrainedPolicy) -> dict[str, Any]:
    """How observations are normalized; by statistics that change nothing, if not."""
    size, statistics = policy.observation_size, policy.saved.actor.normalizer
    if statistics is None:
        mean, scale, clip = np.zeros(size), np.ones(size), np.inf
    else:
        mean, clip = statistics.mean, normalize.CLIP
        scale = 1 / np.sqrt(statistics.variance + normalize.VARIANCE_FLOOR)
    return {
        "obs_mean": np.asarray(mean, np.float32),
        "obs_scale": np.asarray(scale, np.float32),
        "obs_limit": np.float32(clip),
    }


def _of_layers(network: MLP, params: Any) -> dict[str, Any]:
    layers = params["params"]
    count = len(network.hidden_sizes) + 1
    rounds = network.compute_dtype == "bfloat16"
    arrays: dict[str, Any] = {
        "num_layers": count,
        "layer_norm": network.layer_norm,
        "spread": np.float32(2**16 + 1 if rounds else 1),
    }
    for index in range(count):
        dense = layers[f"Dense_{index}"]
        kernel = jnp.asarray(dense["kernel"], network.compute_dtype)
        arrays[f"kernel_{index}"] = np.asarray(kernel, np.float32)
        arrays[f"bias_{index}"] = dense["bias"]
    return arrays


def _of_conditionals(params: Params) -> dict[str, Any]:
    return {name: getattr(params, name) for name in ("embedding", "weight", "bias")}
