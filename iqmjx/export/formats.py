"""The formats of an exported policy: raw observations [B, O] in, actions [B, A] out.

To add one, write a class that is a `Format`, with a line in FORMATS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax import export as jax_export

from iqmjx import registry
from iqmjx.export import arrays, numpy_policy
from iqmjx.run.trained_policy import TrainedPolicy

Acting = Callable[[np.ndarray], Any]
"""Maps raw observations [B, O], float32, to actions [B, A] in the task's own units."""
_PLATFORMS = ("cpu", "cuda", "tpu")


class Format(Protocol):
    """How a policy is written, and read as someone without iqmjx would."""

    @property
    def suffix(self) -> str:
        """The end of the file's name."""
        ...

    def write(self, policy: TrainedPolicy, path: Path) -> None:
        """Writes the file, and what belongs beside it.

        Raises:
            UsageError: where the policy cannot be written so, or a package is missing.
        """
        ...

    def read(self, path: Path) -> Acting:
        """The policy in a file."""
        ...


class Onnx:
    """ONNX, for onnxruntime and others: `numpy_policy` as ndonnx traces it."""

    suffix = ".onnx"

    def write(self, policy: TrainedPolicy, path: Path) -> None:
        numbers = arrays.of(policy)
        ndonnx, onnx = _extra("ndonnx"), _extra("onnx")
        shape = "B", policy.observation_size
        obs = ndonnx.argument(shape=shape, dtype=ndonnx.float32)
        action = numpy_policy.act(numbers, obs, _Traced())
        model = ndonnx.build({"obs": obs}, {"action": action})
        rows, columns = model.graph.output[0].type.tensor_type.shape.dim
        rows.dim_param, columns.dim_value = "B", policy.action_size
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def read(self, path: Path) -> Acting:
        session = _extra("onnxruntime").InferenceSession(path)
        return lambda obs: session.run(None, {"obs": obs})[0]


class _Traced:
    """ndonnx, but for two functions that are one node in ONNX and many in ndonnx."""

    def __init__(self):
        self._functions = _extra("ndonnx")
        self._nodes = _extra("spox.opset.ai.onnx.v21")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)

    def matmul(self, x: Any, weights: np.ndarray) -> Any:
        nodes = self._nodes
        product = nodes.matmul(x.unwrap_spox(), nodes.const(weights))
        return self._functions.asarray(product)

    def mean(self, x: Any, axis: int, keepdims: bool) -> Any:
        axes = self._nodes.const(np.array([axis]))
        mean = self._nodes.reduce_mean(x.unwrap_spox(), axes, keepdims=int(keepdims))
        return self._functions.asarray(mean)


class StableHlo:
    """StableHLO, as jax.export serializes it, for CPUs, NVIDIA GPUs and TPUs."""

    suffix = ".stablehlo"

    def write(self, policy: TrainedPolicy, path: Path) -> None:
        (rows,) = jax_export.symbolic_shape("B")
        obs = jax.ShapeDtypeStruct((rows, policy.observation_size), np.float32)
        export = jax_export.export(jax.jit(policy.act), platforms=_PLATFORMS)
        path.write_bytes(export(obs).serialize())

    def read(self, path: Path) -> Acting:
        return jax_export.deserialize(bytearray(path.read_bytes())).call


class NumPy:
    """Arrays, and beside them `numpy_policy.py`, which computes with NumPy alone."""

    suffix = ".npz"

    def write(self, policy: TrainedPolicy, path: Path) -> None:
        np.savez(path, allow_pickle=False, **arrays.of(policy))
        shutil.copy(numpy_policy.__file__, path.parent)

    def read(self, path: Path) -> Acting:
        return numpy_policy.load(path)


FORMATS: dict[str, Format] = {
    "onnx": Onnx(),
    "stablehlo": StableHlo(),
    "numpy": NumPy(),
}
"""By the name that --format takes."""


def _extra(name: str) -> Any:
    """A module of the extra `export`, as `registry.package`."""
    return registry.package(name, "iqmjx[export]")
