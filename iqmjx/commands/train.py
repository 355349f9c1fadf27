"""Trains an agent: python -m iqmjx.train --env humanoid."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

from absl import flags
from rich import console, table

from iqmjx import command_line, parallel
from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.run import launching, memory, run_folder
from iqmjx.run.launching import Request
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
    "Resume the run in --logdir, with the flags it began with.",
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
            run = stack.enter_context(launching.prepared(_request()))
        if parallel.is_first():
            _print_settings(run)
        stop.farewell = f"stopped; to resume: {run_folder.resume_command(run.folder)}"
        with cli.run_errors():
            finished = run.train(stop)
    if finished and parallel.is_first():
        _, first = run_folder.seeds(run.config, run.folder)[0]
        print(f"done; python -m iqmjx.evaluate --checkpoint {first} plays the policy")
    sys.exit(0)


def _request() -> Request:
    if _LOGDIR.value == "":
        raise UsageError("--logdir '': give a folder, or leave the flag out")
    return Request(
        command_line.given_settings(FLAGS),
        _PRESET.value,
        None if _LOGDIR.value is None else Path(_LOGDIR.value),
        _RESUME.value,
    )


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


def _print_settings(run: launching.Run) -> None:
    settings = table.Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in run.config.flat().items():
        settings.add_row(name, plain(value), plain(run.resolved.sources[name]))
    out = console.Console(highlight=False, soft_wrap=True, markup=False)
    out.print(settings)
    sizes = ", ".join(f"{k} {memory.describe(v)}" for k, v in run.memory.items())
    out.print(f"memory: {sizes}")
    out.print(f"run folder: {run.folder}")
    out.print(f"engine: {run.setup.env.physics.name}")
