"""Makes the runs of an experiment on a Slurm cluster: one job array, by submitit.

    OUT/jobs/<training>  the number of a training's job
    OUT/jobs/slurm/      submitit's files: what each job printed, and its error

A job that is preempted, or near its time limit, saves its run and goes back into the
queue, and then on. A command that is stopped leaves its jobs; given again, it waits for
those, and submits what has neither a curve nor a job.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iqmjx.errors import RunError, UsageError
from iqmjx.experiments import runner
from iqmjx.experiments.plan import Training

_POLL_SECONDS = 5.0
_TIMEOUTS = 1000
"""How often a job may reach its time limit and go on."""


class Job:
    """One training, as submitit calls it on a node."""

    def __init__(self, out: Path, training: Training):
        self._out, self._training = out, training

    def __call__(self) -> None:
        try:
            runner.make(self._out, self._training, print)
        except runner.StoppedError:
            # SIGTERM, to all of a job's processes: it was cancelled, or is preempted.
            # One that ends within the time of grace is not put back by Slurm.
            if not _requeue():
                raise

    def checkpoint(self) -> Any:
        """Saves the run; what submitit puts back into the queue."""
        from submitit import helpers

        runner.stop()
        return helpers.DelayedSubmission(self)


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Parameters of submitit's executor: `slurm_partition=low`, `timeout_min=60`.

    Raises:
        UsageError: where one is not NAME=VALUE.
    """
    options: dict[str, Any] = {"timeout_min": 24 * 60, "cpus_per_task": 1}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals and value):
            fix = "give NAME=VALUE, such as slurm_partition=low or timeout_min=600"
            raise UsageError(f"--slurm_options {word}: {fix}")
        options[name] = int(value) if value.isdecimal() else value
    return options


def make_all(
    out: Path,
    trainings: Sequence[Training],
    parallel: int,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Submits what has no job yet, and waits for all.

    Args:
        out: the experiment's folder, which all nodes see.
        trainings: what there is to do: see `runner.left`.
        parallel: how many jobs may run at a time.
        options: see `parse_options`.
        say: is told a line about what happens.

    Raises:
        UsageError: where there is no Slurm, no submitit, or an option is not known.
        RunError: where jobs end without a curve.
    """
    out = out.absolute()
    queued = _queued()
    jobs = {training: _job_of(out, training) for training in trainings}
    new = [training for training in trainings if jobs[training] not in queued]
    if new:
        jobs |= _submit(out, new, parallel, options)
        say(f"{len(new)} jobs submitted; to wait for them anew, give the command again")
    waiting, failed = list(trainings), []
    while waiting:
        time.sleep(_POLL_SECONDS)
        queued = _queued()
        for training in [t for t in waiting if jobs[t] not in queued]:
            waiting.remove(training)
            whole = all(runner.is_finished(out, run) for run in training.runs)
            failed += [] if whole else [training.name]
            say(f"{training.name}: ended {'with its' if whole else 'without a'} curve")
    if failed:
        raise RunError(
            f"{len(failed)} jobs made no curve: {', '.join(failed)}; see "
            f"{_logs(out)} and runs/*.log; the same command tries them again"
        )


def _requeue() -> bool:
    """Puts this job back into the queue, unless it is ending already."""
    number = os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", number, "--oneliner"],
        check=True,
        capture_output=True,
        text=True,
    )
    if "JobState=RUNNING" not in shown.stdout:
        return False
    subprocess.run(["scontrol", "requeue", number], check=True)
    while True:
        time.sleep(_POLL_SECONDS)  # Slurm ends this process


def _logs(out: Path) -> Path:
    return out / "jobs" / "slurm"


def _job_file(out: Path, training: Training) -> Path:
    return out / "jobs" / training.name


def _job_of(out: Path, training: Training) -> str:
    """The number of a training's last job; '' without one."""
    path = _job_file(out, training)
    return path.read_text() if path.exists() else ""


def _submit(
    out: Path, new: Sequence[Training], parallel: int, options: Mapping[str, Any]
) -> dict[Training, str]:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "--slurm: it needs submitit: pip install -c constraints.txt '.[cluster]'"
        ) from error
    executor = submitit.AutoExecutor(
        _logs(out), cluster="slurm", slurm_max_num_timeout=_TIMEOUTS
    )
    try:
        executor.update_parameters(
            name="iqmjx", slurm_array_parallelism=parallel, **options
        )
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"--slurm_options: {error}") from error
    jobs = executor.submit_array([Job(out, training) for training in new])
    numbers = {training: job.job_id for training, job in zip(new, jobs, strict=True)}
    for training, number in numbers.items():
        _job_file(out, training).write_text(number)
    return numbers


def _queued() -> set[str]:
    """The numbers of this user's jobs that wait or run."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UsageError("--slurm: there is no squeue here") from error
    except subprocess.CalledProcessError as error:
        raise RunError(f"squeue: {' '.join(error.stderr.split())}") from error
    return set(told.stdout.split())
