"""Bytes/s of a copy and FLOP/s of matrix products: what nothing here can exceed.

A stage's time means little until it is held against what the card could do: an update
against its arithmetic and the bytes of its activations, physics against the bytes of
its forward passes. Both ceilings are measured on the card at hand, since a data sheet's
are not reached; with them go the machine, the driver and the versions.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp

from iqmjx.run import throughput

from . import common
from .scales import Check, Results


def measure(check: Check) -> Results:
    """Yields bytes/s, and FLOP/s precision by precision."""
    scale = check.scale
    array = jax.random.normal(jax.random.key(0), (scale.copy_bytes // 4,))
    seconds = common.seconds(jax.jit(lambda x: x + 1), array, rounds=scale.rounds)
    result: dict[str, Any] = {
        "machine": throughput.machine(),
        "driver": _driver(),
        "copy_bytes_per_second": 2 * scale.copy_bytes / seconds,
    }
    size = scale.matrix
    for name, precision in common.PRECISIONS.items():
        dtype = jnp.bfloat16 if name == "bf16" else jnp.float32
        matrix = jax.random.normal(jax.random.key(1), (size, size), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = common.seconds(product, matrix, matrix, rounds=scale.rounds)
        result[f"{name}_flops_per_second"] = 2 * size**3 / seconds
        yield result


def _driver() -> str | None:
    """NVIDIA's driver version and the card, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
