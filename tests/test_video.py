"""Videos: of a ball whose place, color and pace are known."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import imageio_ffmpeg
import jax
import mujoco
import numpy as np
import pytest
from PIL import Image

from iqmjx import acting, evaluation, presets
from iqmjx.commands import play
from iqmjx.errors import RunError, UsageError
from iqmjx.run import metrics, recording, run_folder, saved_policy, trainer, video
from tests import toys

BALL = """
<mujoco>
  <asset>
    <texture name="checks" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0 0 0"
      width="64" height="64"/>
    <material name="checks" texture="checks" texrepeat="30 30"/>
  </asset>
  <worldbody>
    <light directional="true" pos="0 0 3"/>
    {floor}
    <body pos="0 0 1">
      <joint type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.3" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""
FLOOR = '<geom type="plane" size="10 10 1" material="checks"/>'
PERIOD = 2 * 10 / 30  # metres: two checks of the floor
FIXED = {"distance": 4.0, "elevation": -15.0, "lookat": (0.0, 0.0, 1.0)}
TRACKING = {"type": 1, "trackbodyid": 1, "elevation": -15.0, "distance": 4.0}
SMALL = video.Format(64, 64, 10.0)


@pytest.fixture(autouse=True, scope="module")
def rendering():
    try:
        video.backend()
    except UsageError as error:
        pytest.skip(str(error))


def ball(*places, dt=0.1, camera=FIXED, floor="", **episode):
    """A recording of a red ball at some places of the x axis."""
    model = mujoco.MjModel.from_xml_string(BALL.format(floor=floor))
    positions = np.array(places, float)[:, None]
    scene = video.Scene(model, camera, dt)
    return video.Recording(scene, [video.Episode(positions, **episode)])


def column(frame, channel=0):
    """The mean column of the ball's pixels; of a color channel that it alone has."""
    others = [each for each in range(3) if each != channel]
    found = frame[..., channel] > 60 + frame[..., others].max(-1).astype(int)
    return np.nonzero(found)[1].mean()


def decoded(path, height, width):
    """A video's frames."""
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, *form], capture_output=True
    )
    return np.frombuffer(shown.stdout, np.uint8).reshape(-1, height, width, 3)


def test_an_mp4_has_its_frames_size_and_pace(tmp_path):
    path, told = tmp_path / "new" / "a.mp4", []
    video.write(
        [ball(*np.linspace(-0.8, 0.8, 12), caption="a ball")],
        path,
        video.Format(96, 80, 10.0),
        drawn=lambda *done: told.append(done),
    )
    frames = decoded(path, 80, 96)
    assert frames.shape == (12, 80, 96, 3)
    assert imageio_ffmpeg.count_frames_and_secs(path) == (12, pytest.approx(1.2))
    assert told == [(done, 12) for done in range(1, 13)]
    assert frames[:, 78].mean() > 200  # the caption's strip, which is white
    assert frames[:, :70].mean() < 100
    assert [each.name for each in path.parent.iterdir()] == ["a.mp4"]
    columns = [column(frame) for frame in frames]
    assert (np.diff(columns) > 1).all()  # to the right is +x, seen from -y


def test_a_gif_is_looped_at_the_same_pace(tmp_path):
    path = tmp_path / "a.gif"
    video.write([ball(*np.linspace(-0.8, 0.8, 5), dt=0.2)], path, SMALL)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (10, (64, 64), 0)
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert sum(durations) == pytest.approx(5 * 200)  # ms


def test_frames_show_the_moments_of_simulated_time():
    places = np.linspace(-0.8, 0.8, 6)
    slow, fast = (
        [column(f) for f in video.frames([ball(*places)], SMALL._replace(fps=fps))]
        for fps in (5.0, 20.0)
    )
    assert len(fast) == 12 and len(set(fast)) == 6
    assert fast[::2] == fast[1::2] == sorted(fast[::2])
    assert slow == fast[::4]


def test_recordings_stand_side_by_side_and_the_shorter_one_waits():
    long, short = ball(-0.5, 0.0, 0.5), ball(0.5, dt=0.2)
    together = video.frames([long, short], SMALL)
    assert together.shape == (3, 64, 128, 3)
    left, right = together[:, :, :64], together[:, :, 64:]
    assert (np.diff([column(frame) for frame in left]) > 1).all()
    np.testing.assert_array_equal(right, right[:1].repeat(3, 0))
    np.testing.assert_array_equal(right[0], left[2])


def test_each_episode_has_its_model_and_its_caption():
    first = ball(0.0, caption="one")
    model = first.scene.model
    rgba = np.array(model.geom_rgba)
    rgba[:] = (0, 1, 0, 1)
    green = video.Episode(np.zeros((1, 1)), {"geom_rgba": rgba}, "two")
    red = first.episodes[0]._replace(model_fields={"geom_rgba": model.geom_rgba + 0})
    episodes = [red, green, red]
    frames = video.frames([first._replace(episodes=episodes)], SMALL)
    assert np.isfinite(
        [column(frames[0]), column(frames[1], 1), column(frames[2])]
    ).all()
    strips = frames[:, -(64 // 20) :].astype(int)
    assert (strips[0] == strips[2]).all() and (strips[0] != strips[1]).any()


def test_a_recording_is_cut_to_seconds():
    whole = ball(0.0, 0.1, 0.2)
    whole = whole._replace(episodes=whole.episodes * 3)
    assert whole.seconds == pytest.approx(0.9)
    assert whole.cut(0.4).seconds == pytest.approx(0.4)
    for seconds, lengths in ((0.3, [3]), (0.4, [3, 1]), (9.0, [3, 3, 3])):
        cut = whole.cut(seconds)
        assert [len(each.positions) for each in cut.episodes] == lengths


def test_the_camera_follows_a_body_over_a_floor_that_has_no_edge():
    places = [0.0, PERIOD / 2, PERIOD, 0.1, 40 * PERIOD]  # the floor is 20 m long
    moved = ball(*places, camera=TRACKING, floor=FLOOR)
    frames = video.frames([moved], SMALL).astype(int)
    assert [column(f) for f in frames] == pytest.approx([column(frames[0])] * 5, abs=1)
    floor = frames[:, 45:]
    apart = abs(floor - floor[0]).mean(axis=(1, 2, 3))
    assert apart[2] < 2 and apart[4] < 2
    assert apart[1] > 50 and apart[3] > 5


@pytest.mark.parametrize("script", ["exit 1", 'cat >/dev/null; echo x >"$last"'])
def test_what_cannot_be_written_is_told_and_leaves_nothing(
    tmp_path, monkeypatch, script
):
    encoder, path = tmp_path / "encoder", tmp_path / "videos" / "a.gif"
    encoder.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    encoder.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    with pytest.raises(RunError, match=f"^{path} cannot be written: "):
        video.write([ball(0.0)], path, SMALL)
    assert not any(path.parent.iterdir())


def test_a_queue_writes_in_turn_and_survives_failures(tmp_path, monkeypatch):
    written, said = [], []

    def write(_recordings, path, _form, *, niceness):
        assert niceness > 0
        if "bad" in path.name:
            raise ValueError("no room")
        written.append(path.name)

    monkeypatch.setattr(video, "write", write)
    queue = video.Queue(print, said.append)
    for name in ("1.mp4", "bad.mp4", "2.mp4"):
        queue.add(ball(0.0), tmp_path / name)
    queue.close()
    assert written == ["1.mp4", "2.mp4"]
    assert [line for line in said if "no room" in line and line.startswith("warning: ")]


@pytest.mark.parametrize(
    ("platform", "environment", "working", "tried", "chosen"),
    [
        ("linux", {}, ["egl", "osmesa"], ["egl"], "egl"),
        ("linux", {}, ["osmesa"], ["egl", "osmesa"], "osmesa"),
        ("linux", {}, ["glfw"], ["egl", "osmesa"], "apt install libosmesa6"),
        ("linux", {"DISPLAY": ":1"}, ["glfw"], ["egl", "osmesa", "glfw"], "glfw"),
        ("darwin", {}, ["glfw"], ["cgl", "glfw"], "glfw"),
        ("darwin", {}, [], ["cgl", "glfw"], "desktop"),
        ("linux", {"MUJOCO_GL": "osmesa"}, ["osmesa", "egl"], ["osmesa"], "osmesa"),
        ("linux", {"MUJOCO_GL": "egl"}, ["osmesa"], ["egl"], "unset it"),
    ],
)
def test_the_first_backend_that_renders_is_taken(
    monkeypatch, platform, environment, working, tried, chosen
):
    names = []
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        video, "renders", lambda name: names.append(name) or name in working
    )
    find = video.backend.__wrapped__
    if chosen in ("egl", "osmesa", "glfw"):
        assert find() == chosen
    else:
        with pytest.raises(UsageError, match=chosen):
            find()
    assert names == tried


def test_a_backend_that_there_is_not_does_not_render():
    assert not video.renders("paint")


def test_drawing_imports_nothing_of_jax():
    script = "import sys; from iqmjx.run import video; print('jax' in sys.modules)"
    root = Path(__file__).parents[1]
    told = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True)
    assert told.stdout == b"False\n", told.stderr


def videos(folder):
    return sorted(int(path.stem) for path in (folder / "videos").glob("[0-9]*.mp4"))


@pytest.mark.slow
def test_training_is_recorded_and_learns_the_same(tmp_path):
    rows, policies = [], []
    for every in (0, 2):
        folder = tmp_path / str(every)
        settings = toys.SMALL | {"num_evals": 4, "video_every": every}
        resolved = presets.resolve(settings, "cpu")
        run_folder.create(folder, resolved)
        trainer.train(resolved.config, folder)
        rows.append(metrics.read(folder))
        policies.append(saved_policy.load(folder / "policy").actor)
    chex.assert_trees_all_equal(*policies)
    times = ("training/sps", "training/walltime", "eval/seconds", "eval/walltime")
    kept = [[{n: r[n] for n in r if n not in times} for r in each] for each in rows]
    assert kept[0] == kept[1]
    evaluated = [row["env_steps"] for row in rows[1] if "eval/seconds" in row]
    assert len(evaluated) == 4
    assert not (tmp_path / "0" / "videos").exists()
    assert videos(tmp_path / "2") == evaluated[::2]
    shown = decoded(tmp_path / "2" / "videos" / "0.mp4", 480, 480)
    assert 0 < len(shown) <= 240 and shown.std() > 20


@pytest.mark.slow
def test_a_resumed_run_goes_on_recording_and_a_failure_ends_no_run(
    tmp_path, monkeypatch, capsys
):
    more = {"num_evals": 3, "num_checkpoints": 1, "video_every": 1}
    first = presets.resolve(toys.SMALL | more | {"num_timesteps": 96}, "cpu")
    run_folder.create(tmp_path, first)
    trainer.train(first.config, tmp_path)
    before = videos(tmp_path)
    assert (before[0], before[-1], len(before)) == (0, 96, 3)
    for name in ("1024.mp4", "mine.mp4"):
        (tmp_path / "videos" / name).touch()
    config = toys.config(**more, num_timesteps=192)
    trainer.train(config, tmp_path, resume=True)
    assert (tmp_path / "videos" / "mine.mp4").exists()
    after = videos(tmp_path)
    assert after[:3] == before and after[-1] == 192 and 1024 not in after

    def fail(*_, **__):
        raise RunError("no video today")

    monkeypatch.setattr(video, "write", fail)
    capsys.readouterr()
    config = toys.config(**more, num_timesteps=256)
    assert trainer.train(config, tmp_path, resume=True)
    assert "warning: a video is missing: no video today" in capsys.readouterr().out
    assert videos(tmp_path) == after


class Sliding(toys.Commanded):
    """Ends after 3 steps, or 5, and says which in a field of the model."""

    def reset(self, key):
        steps = 3 + 2.0 * jax.random.bernoulli(key)
        return self._at(steps, steps * 100)

    def step(self, state, action):
        steps = state.pipeline_state.carry
        return self._at(steps, state.pipeline_state.qpos[0] + 1)

    def _at(self, steps, position):
        obs = jax.numpy.stack([position, steps])
        done = (position >= steps * 101) * 1.0
        state = self.state(obs, position, done, steps, position)
        world = state.pipeline_state.replace(model_fields={"steps": steps[None]})
        return state.replace(pipeline_state=world)


class Still:
    """A policy that draws zeros."""

    def mode(self, params, obs, temperature):
        return jax.numpy.zeros((*obs.shape[:-1], 2))

    def sample(self, params, obs, key, temperature):
        return self.mode(params, obs, temperature)

    def control(self, action):
        return action


def test_a_recorded_game_keeps_what_its_first_world_went_through():
    game = evaluation.Game(Sliding(), Still(), 9, recorded=True)
    play_game = jax.jit(evaluation.play, static_argnums=0)
    actor = acting.Actor({}, jax.numpy.ones(()), None)
    lengths = []
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed), 3)
        played = jax.device_get(play_game(game, actor, np.ones(3, bool), keys))
        first = recording.of_game(played, "")
        lengths.append(int(first.model_fields["steps"][0]))
        went = 100 * lengths[-1] + np.arange(lengths[-1])
        np.testing.assert_array_equal(first.positions[:, 0], went)
    assert set(lengths) == {3, 5}


def test_the_viewer_keeps_time_and_ends_with_its_window(monkeypatch, capsys):
    class Window:
        cam, synced = mujoco.MjvCamera(), 0

        def is_running(self):
            return self.synced < 7

        def sync(self):
            self.synced += 1

        def lock(self):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class Stage:
        scene = ball(0.0, camera=TRACKING).scene._replace(dt=0.03)
        data = None

        def episodes(self, show):
            while True:
                for _ in range(5):
                    show()
                yield video.Episode(np.zeros((5, 1)), caption="played")

    window, slept, now = Window(), [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    viewer = SimpleNamespace(launch_passive=lambda *_, **__: window)
    monkeypatch.setattr(mujoco, "viewer", viewer, raising=False)
    monkeypatch.setattr(play.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(play.time, "sleep", sleep)
    play.FLAGS.mark_as_parsed()
    play._watch(Stage())
    assert window.synced == 7 and capsys.readouterr().out == "played\n"
    assert slept == pytest.approx([0.03] * 7)
    assert window.cam.type == 1 and window.cam.distance == 4
