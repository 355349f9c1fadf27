"""Plays a policy in Gymnasium's own environments, on plain MuJoCo."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import imageio
import jax
import mujoco
import numpy as np

from iqmjx import evaluation
from iqmjx.envs import Env, physics, vector
from iqmjx.errors import UsageError
from iqmjx.run.trained_policy import TrainedPolicy

_WIDTH, _HEIGHT = 480, 480
_RENDER = (
    "import mujoco; model = mujoco.MjModel.from_xml_string('<mujoco/>'); "
    "renderer = mujoco.Renderer(model, 8, 8); renderer.render()"
)


def make(task: type[Env], **options: Any) -> gymnasium.Env:
    """Gymnasium's own environment of a task, with options of `gymnasium.make`.

    Raises:
        UsageError: where Gymnasium has none.
    """
    if task.gymnasium_id is None:
        raise UsageError(f"Gymnasium has no environment for {task.__name__}")
    gymnasium.register_envs(importlib.import_module(task.gymnasium_package))
    with physics.quiet_compilation(), warnings.catch_warnings():
        # The version is the task's, whatever others there are.
        warnings.filterwarnings("ignore", message=".*is out of date")
        return gymnasium.make(task.gymnasium_id, **options)


def check_rendering() -> None:
    """Tries to render, in a process of its own: a broken GL may end the process.

    Raises:
        UsageError: where MuJoCo cannot render here.
    """
    tried = subprocess.run([sys.executable, "-c", _RENDER], capture_output=True)
    if tried.returncode:
        raise UsageError(
            "MuJoCo cannot render on this machine; set MUJOCO_GL=egl (with a GPU's "
            "driver or libegl1) or MUJOCO_GL=osmesa (with libosmesa6)"
        )


def play(
    env: gymnasium.Env,
    policy: TrainedPolicy,
    *,
    episodes: int,
    deterministic: bool,
    seed: int,
    video: Path | None = None,
) -> evaluation.Episodes:
    """Plays whole episodes in one of Gymnasium's own environments, and closes it.

    Args:
        env: as `make` returns it.
        policy: what chooses the actions.
        episodes: how many to play, one after another.
        deterministic: act by the policy's mode rather than sample.
        seed: of the first reset and of the sampled actions.
        video: where to write the first episode, as .mp4.
    """
    key = jax.random.key(seed)
    recorder = _Recorder(env, video) if video else None

    def choose(episode: int, obs: np.ndarray) -> np.ndarray:
        nonlocal key
        if recorder and episode == 0:
            recorder.frame()
        key, act_key = jax.random.split(key)
        return policy(obs, None if deterministic else act_key)

    played = play_episodes(env, choose, episodes, seed)
    if recorder:
        recorder.close()
    env.close()
    return played


def play_episodes(
    env: gymnasium.Env,
    choose: Callable[[int, np.ndarray], np.ndarray],
    episodes: int,
    seed: int,
) -> evaluation.Episodes:
    """Plays whole episodes, one after another.

    One whose world leaves the numbers ends there, as in `evaluation.play`.

    Args:
        env: Gymnasium's environment; stays open.
        choose: the action for an episode's number and an observation.
        episodes: how many.
        seed: of the first reset.
    """
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    valid, succeeded = np.ones(episodes, bool), np.zeros(episodes, bool)
    told = False  # whether the task says what success is
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            action = choose(episode, obs)
            with physics.silence:
                obs, reward, terminated, truncated, info = env.step(action)
            lengths[episode] += 1
            told |= "success" in info
            if _has_diverged(env, action, obs, float(reward)):
                valid[episode] = False
                break
            returns[episode] += float(reward)
            succeeded[episode] |= bool(info.get("success", False))
            done = terminated or truncated
    return evaluation.Episodes(returns, lengths, valid, succeeded if told else None)


def _has_diverged(
    env: gymnasium.Env, action: np.ndarray, obs: np.ndarray, reward: float
) -> bool:
    """Whether the world left the numbers in a step; as `vector.has_diverged`.

    MuJoCo's warnings are of the whole episode: a reset forgets them.
    """
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    reach = vector.LARGEST_CONTROL * np.maximum(np.abs(space.low), np.abs(space.high))
    data = getattr(env.unwrapped, "data", None)
    warned = data is not None and data.warning.number[list(physics.BAD_STATE)].any()
    finite = np.isfinite(obs).all() and np.isfinite(reward)
    return bool(warned or not finite or not (np.abs(action) <= reach).all())


class _Recorder:
    """Renders an environment's state to a video with MuJoCo's own renderer."""

    def __init__(self, env: gymnasium.Env, path: Path):
        self._base: Any = env.unwrapped
        path.parent.mkdir(parents=True, exist_ok=True)
        self._renderer = mujoco.Renderer(self._base.model, _HEIGHT, _WIDTH)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        self._camera.trackbodyid = 1
        extent = self._base.model.stat.extent  # metres
        self._camera.distance, self._camera.elevation = min(4.0, extent), -15.0
        self._writer = imageio.get_writer(path, fps=round(1 / self._base.dt))

    def frame(self) -> None:
        """Adds the present state as a frame."""
        self._renderer.update_scene(self._base.data, self._camera)
        self._writer.append_data(self._renderer.render())

    def close(self) -> None:
        """Finishes the file."""
        self._writer.close()
        self._renderer.close()
