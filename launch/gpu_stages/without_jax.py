"""MuJoCo Warp alone: what the `warp` engine would do if JAX and MJX cost nothing.

The same worlds under the same controls, with the same number of substeps and contact
forces after the last alone; without resets, observations and rewards. What the engine
takes longer than this is the most that a leaner crossing from JAX could bring.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from iqmjx.envs import Env
from iqmjx.envs.physics import PhysicsState


def without_jax(
    env: Env, worlds: PhysicsState, controls: jax.Array
) -> Callable[[], np.ndarray]:
    """A call that steps worlds [N, ...] under controls [T, N, A].

    On a GPU a control step is one CUDA graph, launched T times. The call returns qpos
    [N, nq], with which the engine's must agree.
    """
    import warp
    from mujoco.mjx.third_party import mujoco_warp

    count = controls.shape[1]
    on_gpu = jax.default_backend() == "gpu"
    warp.set_device("cuda:0" if on_gpu else "cpu")
    model = mujoco_warp.put_model(env.physics.model)
    data = mujoco_warp.make_data(
        env.physics.model,
        nworld=count,
        naconmax=env.contacts_per_world * count,
        njmax=env.constraints_per_world,
    )
    ctrls = [warp.array(np.asarray(env.ctrl(row)), dtype=float) for row in controls]
    begin = [
        (data.qpos, warp.array(np.asarray(worlds.qpos), dtype=float)),
        (data.qvel, warp.array(np.asarray(worlds.qvel), dtype=float)),
        (data.qacc_warmstart, warp.zeros_like(data.qacc_warmstart)),
    ]

    def control_step():
        for substep in range(env.frame_skip):
            last = substep == env.frame_skip - 1
            model.opt.run_rne_postconstraint = last and "cfrc_ext" in env.fields
            mujoco_warp.step(model, data)

    step = control_step
    if on_gpu:
        control_step()  # loads its kernels
        warp.capture_begin()
        control_step()
        step = functools.partial(warp.capture_launch, warp.capture_end())

    def call():
        for array, value in begin:
            warp.copy(array, value)
        for ctrl in ctrls:
            warp.copy(data.ctrl, ctrl)
            step()
        return data.qpos.numpy()  # waits for it

    return call
