"""A few frames of what a policy does, as one small picture: a row for each episode.

    MUJOCO_GL=osmesa python launch/frames.py --checkpoint RUN --out door-iq.png

Plays the policy's mode in Gymnasium's own environment, on MuJoCo C, and draws each
episode's start, its end, and frames evenly between. The camera follows the body; over
the Adroit hand's table it stays where it is.
Prints each episode's return, and whether it was a success.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from absl import flags
from PIL import Image

from iqmjx import envs
from iqmjx.commands import cli
from iqmjx.envs.adroit.hand import AdroitHand
from iqmjx.errors import UsageError
from iqmjx.run import gymnasium_play, saved_policy, trained_policy

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "As of iqmjx.evaluate.", flag_values=FLAGS
)
_OUT = flags.DEFINE_string("out", None, "The .png file to write.", flag_values=FLAGS)
_EPISODES = flags.DEFINE_integer(
    "episodes", 2, "Rows.", lower_bound=1, flag_values=FLAGS
)
_FRAMES = flags.DEFINE_integer(
    "frames", 6, "Frames in a row.", lower_bound=2, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the first reset.", lower_bound=0, flag_values=FLAGS
)
_PIXELS = 200  # of a frame's sides
_COLORS = 96  # of the picture: twelve frames take about 100 kB


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        if not (_CHECKPOINT.value and _OUT.value):
            raise UsageError("--checkpoint, --out: give a run and a .png file")
        gymnasium_play.check_rendering()
        with cli.of_flag("checkpoint"):
            saved = saved_policy.load(saved_policy.locate(Path(_CHECKPOINT.value)))
        task = envs.task_class(saved.config.env)
        if task is None:
            raise UsageError(f"--checkpoint: {saved.config.env} is not in Gymnasium")
        env = gymnasium_play.make(task, max_episode_steps=saved.config.episode_length)
    base: Any = env.unwrapped
    policy = trained_policy.of(saved)
    renderer = mujoco.Renderer(base.model, _PIXELS, _PIXELS)
    rows: list[list[np.ndarray]] = [[] for _ in range(_EPISODES.value)]

    def choose(episode: int, obs: np.ndarray) -> np.ndarray:
        renderer.update_scene(base.data, _camera(base, task))
        rows[episode].append(renderer.render().copy())
        return policy(obs)

    played = gymnasium_play.play_episodes(env, choose, len(rows), _SEED.value)
    renderer.close()
    _write(rows, Path(_OUT.value))
    for episode, value in enumerate(played.returns):
        success = played.succeeded is not None and played.succeeded[episode]
        print(f"episode {episode}: return {value:.1f}{', success' if success else ''}")


def _camera(base: Any, task: type[envs.Env]) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    if issubclass(task, AdroitHand):
        camera.azimuth, camera.elevation, camera.distance = 60.0, -40.0, 1.2
        camera.lookat[:] = 0.0, -0.1, 0.2  # about where the hand begins, metres
    else:
        camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
        camera.elevation, camera.distance = -15.0, min(4.0, base.model.stat.extent)
    return camera


def _write(rows: list[list[np.ndarray]], path: Path) -> None:
    """Writes evenly spaced frames of each episode."""
    strips = []
    for row in rows:
        chosen = np.linspace(0, len(row) - 1, _FRAMES.value).round().astype(int)
        strips.append(np.concatenate([row[i] for i in chosen], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.concatenate(strips)).quantize(_COLORS)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
