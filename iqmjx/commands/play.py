"""Shows what trained policies do: in MuJoCo's viewer, or as a video."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from iqmjx import command_line, envs
from iqmjx.commands import cli, playing
from iqmjx.errors import UsageError
from iqmjx.run import saved_policy, terminal, video
from iqmjx.run.stage import InGymnasium, OnEngine, Stage
from iqmjx.settings import LARGEST_INT, refuse

FLAGS = flags.FlagValues()
POSITIONAL = "checkpoint"
_CHECKPOINT = flags.DEFINE_list(
    "checkpoint",
    None,
    "One or several, A,B,C: run folders, their policy/ or best/, or steps in them.",
    flag_values=FLAGS,
)
_VIDEO = command_line.path(
    FLAGS,
    "video",
    None,
    "Write a video to this file, .mp4 or .gif, all checkpoints side by side, and open "
    "no viewer. Where there is no display: play.mp4.",
)
_EPISODES = command_line.integer(
    FLAGS,
    "episodes",
    None,
    "Episodes of each checkpoint (default: 1 in a video; in the viewer, until its "
    "window is closed).",
)
_SECONDS = flags.DEFINE_float(
    "seconds",
    None,
    "Seconds of each checkpoint, in simulated time, in place of --episodes.",
    flag_values=FLAGS,
)
_SEED = playing.seed_flag(FLAGS)
_DETERMINISTIC = playing.deterministic_flag(FLAGS)
_SIM = playing.sim_flag(FLAGS)
_WIDTH = command_line.integer(
    FLAGS,
    "width",
    video.Format().width,
    "Of the video, for each checkpoint, pixels; an even number.",
)
_HEIGHT = command_line.integer(
    FLAGS,
    "height",
    video.Format().height,
    "Of the video, pixels; an even number.",
)
_FPS = flags.DEFINE_float(
    "fps",
    video.Format().fps,
    "Of the video, frames per second of simulated time.",
    flag_values=FLAGS,
)
_DEFAULT_VIDEO = "play.mp4"
_SIDES, _RATES = (64, 4096), (1, 240)
_LONGEST = 3600.0  # seconds


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        _check_flags()
        path = _video_path()
        stages = [_stage(name) for name in _CHECKPOINT.value or []]
        if path is not None:
            video.check("video", path)
    if path is None:
        for stage in stages:
            _watch(stage)
    else:
        _record(stages, path)
    sys.exit(0)


def _check_flags() -> None:
    if not _CHECKPOINT.value:
        raise UsageError("--checkpoint: name a run folder")
    if "" in _CHECKPOINT.value:
        refuse("checkpoint", "", "name a run folder before and after each comma")
    if _EPISODES.value is not None and _SECONDS.value is not None:
        raise UsageError("--episodes, --seconds: give one of them")
    if _SECONDS.value is not None and not 0 < _SECONDS.value <= _LONGEST:
        fix = f"give a number above 0 and of at most {_LONGEST:g}"
        refuse("seconds", _SECONDS.value, fix)
    for name, value, least, most in (
        ("episodes", 1 if _EPISODES.value is None else _EPISODES.value, 1, LARGEST_INT),
        ("seed", _SEED.value, 0, LARGEST_INT),
        ("width", _WIDTH.value, *_SIDES),
        ("height", _HEIGHT.value, *_SIDES),
    ):
        if not least <= value <= most:
            refuse(name, value, f"give a whole number from {least} to {most}")
    for name, value in (("width", _WIDTH.value), ("height", _HEIGHT.value)):
        if value % 2:
            refuse(name, value, f"give an even number, such as {value + 1}")
    if not _RATES[0] <= _FPS.value <= _RATES[1]:
        refuse("fps", _FPS.value, f"give a number from {_RATES[0]} to {_RATES[1]}")
    if _VIDEO.value is not None:
        video.check_name("video", _VIDEO.value)


def _video_path() -> Path | None:
    """Where the video goes; None where the viewer can be opened, and is wanted."""
    if _VIDEO.value is not None:
        return Path(_VIDEO.value)
    if video.has_display() and video.renders("glfw"):
        return None
    print(f"there is no display: writing {_DEFAULT_VIDEO}", file=sys.stderr)
    return Path(_DEFAULT_VIDEO)


def _stage(given: str) -> Stage:
    """Where the policy of a path that was given is played.

    Raises:
        UsageError: where there is none, or --sim or MuJoCo cannot play its task.
    """
    path, saved = playing.load(given, "playing")
    name = saved_policy.title(path)
    choices = {"deterministic": _DETERMINISTIC.value, "seed": _SEED.value}
    sim, twin = playing.choose_sim(_SIM.value, saved)
    if twin is not None and sim == "gymnasium":
        return InGymnasium(name, saved, twin, **choices)
    task = playing.on_engine(saved.config.env, sim, 1)
    if not isinstance(task, envs.Env):
        raise UsageError(f"--checkpoint {given}: MuJoCo cannot show {saved.config.env}")
    return OnEngine(name, saved, task, **choices)


class _ClosedError(Exception):
    """The viewer's window was closed, or has shown what it was to show."""


def _watch(stage: Stage) -> None:
    """Plays in MuJoCo's viewer, in real time."""
    dt = stage.scene.dt
    left = math.inf if _SECONDS.value is None else round(_SECONDS.value / dt)
    with _window(stage) as window, contextlib.suppress(_ClosedError):
        due = time.monotonic()

        def show() -> None:
            nonlocal left, due
            if left <= 0 or not window.is_running():
                raise _ClosedError
            window.sync()
            left, due = left - 1, max(due + dt, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))

        for episode in itertools.islice(stage.episodes(show), _EPISODES.value):
            print(episode.caption)


@contextlib.contextmanager
def _window(stage: Stage) -> Iterator[Any]:
    """MuJoCo's viewer, on what a stage plays.

    It draws in a thread, which must have ended before another window is opened, or the
    process ends: GLFW crashes otherwise.
    """
    from mujoco import viewer  # which needs GLFW

    model, camera, _ = stage.scene
    before = threading.enumerate()
    try:
        window = viewer.launch_passive(
            model, stage.data, show_left_ui=False, show_right_ui=False
        )
    except RuntimeError as error:  # on macOS it must be run by mjpython
        cli.fail(f"the viewer cannot be opened: {error}; or give --video play.mp4")
    drawing = [each for each in threading.enumerate() if each not in before]
    with window:
        with window.lock():
            video.look_through(window.cam, model, camera)
        yield window
    for thread in drawing:
        thread.join()


def _record(stages: list[Stage], path: Path) -> None:
    """Plays, and writes a video."""
    recordings = [_recorded(stage) for stage in stages]
    form = video.Format(_WIDTH.value, _HEIGHT.value, _FPS.value)
    with cli.run_errors(), terminal.counting(f"drawing {path}") as drawn:
        video.write(recordings, path, form, drawn=drawn)
    print(f"video: {path}")


def _recorded(stage: Stage) -> video.Recording:
    """The episodes, or seconds, that were asked for."""
    seconds = _SECONDS.value
    recorded = video.Recording(stage.scene, [])
    for episode in stage.episodes():
        print(episode.caption)
        recorded = video.Recording(stage.scene, [*recorded.episodes, episode])
        if seconds is not None and recorded.seconds >= seconds:
            return recorded.cut(seconds)
        if seconds is None and len(recorded.episodes) == (_EPISODES.value or 1):
            return recorded
    raise AssertionError
