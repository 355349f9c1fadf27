"""Videos of recorded episodes, drawn by MuJoCo in a process of their own.

A recording holds the positions that a world went through, and is cheap to make. Drawing
them takes longer and needs OpenGL, so `write` leaves it to a new process:

    python -m iqmjx.run.video < PICKLED_JOB

There the backend of OpenGL can still be chosen, which MuJoCo reads once, on import; a
driver that crashes takes nothing with it; training goes on meanwhile; and the encoder
is started where no threads of JAX are. So nothing is imported here that imports JAX.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import mujoco
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from iqmjx.errors import RunError, UsageError, described
from iqmjx.settings import refuse

SUFFIXES = (".mp4", ".gif")
_LARGEST_DISTANCE = 4.0  # metres from the camera to what it looks at, by default
_CAPTION_SHARE = 20  # a caption takes this part of the height
_GIF_PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse=diff_mode=rectangle"
_SHADOW_SIZE = 1024  # pixels
_TRY = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.Renderer(model, 8, 8).render()
"""


class Episode(NamedTuple):
    """What is drawn of an episode of T control steps."""

    positions: np.ndarray  # [T, nq], MuJoCo's qpos before each step
    model_fields: Mapping[str, np.ndarray] = {}  # where the model differs, by name
    caption: str = ""  # one line under the picture


class Scene(NamedTuple):
    """What is drawn of a task."""

    model: mujoco.MjModel
    camera: Mapping[str, Any]  # where it is seen from, as `look_through` takes it
    dt: float  # seconds per control step

    def begin(self, episode: Episode) -> None:
        """Makes the model that of an episode."""
        for name, value in episode.model_fields.items():
            getattr(self.model, name)[:] = value

    def pose(self, data: mujoco.MjData, positions: np.ndarray) -> None:
        """Puts a world into positions [nq], and all that is drawn with them."""
        data.qpos = positions
        mujoco.mj_fwdPosition(self.model, data)


class Recording(NamedTuple):
    """Episodes to be shown one after another."""

    scene: Scene
    episodes: Sequence[Episode]

    @property
    def seconds(self) -> float:
        """How long it is in simulated time."""
        return self.scene.dt * sum(len(each.positions) for each in self.episodes)

    def cut(self, seconds: float) -> Recording:
        """Its first seconds of simulated time."""
        left, kept = max(round(seconds / self.scene.dt), 1), []
        for episode in self.episodes:
            kept.append(episode._replace(positions=episode.positions[:left]))
            left -= len(kept[-1].positions)
            if left == 0:
                break
        return Recording(self.scene, kept)


class Format(NamedTuple):
    """Of a video; several recordings stand side by side, each of this size."""

    width: int = 480  # pixels, even
    height: int = 480  # pixels, even, the caption's among them
    fps: float = 30.0  # frames per second of simulated time


def check_name(flag: str, name: str) -> None:
    """Holds a video's file name to the formats that there are.

    Raises:
        UsageError: naming the flag, where it ends in something else.
    """
    if Path(name).suffix not in SUFFIXES:
        refuse(flag, name, "give a file name ending in .mp4 or .gif")


def check_backend(flag: str) -> None:
    """`backend`, with errors that name the flag."""
    try:
        backend()
    except UsageError as error:
        raise UsageError(f"--{flag}: {error}") from error


def check(flag: str, path: Path) -> None:
    """Tries what writing a video takes, and makes its folder.

    Raises:
        UsageError: naming the flag, where MuJoCo cannot render or the path cannot be
            written.
    """
    check_backend(flag)
    try:
        if path.is_dir():
            raise UsageError("it is a folder; give a file name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--{flag} {path}: {reason}") from error


@functools.cache
def backend() -> str:
    """The first backend of OpenGL (a value of MUJOCO_GL) that renders here.

    Each is tried in a process of its own. MUJOCO_GL itself, where it is set, is the one
    to be tried.

    Raises:
        UsageError: where none does; the message says how to get one.
    """
    given = os.environ.get("MUJOCO_GL")
    if given:
        if renders(given):
            return given
        raise UsageError(f"MuJoCo cannot render with MUJOCO_GL={given}; unset it")
    if sys.platform == "darwin":
        names, fix = ("cgl", "glfw"), "log in to its desktop, and run the command there"
    else:
        names = ("egl", "osmesa") + ("glfw",) * has_display()
        fix = "install Mesa (Debian, Ubuntu: apt install libosmesa6)"
    for name in names:
        if renders(name):
            return name
    raise UsageError(f"MuJoCo cannot render on this machine; {fix}")


def renders(name: str) -> bool:
    """Whether a backend of OpenGL renders, tried in a process of its own."""
    tried = subprocess.run(
        [sys.executable, "-c", _TRY], env=_environment(name), capture_output=True
    )
    return tried.returncode == 0


def has_display() -> bool:
    """Whether there is a screen to open windows on, as far as the environment tells."""
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform == "darwin" or bool(named)


def look_through(
    camera: mujoco.MjvCamera, model: mujoco.MjModel, chosen: Mapping[str, Any]
) -> None:
    """Moves a camera to where a task is seen from.

    Args:
        camera: to be moved.
        model: the task's.
        chosen: attributes of MjvCamera by name (degrees, metres); the others are
            MuJoCo's defaults for the model, but for the distance: its extent, and at
            most 4 m.
    """
    mujoco.mjv_defaultFreeCamera(model, camera)
    camera.distance = min(_LARGEST_DISTANCE, model.stat.extent)
    for name, value in chosen.items():
        if isinstance(value, Sequence):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)


def write(
    recordings: Sequence[Recording],
    path: Path,
    form: Format,
    *,
    niceness: int = 0,
    drawn: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes recordings side by side; one that ends early keeps its last picture.

    Args:
        recordings: what to draw.
        path: ends in .mp4 or .gif; it appears when it is whole. Or in .npy: then the
            frames themselves, uint8 [F, height, width, 3].
        form: the size of each picture, and the frames per second.
        niceness: how much processor time is left to others, 0 to 19.
        drawn: told how many frames are drawn, and of how many.

    Raises:
        RunError: where it could not be drawn or written.
        UsageError: as `backend`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    job = pickle.dumps((list(recordings), path, form, niceness))
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            [sys.executable, "-m", "iqmjx.run.video"],
            env=_environment(backend()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the command, which may go on
        ) as process:
            assert process.stdin and process.stdout
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(job)
                for line in process.stdout:
                    drawn(*map(int, line.split()))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            lines = [f"exit {process.returncode}"]
            lines += said.read().decode(errors="replace").split("\n")
            last = [line for line in lines if line.strip()][-1]
            raise RunError(f"{path} cannot be written: {last}")


def frames(recordings: Sequence[Recording], form: Format) -> np.ndarray:
    """The frames of a video, uint8 [F, height, width of all, 3].

    Raises:
        RunError: as `write`.
        UsageError: as `write`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.npy"
        write(recordings, path, form)
        return np.load(path)


class Queue:
    """Writes videos one after another while the caller goes on."""

    def __init__(self, say: Callable[[str], None], warn: Callable[[str], None]):
        """Opens the queue.

        Args:
            say: told in a line what is waited for.
            warn: told in a line, from another thread, what could not be written.
        """
        self._say, self._warn = say, warn
        self._writer = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._waiting: set[concurrent.futures.Future[None]] = set()

    def add(self, recording: Recording, path: Path) -> None:
        """Writes a video in its turn, with little claim to processor time."""
        self._waiting = {each for each in self._waiting if not each.done()}
        self._waiting.add(self._writer.submit(self._write, recording, path))

    def close(self) -> None:
        """Waits for the last of them."""
        if left := sum(not each.done() for each in self._waiting):
            self._say(f"writing the last video{'s' if left > 1 else ''} ...")
        self._writer.shutdown()

    def _write(self, recording: Recording, path: Path) -> None:
        try:
            write([recording], path, Format(), niceness=19)
        except Exception as error:  # whatever it is, a run does not end for a video
            reason = error if isinstance(error, RunError) else described(error)
            self._warn(f"warning: a video is missing: {reason}")


def _environment(name: str) -> dict[str, str]:
    """Of a process that renders by a backend, and imports what this one can."""
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    return os.environ | {"MUJOCO_GL": name, "PYTHONPATH": path}


def _main() -> None:
    """Draws the job on stdin; prints the frames drawn, and how many there are."""
    recordings, path, form, niceness = pickle.load(sys.stdin.buffer)
    os.nice(niceness)
    seconds = max(each.seconds for each in recordings)
    total = max(math.ceil(seconds * form.fps - 1e-6), 1)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with contextlib.ExitStack() as stack:
            panels = [
                stack.enter_context(contextlib.closing(_Panel(each, form)))
                for each in recordings
            ]
            writer = _writer(part, form, len(panels))
            next(stack.enter_context(contextlib.closing(writer)))
            for frame in range(total):
                shown = [panel.at(frame / form.fps) for panel in panels]
                writer.send(np.concatenate(shown, axis=1))
                print(frame + 1, total, flush=True)
        _check_whole(part, total)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_whole(path: Path, total: int) -> None:
    """Raises OSError where a video has not its frames: its encoder does not tell."""
    if path.suffix in SUFFIXES:
        found, _ = imageio_ffmpeg.count_frames_and_secs(path)
        if found != total:
            raise OSError(f"{found} of its {total} frames arrived; is the disk full?")


def _writer(path: Path, form: Format, count: int) -> Generator[None, np.ndarray, None]:
    """A generator that is sent the frames of `count` recordings, and closed.

    The first `next` opens the file.
    """
    if path.suffix == ".npy":
        return _array_writer(path)
    options: dict[str, Any] = {"fps": form.fps}
    if path.suffix == ".gif":
        palette = ["-filter_complex", _GIF_PALETTE]
        options |= {"codec": "gif", "pix_fmt_out": "pal8", "output_params": palette}
    return imageio_ffmpeg.write_frames(
        path,
        (form.width * count, form.height),
        macro_block_size=1,
        ffmpeg_log_level="error",
        **options,
    )


def _array_writer(path: Path) -> Generator[None, np.ndarray, None]:
    frames = []
    try:
        while True:
            frames.append((yield))
    except GeneratorExit:
        np.save(path, np.stack(frames))


class _Panel:
    """Draws the moments of a recording, in the order of time."""

    def __init__(self, recording: Recording, form: Format):
        self._scene, self._episodes = recording
        self._ends = np.cumsum([len(each.positions) for each in self._episodes])
        self._episode, self._position = -1, -1
        captions = any(each.caption for each in self._episodes)
        self._strip = form.height // _CAPTION_SHARE * captions
        height = form.height - self._strip
        model = self._scene.model
        model.vis.global_.offwidth, model.vis.global_.offheight = form.width, height
        # Without a GPU, these and reflections would take most of the time.
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = _SHADOW_SIZE
        self._data, self._camera = mujoco.MjData(model), mujoco.MjvCamera()
        look_through(self._camera, model, self._scene.camera)
        if self._camera.type == mujoco.mjtCamera.mjCAMERA_TRACKING:
            _make_endless(model, self._data, self._camera.trackbodyid)
        self._renderer = mujoco.Renderer(model, height, form.width)
        for flag in (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE):
            self._renderer.scene.flags[flag] = False

    def at(self, seconds: float) -> np.ndarray:
        """The picture, uint8 [height, width, 3], of this moment, or of the last."""
        reached = int(seconds / self._scene.dt + 1e-6)
        position = min(reached, int(self._ends[-1]) - 1)
        if position != self._position:
            self._position, self._picture = position, self._draw(position)
        return self._picture

    def _draw(self, position: int) -> np.ndarray:
        number = int(np.searchsorted(self._ends, position, side="right"))
        episode = self._episodes[number]
        if number != self._episode:
            self._episode = number
            self._scene.begin(episode)
            self._caption = _caption(episode.caption, self._renderer.width, self._strip)
        from_end = position - self._ends[number]  # negative
        self._scene.pose(self._data, episode.positions[from_end])
        self._renderer.update_scene(self._data, self._camera)
        return np.concatenate([self._renderer.render(), self._caption])

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()


def _make_endless(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> None:
    """Draws floors without an edge, and lets the lights follow a body on them.

    Where bodies touch it, a plane has no edge anyway.
    """
    for plane in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        material = model.geom_matid[plane]
        if material >= 0 and not model.mat_texuniform[material]:
            model.mat_texrepeat[material] /= model.geom_size[plane, :2]
            model.mat_texuniform[material] = 1
        model.geom_size[plane, :2] = 0  # MuJoCo's sign for it
    fixed = model.light_bodyid == 0
    model.light_bodyid[fixed] = body
    model.light_mode[fixed] = mujoco.mjtCamLight.mjCAMLIGHT_TRACK
    # An offset from the body, from where both are at first.
    data.qpos = model.qpos0
    mujoco.mj_kinematics(model, data)
    model.light_pos0[fixed] = model.light_pos[fixed] - data.xpos[body]
    model.light_dir0[fixed] = model.light_dir[fixed]


def _caption(text: str, width: int, height: int) -> np.ndarray:
    """A line of text, uint8 [height, width, 3], small where it is long."""
    picture = Image.new("RGB", (width, height), "white")
    if height:
        font: Any = ImageFont.load_default(0.7 * height)
        draw = ImageDraw.Draw(picture)
        room = (width - height / 2) / max(draw.textlength(text, font), 1)
        font = font.font_variant(size=0.7 * height * min(room, 1))
        draw.text((width / 2, height / 2), text, "black", font, anchor="mm")
    return np.asarray(picture)


if __name__ == "__main__":
    _main()
