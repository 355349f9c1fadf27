"""Plays a trained policy: python -m iqmjx.evaluate --checkpoint RUN --sim gymnasium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from iqmjx import command_line, envs, evaluation, strict_json
from iqmjx.commands import cli
from iqmjx.envs import physics as engines
from iqmjx.errors import UsageError
from iqmjx.run import gymnasium_play, memory, saved_policy, trained_policy
from iqmjx.run.saved_policy import SavedPolicy
from iqmjx.settings import LARGEST_INT, refuse

FLAGS = flags.FlagValues()
POSITIONAL = "checkpoint"
_CHECKPOINT = command_line.path(
    FLAGS,
    "checkpoint",
    None,
    "A run folder, its policy/ or best/, or one step in them.",
)
_SIM = flags.DEFINE_enum(
    "sim",
    None,
    ["gymnasium", "auto", *engines.ENGINES],
    "Where to play: Gymnasium's own environment (the default where there is one) or an "
    "engine (else the run's).",
    flag_values=FLAGS,
)
_EPISODES = command_line.integer(FLAGS, "episodes", 10, "Episodes to play.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    True,
    "Act by the policy's mode; --nodeterministic samples.",
    flag_values=FLAGS,
)
_SEED = command_line.integer(FLAGS, "seed", 0, "Seed of resets and of sampled actions.")
_JSON = command_line.json(FLAGS)
_VIDEO = command_line.path(
    FLAGS, "video", None, "Write the first episode to this .mp4 file (--sim gymnasium)."
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        _check_flags()
        with cli.of_flag("checkpoint"):
            path = saved_policy.locate(Path(_CHECKPOINT.value or ""))
            saved = saved_policy.load(path)
        for problem in saved.unreadable:
            print(f"warning: {problem}; playing an older one", file=sys.stderr)
        twin = _twin(saved.config.env)
        if _VIDEO.value:
            _check_video(Path(_VIDEO.value))
        sim = _SIM.value or ("gymnasium" if twin else saved.config.physics)
        if sim == "gymnasium":
            episodes = _play_in_gymnasium(saved, twin)
        else:
            env = _on_engine(saved.config.env, sim)
            memory.check_episodes(env, _EPISODES.value)
            sim, episodes = env.physics.name, _play_on_engine(saved, env)
    valid = np.asarray(episodes.valid)
    returns, lengths = (
        np.asarray(values, np.float64)
        for values in (episodes.returns, episodes.lengths)
    )
    report = {
        "env": twin.gymnasium_id if twin else saved.config.env,
        "sim": sim,
        "checkpoint": str(path),
        "env_steps": saved.env_steps,
        "deterministic": _DETERMINISTIC.value,
        "seed": _SEED.value,
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
        report["success"] = evaluation.over(np.mean, succeeded[valid])
    if _JSON.value:
        print(strict_json.dumps(report))
        return
    print(
        f"{report['env']} in {report['sim']}, "
        f"trained for {saved.env_steps:,} env steps: {_said(report)}"
    )
    if _VIDEO.value:
        print(f"video: {_VIDEO.value}")


def _said(report: dict[str, Any]) -> str:
    """A report's numbers in words."""
    diverged, kept = report["diverged"], report["episodes"] - report["diverged"]
    if not kept:
        return f"all {diverged} episodes left the numbers"
    success = f", {report['success']:.0%} with success" if "success" in report else ""
    others = f"; {diverged} more left the numbers" if diverged else ""
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
    if _VIDEO.value and _SIM.value not in (None, "gymnasium"):
        raise UsageError(
            f"--video: --sim {_SIM.value} plays all episodes at once; record with "
            f"--sim gymnasium"
        )
    if _VIDEO.value is not None and not _VIDEO.value.endswith(".mp4"):
        refuse("video", _VIDEO.value, "give a file name ending in .mp4")


def _check_video(path: Path) -> None:
    """Raises UsageError where the video could not be made or written."""
    try:
        gymnasium_play.check_rendering()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--video {path}: {reason}") from error


def _twin(name: str) -> type[envs.Env] | None:
    """The class of a task that Gymnasium has as well.

    Raises:
        UsageError: where it has not, and a flag asks for it.
    """
    task = envs.task_class(name)
    if task is not None and task.gymnasium_id is not None:
        return task
    if _VIDEO.value or _SIM.value == "gymnasium":
        flag = "--sim gymnasium" if _SIM.value else "--video"
        raise UsageError(f"{flag}: Gymnasium has no environment for {name}")
    return None


def _on_engine(name: str, engine: str) -> envs.Task:
    try:
        return envs.make(name, engine, _EPISODES.value)
    except UsageError as error:
        raise UsageError(f"--sim {engine}: {error}") from error


def _play_in_gymnasium(saved: SavedPolicy, task) -> evaluation.Episodes:
    env = gymnasium_play.make(task, max_episode_steps=saved.config.episode_length)
    return gymnasium_play.play(
        env,
        trained_policy.of(saved),
        episodes=_EPISODES.value,
        deterministic=_DETERMINISTIC.value,
        seed=_SEED.value,
        video=Path(_VIDEO.value) if _VIDEO.value else None,
    )


def _play_on_engine(saved: SavedPolicy, env: envs.Task) -> evaluation.Episodes:
    episodes = _EPISODES.value
    game = evaluation.Game(env, saved.policy, saved.config.episode_length)
    greedy = np.full(episodes, _DETERMINISTIC.value)
    keys = jax.random.split(jax.random.key(_SEED.value), episodes)
    return jax.jit(evaluation.play, static_argnums=0)(game, saved.actor, greedy, keys)
