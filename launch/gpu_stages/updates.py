"""Updates per second: by batch, and at the preset's batch the levers one by one.

A sample costs less in a larger batch until the card is busy: the first rows say where
that is. The others say what could make an update cheaper: matrix products in other
precisions, activations in bfloat16 (half the bytes), the optimizer over one flat vector
of parameters (fewer kernels), and the loop as one CUDA graph (fewer launches). Batches
lie ready on the device; what sampling them costs is the `replay` stage's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from iqmjx.run import throughput

from . import common
from .scales import Check, Results


@dataclasses.dataclass(frozen=True)
class Variant:
    """How updates are compiled."""

    precision: str  # of matrix products, a name in common.PRECISIONS
    half: bool = False  # networks and their activations in bfloat16
    flat: bool = False  # the optimizer sees one vector of all parameters
    graph: bool = False  # the loop of updates as one CUDA graph


_LEVERS = [
    Variant("fp32"),
    Variant("bf16"),
    Variant("bf16", half=True),
    Variant("tf32", flat=True),
]
_GPU_LEVERS = [
    Variant("tf32", graph=True),
    Variant("tf32", flat=True, graph=True),
    Variant("bf16", half=True, flat=True, graph=True),
]
_COMMAND_BUFFERS = {
    "xla_gpu_enable_command_buffer": "+WHILE",
    "xla_gpu_graph_min_graph_size": 1,
}


def measure(check: Check) -> Results:
    """Yields a row for each batch, then for each lever."""
    preset = common.config(check).batch_size
    on_gpu = jax.default_backend() == "gpu"
    levers = _LEVERS + (_GPU_LEVERS if on_gpu else [])
    cases = [(batch, Variant("tf32")) for batch in check.scale.batches]
    cases += [(preset, lever) for lever in levers]
    rows = []
    for batch, variant in cases:
        rate = check.scale.updates / _seconds(check, batch, variant)
        rows.append(
            {"batch": batch}
            | dataclasses.asdict(variant)
            | {"updates_per_second": rate, "samples_per_second": rate * batch}
        )
        yield {"rates": rows}


def _seconds(check: Check, batch: int, variant: Variant) -> float:
    """Time of `scale.updates` updates in one call."""
    setup = common.setup(
        check,
        physics="native",  # no world is stepped
        batch_size=batch,
        grad_updates_per_step=check.scale.updates,
        chunk_steps=1,
    )
    if variant.half:
        setup = common.with_networks(setup, _Half)
    if variant.flat:
        setup = common.with_optimizer(setup, optax.flatten)
    state = common.begin(setup)
    options = _COMMAND_BUFFERS if variant.graph else None
    with jax.default_matmul_precision(common.PRECISIONS[variant.precision]):
        call = throughput.updating(setup, state, options)
        return common.seconds(call, rounds=check.scale.rounds)


@dataclasses.dataclass(frozen=True)
class _Half:
    """A network that computes in bfloat16; its parameters and outputs are float32."""

    network: Any

    def init(self, key: jax.Array, x: jax.Array) -> Any:
        return self.network.init(key, x)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
        return self.network.apply(params, x).astype(jnp.float32)
