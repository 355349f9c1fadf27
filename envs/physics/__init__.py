"""Physics engines behind one functional seam.

An engine is built once from a MuJoCo model and then offers two pure functions of one
world, which callers batch with `jax.vmap`:

- `init(qpos, qvel, model_fields)` places a world and computes its derived fields;
- `step(state, ctrl)` advances it by one control step of `frame_skip` substeps.

Whatever an engine needs to go on exactly is in `PhysicsState`; there is no state hidden
in engine objects. Every leaf of it belongs to one world, so `jnp.where` over the whole
state is always safe (an auto-reset is one `where`).
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import mujoco
from flax import struct
from jaxtyping import Array, Float, Int

from iqmjx.envs.physics._log import silence
from iqmjx.errors import UsageError

ENGINES = ("native", "mjx", "warp")


@struct.dataclass
class PhysicsState:
    """One world (or, under `jax.vmap`, a batch of worlds).

    `fields` are derived quantities as MuJoCo leaves them after a step: those of the
    last substep, one integration behind `qpos` (as Gymnasium's environments read them).
    """

    qpos: Float[Array, "*N nq"]
    qvel: Float[Array, "*N nv"]
    fields: dict[str, Float[Array, " ..."]]  # requested derived fields, by MjData name
    model_fields: dict[str, Float[Array, " ..."]]  # the world's own, by MjModel name
    faults: Int[Array, "*N"]  # OR of FAULT_* bits of the last control step
    carry: Any  # the engine's own: all else it needs to continue exactly


FAULT_CONSTRAINTS = 1
"""More constraint rows than the engine had room for: some were dropped."""
FAULT_CONTACTS = 2
"""More contacts (or candidate pairs) than the engine had room for."""
FAULT_STATE = 4
"""The state diverged, and nothing of it or of the step's reward is to be used.

MuJoCo C says so of positions, speeds and accelerations that are not finite or beyond
1e10, at which it puts the world back to the model's defaults and goes on from there,
and of controls, which it takes for 0. Tasks say so by bounds of their own
(`iqmjx.envs.base.Env`).
"""


BAD_STATE = tuple(
    int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}"))
    for what in ("QPOS", "QVEL", "QACC", "CTRL")
)
"""Numbers of MuJoCo's warnings that are a `FAULT_STATE`."""


class Physics(Protocol):
    """What an engine offers (see the module's docstring)."""

    name: str
    model: mujoco.MjModel

    def init(
        self,
        qpos: Float[Array, " nq"],
        qvel: Float[Array, " nv"],
        model_fields: dict[str, jax.Array] | None = None,
    ) -> PhysicsState:
        """Places one world at rest in time, `mj_forward` done, warm start zero.

        `cfrc_ext` is zero until the first step, as in MuJoCo, whose `mj_forward` does
        not compute it.
        """
        ...

    def step(self, state: PhysicsState, ctrl: Float[Array, " nu"]) -> PhysicsState:
        """Advances one world by `frame_skip` substeps under a constant control."""
        ...

    def scratch_bytes(self, num_worlds: int) -> int:
        """Memory that stepping so many worlds takes besides their states."""
        ...


def resolve(engine: str) -> str:
    """Returns the engine for `auto`: native on CPU, warp on CUDA, mjx elsewhere.

    Raises:
        UsageError: for an unknown engine, or one that the platform cannot run.
    """
    platform = jax.default_backend()
    if engine == "auto":
        return {"cpu": "native", "gpu": "warp"}.get(platform, "mjx")
    if engine not in ENGINES:
        raise UsageError(
            f"unknown engine; choose one of {', '.join(('auto', *ENGINES))}"
        )
    if engine == "warp" and platform not in ("cpu", "gpu"):
        raise UsageError(
            f"warp runs on NVIDIA GPUs and on CPUs, and this program on {platform}: "
            "use mjx"
        )
    return engine


@contextlib.contextmanager
def quiet_compilation() -> Iterator[None]:
    """Compiles models without the notice about an attribute in Gymnasium's files.

    MuJoCo says it twice: through Python's warnings, and through its own log.
    """
    with silence, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*settotalmass.*")
        yield


def make(
    engine: str,
    spec: mujoco.MjSpec,
    *,
    frame_skip: int,
    fields: Sequence[str] = (),
    model_fields: Sequence[str] = (),
    num_worlds: int = 1,
    contacts_per_world: int = 16,
    constraints_per_world: int = 64,
) -> Physics:
    """Builds an engine.

    Args:
        engine: `auto`, `native`, `mjx` or `warp`.
        spec: the model; engines may add what they need before they compile it.
        frame_skip: physics substeps per control step.
        fields: names of MjData arrays to read back after each step.
        model_fields: names of MjModel arrays that differ from world to world.
        num_worlds: how many worlds one vmapped call steps (sizes shared buffers).
        contacts_per_world: room for contacts, averaged over the worlds.
        constraints_per_world: room for constraint rows in any one world.

    Raises:
        UsageError: as `resolve`.
    """
    module = importlib.import_module(f"iqmjx.envs.physics.{resolve(engine)}")
    return module.Engine(
        spec,
        frame_skip=frame_skip,
        fields=tuple(fields),
        model_fields=tuple(model_fields),
        num_worlds=num_worlds,
        contacts_per_world=contacts_per_world,
        constraints_per_world=constraints_per_world,
    )
