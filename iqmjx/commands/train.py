"""Trains an agent: python -m iqmjx.train --env humanoid."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags
from rich import console, table

from iqmjx import loop, parallel, presets
from iqmjx.commands import cli
from iqmjx.presets import Resolved
from iqmjx.run import memory, metrics, run_folder, trainer
from iqmjx.settings import LARGEST_INT, refuse

_PRESET = flags.DEFINE_string(
    "preset", "auto", f"auto (by platform), {', '.join(presets.PRESETS)}."
)
_LOGDIR = flags.DEFINE_string(
    "logdir", None, "The run's folder (default: a new one under checkpoints/)."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --logdir, with the flags it began with."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, where a run of several processes is started by hand; "
    "Slurm's and Open MPI's find each other.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
cli.define_config_flags()


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        _join_processes()
        given = cli.given_settings()
        if _RESUME.value:
            resolved, folder = _resumed(given)
        else:
            resolved = presets.resolve(given, _PRESET.value)
            folder = _new_folder(resolved)
        metrics.find_loggers(resolved.config)
        setup = loop.make_setup(trainer.fit_devices(resolved.config, _RESUME.value))
        parts = memory.footprint(setup)
        memory.check(parts, setup.config)
        resolved = dataclasses.replace(resolved, config=setup.config)
        prepared = folder, resolved, parts, setup.env.physics.name
        folder = Path(_by_first(lambda: str(_prepare(*prepared))))
    with cli.user_errors():
        try:
            finished = trainer.train(
                resolved.config, folder, resume=_RESUME.value, env=setup.env
            )
        except trainer.DivergedError as error:
            cli.fail(str(error), cli.EXIT_FAILURE)
    if finished and parallel.is_first():
        print(f"done; python -m iqmjx.evaluate --checkpoint {folder} plays the policy")
    sys.exit(0)


def _join_processes() -> None:
    told = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if any(each is None for each in told) and any(each is not None for each in told):
        raise ValueError(
            "--coordinator, --num_processes and --process_id go together: give all "
            "three to each process, or none"
        )
    coordinator, count, own = told
    if coordinator is not None and count is not None and own is not None:
        if not re.fullmatch(r".+:\d{1,5}", coordinator):
            refuse("coordinator", coordinator, "give host:port, such as localhost:1234")
        if not 1 <= count <= LARGEST_INT:
            fix = f"give a whole number from 1 to {LARGEST_INT}"
            refuse("num_processes", count, fix)
        if not 0 <= own < count:
            refuse("process_id", own, f"give a whole number from 0 to {count - 1}")
    parallel.join(*told)


def _by_first(prepare: Callable[[], str]) -> str:
    """What process 0 prepares, on every process.

    Raises:
        ValueError: on every process, where it is raised on process 0.
    """
    ok, text = True, ""
    if parallel.is_first():
        try:
            text = prepare()
        except ValueError as error:
            ok, text = False, str(error)
    text = parallel.tell_all(f"{int(ok)}{text}")
    if text[0] == "0":
        raise ValueError(text[1:])
    return text[1:]


def _prepare(
    folder: Path, resolved: Resolved, parts: dict[str, int], engine: str
) -> Path:
    """Makes or updates the run's folder, and prints what will be run."""
    if not _RESUME.value:
        run_folder.refuse_existing(folder)
    _print_settings(resolved, parts, folder)
    print(f"engine: {engine}")
    run_folder.create(folder, resolved)  # on a resume, with the new schedule
    return folder


def _resumed(given: dict) -> tuple[Resolved, Path]:
    if _LOGDIR.value is None:
        raise ValueError("--resume: name the run's folder with --logdir")
    folder = Path(_LOGDIR.value)
    saved = run_folder.load(folder)
    if flags.FLAGS["preset"].present and _PRESET.value not in ("auto", saved.preset):
        raise ValueError(
            f"--preset {_PRESET.value}: the run in {folder} has preset {saved.preset}; "
            f"leave the flag out, or start a new run without --resume"
        )
    return run_folder.merge(saved, given, folder), folder


def _new_folder(resolved: Resolved) -> Path:
    if _LOGDIR.value is not None:
        return Path(_LOGDIR.value)
    config = resolved.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.env}-{config.algo}-{config.seed}-{stamp}".replace(":", ".")
    return Path("checkpoints") / name


def _print_settings(resolved: Resolved, parts: dict[str, int], folder: Path) -> None:
    settings = table.Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in resolved.config.flat().items():
        settings.add_row(name, str(value), resolved.sources[name])
    out = console.Console(highlight=False, soft_wrap=True)
    out.print(settings)
    sizes = ", ".join(f"{k} {memory.describe(v)}" for k, v in parts.items())
    out.print(f"memory: {sizes}", markup=False)
    out.print(f"run folder: {folder}", markup=False)
