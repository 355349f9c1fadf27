"""Trains an agent: python -m iqmjx.train --env humanoid."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from pathlib import Path

from absl import flags
from rich import console, table

from iqmjx import command_line, loop, parallel, presets
from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.presets import Resolved
from iqmjx.run import checkpoint, memory, metrics, run_folder, trainer
from iqmjx.run.signals import Stop
from iqmjx.run.terminal import plain
from iqmjx.settings import LARGEST_INT, refuse

FLAGS = flags.FlagValues()
_PRESET = command_line.preset(FLAGS)
_LOGDIR = command_line.path(
    FLAGS, "logdir", None, "The run's folder (default: a new one under checkpoints/)."
)
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Go on with the run in --logdir, with the flags it began with.",
    flag_values=FLAGS,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, where a run of several processes is started by hand; "
    "Slurm's and Open MPI's find each other.",
    flag_values=FLAGS,
)
_NUM_PROCESSES = command_line.integer(
    FLAGS, "num_processes", None, "How many there are."
)
_PROCESS_ID = command_line.integer(
    FLAGS, "process_id", None, "Which of them this is, from 0."
)
command_line.settings(FLAGS)


def main(stop: Stop | None = None) -> None:
    """Runs the command.

    Args:
        stop: what the process's signals ask for.
    """
    stop = stop or Stop()
    with contextlib.ExitStack() as stack:
        with cli.user_errors():
            _join_processes()
            if parallel.have_peers():  # which wait for this one
                stack.enter_context(stop.deferred(print))
            resume, resolved = _settings()
            with _said_by(resume, "loggers"):
                metrics.find_loggers(resolved.config)
            setup = loop.make_setup(trainer.fit_devices(resolved.config, resume))
        parts = memory.footprint(setup)  # traces the task: its errors are not ours
        with cli.user_errors():
            memory.check(parts, setup.config)
            resolved = dataclasses.replace(resolved, config=setup.config)
            prepared = stack, resume, resolved, parts, setup.env.physics.name
            folder = Path(parallel.by_first(lambda: str(_prepare(*prepared))))
        stop.farewell = f"stopped; to go on: {run_folder.resume_command(folder)}"
        with cli.run_errors():
            finished = trainer.train(
                resolved.config, folder, resume=resume, env=setup.env, stop=stop
            )
    if finished and parallel.is_first():
        _, first = run_folder.seeds(resolved.config, folder)[0]
        print(f"done; python -m iqmjx.evaluate --checkpoint {first} plays the policy")
    sys.exit(0)


def _join_processes() -> None:
    told = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if any(each is None for each in told) and any(each is not None for each in told):
        raise UsageError(
            "--coordinator, --num_processes and --process_id go together: give all "
            "three to each process, or none"
        )
    coordinator, count, own = told
    if coordinator is not None and count is not None and own is not None:
        port = re.fullmatch(r".+:(\d{1,5})", coordinator)
        if port is None or not 0 < int(port[1]) < 2**16:
            refuse("coordinator", coordinator, "give host:port, such as localhost:1234")
        if not 1 <= count <= LARGEST_INT:
            fix = f"give a whole number from 1 to {LARGEST_INT}"
            refuse("num_processes", count, fix)
        if not 0 <= own < count:
            refuse("process_id", own, f"give a whole number from 0 to {count - 1}")
        if own == 0 and count > 1:
            print(f"waiting for {count - 1} more at {coordinator} ...", flush=True)
    parallel.join(*told)


def _said_by(resume: bool, name: str) -> contextlib.AbstractContextManager[None]:
    """Blames what is wrong with a setting on the run's file, where no flag gave it."""
    if FLAGS[name].present or not resume:
        return contextlib.nullcontext()
    return run_folder.read_from(str(Path(_LOGDIR.value or "") / "config.json"))


def _prepare(
    stack: contextlib.ExitStack,
    resume: bool,
    resolved: Resolved,
    parts: dict[str, int],
    engine: str,
) -> Path:
    """Claims the run's folder, prints what will be run, and writes config.json."""
    named = _LOGDIR.value and Path(_LOGDIR.value)
    if named and not resume:
        _refuse_existing(named)
    folder = named or run_folder.new_default(resolved.config)
    stack.enter_context(run_folder.claimed(folder))
    if not resume:
        _refuse_existing(folder)  # again: another process may have been first
    _print_settings(resolved, parts, folder)
    print(f"engine: {engine}")
    if not resume or run_folder.load(folder) != resolved:  # a new schedule, if any
        run_folder.create(folder, resolved)
    return folder


def _refuse_existing(folder: Path) -> None:
    if not run_folder.is_empty(folder):
        raise UsageError(
            f"--logdir {folder}: exists and is not empty; choose another, or add "
            f"--resume to go on with the run in it"
        )


def _settings() -> tuple[bool, Resolved]:
    """Whether a run in --logdir is gone on with, and the settings.

    `--resume` begins a run where there is none yet, if the flags name its task: the
    same command line can be given until the run has ended.
    """
    given = command_line.given_settings(FLAGS)
    if _LOGDIR.value == "":
        raise UsageError("--logdir '': give a folder, or leave the flag out")
    if not _RESUME.value:
        return False, presets.resolve(given, _PRESET.value)
    if _LOGDIR.value is None:
        raise UsageError("--resume: name the run's folder with --logdir")
    folder = Path(_LOGDIR.value)
    if run_folder.is_empty(folder):
        if "env" not in given:
            raise UsageError(
                f"--resume: there is no run in --logdir {folder}; to begin one there, "
                f"name its task with --env"
            )
        return False, presets.resolve(given, _PRESET.value)
    saved = run_folder.load(folder)
    if FLAGS["preset"].present and _PRESET.value not in ("auto", saved.preset):
        raise UsageError(
            f"--preset {_PRESET.value}: the run in {folder} has preset {saved.preset}; "
            f"leave the flag out, or start a new run without --resume"
        )
    resolved = run_folder.merge(saved, given, folder)
    taken, end = checkpoint.newest(folder) or 0, resolved.config.total_env_steps
    if taken > end:
        fix = f"the run in {folder} has taken {taken} env steps; give at least {taken}"
        with _said_by(True, "num_timesteps"):
            refuse("num_timesteps", resolved.config.num_timesteps, fix)
    return True, resolved


def _print_settings(resolved: Resolved, parts: dict[str, int], folder: Path) -> None:
    settings = table.Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in resolved.config.flat().items():
        settings.add_row(name, plain(value), plain(resolved.sources[name]))
    out = console.Console(highlight=False, soft_wrap=True, markup=False)
    out.print(settings)
    sizes = ", ".join(f"{k} {memory.describe(v)}" for k, v in parts.items())
    out.print(f"memory: {sizes}")
    out.print(f"run folder: {folder}")
