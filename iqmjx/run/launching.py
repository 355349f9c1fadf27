"""From what a user asks for to a run that can begin; the command's and Python's way.

In this order: settings, loggers, the setup, memory, the run's folder, config.json.
Nothing is written before all that was asked for is found to work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from iqmjx import envs, loop, parallel, presets
from iqmjx.config import Config
from iqmjx.envs.physics.native import cpus
from iqmjx.errors import UsageError
from iqmjx.presets import Resolved
from iqmjx.run import checkpoint, memory, metrics, run_folder, trainer, video
from iqmjx.run.signals import Stop
from iqmjx.settings import refuse

_MJX_WAITS = 2
"""Factorizations of MJX that wait for one another in XLA's pool of threads."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        given: settings, by flag name.
        preset: a name in `presets.PRESETS`, or `auto` by platform; on a resume, auto or
            the run's own.
        logdir: the run's folder; None: a new one under checkpoints/.
        resume: resume the run in `logdir`, or begin it where there is none yet.
        env: a task object, in place of the one that `given["env"]` names.
    """

    given: Mapping[str, Any]
    preset: str = "auto"
    logdir: Path | None = None
    resume: bool = False
    env: envs.Task | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can begin, in a folder that is its own.

    Attributes:
        resolved: its settings.
        resume: whether it resumes what another process, or call, began.
        folder: the run's folder; config.json is in it.
        setup: what it is built from.
        memory: bytes by part (`memory.footprint`).
    """

    resolved: Resolved
    resume: bool
    folder: Path
    setup: loop.Setup
    memory: dict[str, int]

    @property
    def config(self) -> Config:
        """Its settings, without where they come from."""
        return self.resolved.config

    def train(self, stop: Stop, **options: Any) -> bool:
        """`trainer.train`, whose other arguments `options` are."""
        return trainer.train(
            self.config,
            self.folder,
            resume=self.resume,
            env=self.setup.env,
            stop=stop,
            **options,
        )


@contextlib.contextmanager
def prepared(request: Request) -> Iterator[Run]:
    """Prepares a run, and keeps its folder from other processes until it is left.

    Every process of a run must call it.

    Raises:
        UsageError: where something asked for cannot be had; nothing is written then.
    """
    resume, resolved = _settings(request)
    with _said_by(request, resume, "loggers"):
        metrics.find_loggers(resolved.config)
    if resolved.config.video_every and "video_every" in request.given:
        video.check_backend("video_every")
    config = trainer.fit_devices(resolved.config, resume)
    env = request.env
    if env is not None:
        worlds = config.num_seeds * config.num_envs // jax.device_count()
        env = env.for_worlds(max(worlds, 1))
    setup = loop.make_setup(config, env)
    _check_threads(setup.env.physics.name)
    parts = memory.footprint(setup)
    memory.check(parts, setup.config)
    resolved = dataclasses.replace(resolved, config=setup.config)
    with contextlib.ExitStack() as stack:

        def claim() -> str:
            folder = _claim(stack, request.logdir, resume, resolved)
            if not resume or run_folder.load(folder) != resolved:  # a new schedule
                run_folder.create(folder, resolved)
            return str(folder)

        yield Run(resolved, resume, Path(parallel.by_first(claim)), setup, parts)


def _settings(request: Request) -> tuple[bool, Resolved]:
    """Whether there is a run to resume, and the settings."""
    given, preset, folder = request.given, request.preset, request.logdir
    if not request.resume:
        return False, presets.resolve(given, preset)
    if folder is None:
        raise UsageError("--resume: name the run's folder with --logdir")
    if run_folder.is_empty(folder):
        if "env" not in given:
            raise UsageError(
                f"--resume: there is no run in --logdir {folder}; to begin one there, "
                f"name its task with --env"
            )
        return False, presets.resolve(given, preset)
    saved = run_folder.load(folder)
    if preset not in ("auto", saved.preset):
        raise UsageError(
            f"--preset {preset}: the run in {folder} has preset {saved.preset}; "
            f"leave the flag out, or start a new run without --resume"
        )
    resolved = run_folder.merge(saved, dict(given), folder)
    taken, end = checkpoint.newest(folder) or 0, resolved.config.total_env_steps
    if taken > end:
        fix = f"the run in {folder} has taken {taken} env steps; give at least {taken}"
        with _said_by(request, True, "num_timesteps"):
            refuse("num_timesteps", resolved.config.num_timesteps, fix)
    return True, resolved


def _said_by(
    request: Request, resume: bool, name: str
) -> contextlib.AbstractContextManager[None]:
    """Blames what is wrong with a setting on the run's file, where it was not given."""
    if name in request.given or not resume:
        return contextlib.nullcontext()
    return run_folder.read_from(str(Path(request.logdir or "") / "config.json"))


def _check_threads(engine: str) -> None:
    """Refuses MJX where it would wait forever (see `cli.give_mjx_threads`)."""
    threads = int(os.environ.get("PJRT_NPROC", len(cpus())))
    if "mjx" in engine and jax.default_backend() == "cpu" and threads <= _MJX_WAITS:
        raise UsageError(
            f"--physics {engine}: with {threads} threads JAX would wait forever; set "
            f"PJRT_NPROC=16 in the environment before the program starts"
        )


def _claim(
    stack: contextlib.ExitStack, named: Path | None, resume: bool, resolved: Resolved
) -> Path:
    """The run's folder, claimed for as long as `stack` is open."""
    if named and not resume:
        _refuse_existing(named)
    folder = named or run_folder.new_default(resolved.config)
    stack.enter_context(run_folder.claimed(folder))
    if not resume:
        _refuse_existing(folder)  # again: another process may have been first
    return folder


def _refuse_existing(folder: Path) -> None:
    if not run_folder.is_empty(folder):
        raise UsageError(
            f"--logdir {folder}: exists and is not empty; choose another, or add "
            f"--resume to resume the run in it"
        )
