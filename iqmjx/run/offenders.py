"""Worlds that diverged in training, as they were before the step that did it.

    RUN/diverged/<env_steps>.npz

A file holds the first world of a chunk (or warm-up) that did, of a task that is an
`Env`: `qpos`, `qvel`, `control`, and what of the model is the world's own, by MjModel
name. `docs/diverged.md` shows how to look at one.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import mujoco
import numpy as np

from iqmjx import envs
from iqmjx.envs.vector import Offender
from iqmjx.errors import UsageError
from iqmjx.run import run_folder

FOLDER = "diverged"
_MOST = 5
"""Files in a folder; what comes later is counted alone."""
_OF_STATE = ("qpos", "qvel", "control")


def write(folder: Path, env_steps: int, offender: Offender | None) -> Path | None:
    """Writes the first offender that there is, unless there are enough files.

    Args:
        folder: the seed's.
        env_steps: at the end of the chunk.
        offender: the seed's, by shard [G, ...], on the host.

    Returns:
        The file; None where none was written.
    """
    if offender is None or not offender.found.any():
        return None
    here = folder / FOLDER
    if len(list(here.glob("*.npz"))) >= _MOST:
        return None
    here.mkdir(exist_ok=True)
    shard = int(np.argmax(offender.found))
    arrays = {name: getattr(offender, name)[shard] for name in _OF_STATE}
    arrays |= {name: value[shard] for name, value in offender.model_fields.items()}
    path = here / f"{env_steps}.npz"
    np.savez(path, **arrays)
    return path


def load(path: Path) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The world of a file in a run's folder, in MuJoCo, its control in `data.ctrl`.

    MuJoCo will step it as it is: it does not set bad states back here.

    Raises:
        UsageError: where the folder around it is not that of a run, or not of a task
            that is an `Env`.
    """
    name = run_folder.load(path.parent.parent).config.env
    task = envs.task_class(name)
    if task is None:
        raise UsageError(f"{path}: {name} brings its own engine")
    env = task("native")
    model = env.physics.model
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    with np.load(path) as arrays:
        data = mujoco.MjData(model)
        data.qpos, data.qvel = arrays["qpos"], arrays["qvel"]
        data.ctrl = np.asarray(env.ctrl(jnp.asarray(arrays["control"])))
        for name in set(arrays.files).difference(_OF_STATE):
            getattr(model, name)[:] = arrays[name]
    return model, data
