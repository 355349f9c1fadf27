"""Makes the runs of an experiment on this machine.

    OUT/runs/<training>/    run folders, and <training>.log, what iqmjx.train printed
    OUT/curves/<run>.jsonl  a run's curve, once it has its score

A run that has its curve is not made again, and one that was interrupted is resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from iqmjx import envs, evaluation
from iqmjx.envs.physics.native import cpus
from iqmjx.errors import RunError
from iqmjx.experiments import curves, plan
from iqmjx.experiments.plan import RANDOM, Run, Training
from iqmjx.run import gymnasium_play, metrics, run_folder
from iqmjx.run.signals import Stop

_POLL_SECONDS = 0.2
_under_way: set[subprocess.Popen[bytes]] = set()
_CAN_PIN = hasattr(os, "sched_setaffinity")  # not on macOS


class StoppedError(RunError):
    """A run was asked to stop, and saved its state."""


def curve_path(out: Path, run: Run) -> Path:
    """Where a run's curve is, or will be."""
    return out / "curves" / f"{run.name}.jsonl"


def is_finished(out: Path, run: Run) -> bool:
    """Whether a run has its curve."""
    return curve_path(out, run).exists()


def left(out: Path, runs: Iterable[Run], pack_seeds: bool) -> list[Training]:
    """What is to be trained for the runs that have no curve yet.

    What is under way continues as it began, in a pack or alone.
    """
    rest = [run for run in runs if not is_finished(out, run)]
    found = []
    for stem, seeds in _packs_begun(out):
        own = [run for run in rest if run.stem == stem and run.seed in seeds]
        if own:
            found.append(Training(tuple(own), seeds))
            rest = [run for run in rest if run not in own]
    alone = [run for run in rest if _folder(out, run).exists()]
    rest = [run for run in rest if run not in alone]
    return [
        *found,
        *plan.trainings(alone, False),
        *plan.trainings(rest, pack_seeds),
    ]


def _packs_begun(out: Path) -> list[tuple[str, range]]:
    """The stems and the seeds of the packs whose folders are there."""
    names = (path.name for path in (out / "runs").glob("*-seeds*-*"))
    found = (re.fullmatch(r"(.+)-seeds(\d+)-(\d+)", name) for name in sorted(names))
    return [(f[1], range(int(f[2]), int(f[3]) + 1)) for f in found if f]


def _folder(out: Path, training: Training | Run) -> Path:
    return out / "runs" / training.name


def seed_folders(out: Path, training: Training) -> dict[int, Path]:
    """The run folder of each seed that a training has."""
    return run_folder.seed_folders(_folder(out, training), training.seeds)


def metrics_of(out: Path, training: Training) -> list[list[dict[str, Any]]]:
    """The rows of metrics.jsonl so far, of each seed."""
    return [metrics.read(folder) for folder in seed_folders(out, training).values()]


def make_all(
    out: Path,
    trainings: Sequence[Training],
    parallel: int,
    say: Callable[[str], None],
    asked: Stop,
) -> bool:
    """Makes runs; those under way are saved where `asked` asks to stop.

    Args:
        out: the experiment's folder.
        trainings: what there is to do: see `left`.
        parallel: see `work`.
        say: is told a line about each run.
        asked: what may ask to stop.

    Returns:
        Whether all are made; False after a stop.

    Raises:
        RunError: where a run fails; those under way end first, and no other begins.
    """

    def job(training: Training) -> Callable[[], None]:
        return lambda: make(out, training, say, lambda: not asked.requested)

    return work([job(training) for training in trainings], parallel, say, asked)


def work(
    jobs: Sequence[Callable[[], None]],
    parallel: int,
    say: Callable[[str], None],
    asked: Stop,
) -> bool:
    """Does jobs, several at a time.

    Args:
        jobs: each ends by itself, soon after `asked` asks to stop.
        parallel: how many at a time, each on a share of the CPUs: on few CPUs, two runs
            on one each get further than one run on two after the other.
        say: is told that it stops.
        asked: what may ask to stop.

    Returns:
        Whether all are done; False after a stop.

    Raises:
        RunError: what a job raises; those under way end first, and no other begins.
    """
    shares = [set(cpus()[i::parallel]) for i in range(parallel)]
    pool = ThreadPoolExecutor(parallel, initializer=_take_cpus, initargs=(shares,))
    failed = threading.Event()

    def begin(job: Callable[[], None]) -> None:
        if not (asked.requested or failed.is_set()):
            try:
                job()
            except BaseException:
                failed.set()
                raise

    with asked.deferred(lambda _: say("stopping: the runs are saved ...")), pool:
        futures = [pool.submit(begin, job) for job in jobs]
    if asked.requested:
        return False
    for future in futures:
        future.result()  # raises what the job raised
    return True


def make(
    out: Path,
    training: Training,
    say: Callable[[str], None],
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Trains (or resumes), plays, and writes the curve of each run that has none.

    Args:
        out: the experiment's folder.
        training: what to make.
        say: is told a line about each run.
        go_on: asked all the while; once it says no, the training is saved and ends.

    Raises:
        StoppedError: where the training was asked to stop.
        RunError: where it fails, or the policy cannot be played.
    """
    for part in ("runs", "curves"):
        (out / part).mkdir(parents=True, exist_ok=True)
    trained = training.runs[0].variant != RANDOM
    saved = _train(out, training, say, go_on) if trained else {}
    for run in training.runs:
        path = curve_path(out, run)
        if not path.exists():
            folder = saved.get(run.seed)
            rows = _played(folder, run, training) if folder else _random(run)
            curves.write(path, rows)
            say(f"{path}: {rows[-1]['score']:.1f}")


def _take_cpus(shares: list[set[int]]) -> None:
    """Keeps this thread, and the processes that it starts, on a share of its own."""
    if _CAN_PIN:
        os.sched_setaffinity(0, shares.pop())


def _train(
    out: Path,
    training: Training,
    say: Callable[[str], None],
    go_on: Callable[[], bool],
) -> dict[int, Path]:
    """Trains, or resumes; the folder of each seed, which has come to its end."""
    folder = _folder(out, training)
    log = folder.with_name(f"{folder.name}.log")
    say(f"{folder}: trains; {log} tells how far it is")
    _await_others(folder, say, go_on)
    with log.open("a") as file:
        command = [*_command(training), "--resume", "--logdir", str(folder)]
        code = _run([sys.executable, *command], file, go_on)
    if code:
        last = log.read_text().strip().splitlines()[-1:]
        raise RunError(f"{folder}: {' '.join(last)} (exit code {code}; see {log})")
    end = run_folder.load(folder).config.total_env_steps
    if any(
        not rows or rows[-1]["env_steps"] < end for rows in metrics_of(out, training)
    ):
        raise StoppedError(f"{folder}: stopped early; the same command resumes it")
    return seed_folders(out, training)


def _command(training: Training) -> list[str]:
    return ["-m", "iqmjx.train", *training.arguments]


def _await_others(
    folder: Path, say: Callable[[str], None], go_on: Callable[[], bool]
) -> None:
    """Waits for a training that a command which was killed has left behind."""
    if run_folder.is_claimed(folder):
        say(f"{folder}: another process trains in it: waiting for its end")
    while run_folder.is_claimed(folder):
        if not go_on():
            raise StoppedError(f"{folder}: left to the process that trains in it")
        time.sleep(_POLL_SECONDS)


def _played(folder: Path, run: Run, training: Training) -> list[dict[str, Any]]:
    """The curve of a run that is trained, with the score of its policy."""
    saved, rows = run_folder.load(folder), metrics.read(folder)
    report = play(folder, run.episodes)
    head = {
        "task": run.task,
        "variant": run.variant,
        "seed": run.seed,
        "command": " ".join(["python", *_command(training)]),
        "preset": saved.preset,
        "config": saved.config.flat(),
        "cpus": len(cpus()),
        **run_folder.made_by(folder),
        "date": time.strftime("%Y-%m-%d"),
    }
    end = curves.end(np.array(report["returns"], float), report.get("success"))
    return [head, *curves.evaluations(rows), end]


def stop() -> None:
    """Lets the trainings under way save their state and end; waits for them.

    In a signal's handler, too: it waits without the lock of `Popen`, which the
    interrupted thread may hold.
    """
    ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    for process in (processes := [*_under_way]):
        process.terminate()
    for process in processes:
        with contextlib.suppress(ChildProcessError):  # the other thread has seen it end
            while os.waitid(os.P_PID, process.pid, ended) is None:
                time.sleep(_POLL_SECONDS)


def _run(command: Sequence[str], log: IO[str], go_on: Callable[[], bool]) -> int:
    """Runs a training; its exit code. It is asked to end once `go_on` says no.

    The signal by which Slurm announces the end of a job goes to all of its processes,
    and would end this one unsaved: it is blocked, and `stop` sends the right one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _under_way.add(process)
    try:
        while process.poll() is None and go_on():
            time.sleep(_POLL_SECONDS)
        process.terminate()  # nothing, where it has ended
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        return process.returncode
    finally:
        _under_way.discard(process)


def play(folder: Path, episodes: int) -> dict[str, Any]:
    """What iqmjx.evaluate says of a run's policy in Gymnasium.

    Raises:
        RunError: where it says nothing, with its own line.
    """
    command = ["-m", "iqmjx.evaluate", "--checkpoint", str(folder), "--json"]
    command += ["--sim", "gymnasium", "--episodes", str(episodes)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{folder}: {done.stderr.strip() or done.returncode}")
    return json.loads(done.stdout)


def _random(run: Run) -> list[dict[str, Any]]:
    """Uniform play in Gymnasium's environment."""
    env = gymnasium_play.make(envs.REGISTRY[run.task])
    env.action_space.seed(run.seed)
    episodes = gymnasium_play.play_episodes(
        env, lambda *_: env.action_space.sample(), run.episodes, run.seed
    )
    env.close()
    head = {"task": run.task, "variant": run.variant, "seed": run.seed}
    valid, told = np.asarray(episodes.valid), episodes.succeeded
    success = None
    if told is not None:
        success = evaluation.over(np.mean, np.asarray(told)[valid])
    return [head, curves.end(np.where(valid, episodes.returns, np.nan), success)]
