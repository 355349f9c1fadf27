"""Plays a trained policy: python -m iqmjx.evaluate --checkpoint RUN --sim gymnasium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from iqmjx import command_line, envs, evaluation, strict_json
from iqmjx.commands import cli, playing
from iqmjx.errors import UsageError
from iqmjx.run import (
    gymnasium_play,
    memory,
    recording,
    saved_policy,
    terminal,
    trained_policy,
    video,
)
from iqmjx.run.saved_policy import SavedPolicy
from iqmjx.settings import LARGEST_INT, refuse

FLAGS = flags.FlagValues()
POSITIONAL = "checkpoint"
_CHECKPOINT = playing.checkpoint_flag(FLAGS)
_SIM = playing.sim_flag(FLAGS)
_EPISODES = command_line.integer(FLAGS, "episodes", 10, "Episodes to play.")
_DETERMINISTIC = playing.deterministic_flag(FLAGS)
_SEED = playing.seed_flag(FLAGS)
_JSON = command_line.json(FLAGS)
_VIDEO = command_line.path(
    FLAGS, "video", None, "Write the first episode to this file, .mp4 or .gif."
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        _check_flags()
        path, saved = playing.load(_CHECKPOINT.value or "", "playing")
        sim, twin = playing.choose_sim(_SIM.value, saved)
        if _VIDEO.value:
            _check_video(saved.config.env)
        if sim == "gymnasium":
            episodes, recorded = _play_in_gymnasium(saved, twin, path)
        else:
            env = playing.on_engine(saved.config.env, sim, _EPISODES.value)
            memory.check_episodes(env, _EPISODES.value)
            sim = env.physics.name
            episodes, recorded = _play_on_engine(saved, env, path)
    report = {
        "env": twin.gymnasium_id if twin else saved.config.env,
        "sim": sim,
        "checkpoint": str(path),
        "env_steps": saved.env_steps,
        "deterministic": _DETERMINISTIC.value,
        "seed": _SEED.value,
        **_scores(episodes),
    }
    if _JSON.value:
        print(strict_json.dumps(report))
    else:
        print(
            f"{report['env']} in {report['sim']}, "
            f"trained for {saved.env_steps:,} env steps: {_said(report)}"
        )
    if _VIDEO.value and recorded is not None:
        with cli.run_errors(), terminal.counting(f"drawing {_VIDEO.value}") as drawn:
            video.write([recorded], Path(_VIDEO.value), video.Format(), drawn=drawn)
        if not _JSON.value:
            print(f"video: {_VIDEO.value}")


def _scores(episodes: evaluation.Episodes) -> dict[str, Any]:
    """What is reported of episodes that were played."""
    valid = np.asarray(episodes.valid)
    returns, lengths = (
        np.asarray(values, np.float64)
        for values in (episodes.returns, episodes.lengths)
    )
    scores = {
        "episodes": len(valid),
        "diverged": int((~valid).sum()),
        "mean": evaluation.over(np.mean, returns[valid]),
        "std": evaluation.over(np.std, returns[valid]),
        "min": evaluation.over(np.min, returns[valid]),
        "max": evaluation.over(np.max, returns[valid]),
        "mean_length": evaluation.over(np.mean, lengths[valid]),
        "returns": [float(value) for value in np.where(valid, returns, np.nan)],
    }
    if episodes.succeeded is not None:
        succeeded = np.asarray(episodes.succeeded)
        scores["success"] = evaluation.over(np.mean, succeeded[valid])
    return scores


def _said(report: dict[str, Any]) -> str:
    """A report's numbers in words."""
    diverged, kept = report["diverged"], report["episodes"] - report["diverged"]
    if not kept:
        return f"all {diverged} episodes diverged"
    success = f", {report['success']:.0%} with success" if "success" in report else ""
    others = f"; {diverged} more diverged" if diverged else ""
    return (
        f"return {report['mean']:.1f} +- {report['std']:.1f} "
        f"(min {report['min']:.1f}, max {report['max']:.1f}) over "
        f"{kept} episodes of {report['mean_length']:.0f} steps{success}{others}"
    )


def _check_flags() -> None:
    if _CHECKPOINT.value is None:
        raise UsageError("--checkpoint: name a run folder")
    for name, value, least in (
        ("episodes", _EPISODES.value, 1),
        ("seed", _SEED.value, 0),
    ):
        if not least <= value <= LARGEST_INT:
            fix = f"give a whole number from {least} to {LARGEST_INT}"
            refuse(name, value, fix)
    if _VIDEO.value is not None:
        video.check_name("video", _VIDEO.value)


def _check_video(name: str) -> None:
    """Raises UsageError where the video of a task could not be made or written."""
    if envs.task_class(name) is None:
        raise UsageError(
            f"--video: {name} brings its own engine, which cannot be drawn"
        )
    video.check("video", Path(_VIDEO.value or ""))


def _play_in_gymnasium(
    saved: SavedPolicy, task, path: Path
) -> tuple[evaluation.Episodes, video.Recording]:
    """The episodes, and the first of them as a video shows it."""
    env = gymnasium_play.make(task, max_episode_steps=saved.config.episode_length)
    recorder = gymnasium_play.Recorder(env, task)
    played = gymnasium_play.play(
        env,
        trained_policy.of(saved),
        episodes=_EPISODES.value,
        deterministic=_DETERMINISTIC.value,
        seed=_SEED.value,
        watch=lambda episode: recorder.keep() if episode == 0 else None,
    )
    first = recorder.episode(_caption(path, saved, played))
    return played, video.Recording(recorder.scene, [first])


def _play_on_engine(
    saved: SavedPolicy, env: envs.Task, path: Path
) -> tuple[evaluation.Episodes, video.Recording | None]:
    """The episodes and, if there is to be a video, the first of them for it."""
    episodes, recorded = _EPISODES.value, bool(_VIDEO.value)
    game = evaluation.Game(env, saved.policy, saved.config.episode_length, recorded)
    greedy = np.full(episodes, _DETERMINISTIC.value)
    keys = jax.random.split(jax.random.key(_SEED.value), episodes)
    play = jax.jit(evaluation.play, static_argnums=0)
    played = jax.device_get(play(game, saved.actor, greedy, keys))
    if not (recorded and isinstance(env, envs.Env)):
        return played, None
    first = recording.of_game(played, _caption(path, saved, played))
    return played, video.Recording(recording.engine_scene(env), [first])


def _caption(path: Path, saved: SavedPolicy, played: evaluation.Episodes) -> str:
    return recording.caption(saved_policy.title(path), saved.env_steps, played)
