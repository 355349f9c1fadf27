"""Episodes of the evaluations as `video` draws them, and what is said under one."""

from __future__ import annotations

import numpy as np

from iqmjx.envs import Env
from iqmjx.evaluation import Episodes
from iqmjx.run import video


def engine_scene(env: Env) -> video.Scene:
    """What is drawn of a task on one of our engines."""
    return video.Scene(env.physics.model, env.camera, env.dt)


def of_game(episodes: Episodes, caption: str) -> video.Episode:
    """The first of the episodes [M] of a recorded `evaluation.Game`, on the host."""
    track = episodes.track
    assert track is not None
    length = int(np.asarray(episodes.lengths)[0])
    positions = np.asarray(track.positions)[0, :length]
    fields = {name: np.asarray(value)[0] for name, value in track.model_fields.items()}
    return video.Episode(positions, fields, caption)


def caption(name: str, env_steps: int, episodes: Episodes) -> str:
    """What is said under the first of some episodes, in one line.

    Args:
        name: of the policy.
        env_steps: how long it was trained.
        episodes: on the host.
    """
    score = f"return {float(np.asarray(episodes.returns)[0]):,.1f}"
    if episodes.succeeded is not None and np.asarray(episodes.succeeded)[0]:
        score += ", success"
    if not np.asarray(episodes.valid)[0]:
        score = "diverged"
    return f"{name}: {score} after {env_steps:,} env steps"
