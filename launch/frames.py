"""A few frames of what a policy does, as one small picture: a row for each episode.

    python launch/frames.py --checkpoint RUN --out door-iq.png

Plays the policy's mode in Gymnasium's own environment, on MuJoCo C, and draws each
episode's start, its end, and frames evenly between. The camera follows the body; over
the Adroit hand's table it stays where it is.
Prints each episode's return, and whether it was a success.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.run import gymnasium_play, saved_policy, trained_policy, video

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
        video.backend()
        with cli.of_flag("checkpoint"):
            saved = saved_policy.load(saved_policy.locate(Path(_CHECKPOINT.value)))
        task = gymnasium_play.twin(saved.config.env)
        if task is None:
            raise UsageError(f"--checkpoint: {saved.config.env} is not in Gymnasium")
        env = gymnasium_play.make(task, max_episode_steps=saved.config.episode_length)
    recorders = [gymnasium_play.Recorder(env, task) for _ in range(_EPISODES.value)]
    played = gymnasium_play.play(
        env,
        trained_policy.of(saved),
        episodes=len(recorders),
        deterministic=True,
        seed=_SEED.value,
        watch=lambda episode: recorders[episode].keep(),
    )
    _write([_chosen(recorder) for recorder in recorders], Path(_OUT.value))
    for episode, value in enumerate(played.returns):
        success = played.succeeded is not None and played.succeeded[episode]
        print(f"episode {episode}: return {value:.1f}{', success' if success else ''}")


def _chosen(recorder: gymnasium_play.Recorder) -> video.Recording:
    """Evenly spaced moments of an episode, one for each second of a video."""
    episode = recorder.episode("")
    last = len(episode.positions) - 1
    chosen = np.linspace(0, last, _FRAMES.value).round().astype(int)
    episode = episode._replace(positions=episode.positions[chosen])
    return video.Recording(recorder.scene._replace(dt=1.0), [episode])


def _write(rows: list[video.Recording], path: Path) -> None:
    """Writes the moments of each recording as a row."""
    pixels = _PIXELS
    drawn = video.frames(rows, video.Format(pixels, pixels, fps=1.0))
    tiles = drawn.reshape(len(drawn), pixels, len(rows), pixels, 3)
    picture = tiles.transpose(2, 1, 0, 3, 4).reshape(len(rows) * pixels, -1, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).quantize(_COLORS).save(path, optimize=True)


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
