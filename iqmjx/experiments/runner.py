"""Makes the runs of an experiment on this machine.

    OUT/runs/<run>/         run folders, and <run>.log, what iqmjx.train printed
    OUT/curves/<run>.jsonl  a run's curve, once it has its score

A run that has its curve is not made again, and one that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import numpy as np

from iqmjx import envs, evaluation
from iqmjx.envs.physics.native import cpus
from iqmjx.errors import RunError
from iqmjx.experiments import curves
from iqmjx.experiments.plan import RANDOM, Run
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


def make_all(
    out: Path,
    runs: Sequence[Run],
    parallel: int,
    say: Callable[[str], None],
    asked: Stop,
) -> bool:
    """Makes all runs that have no curve yet.

    Args:
        out: the experiment's folder.
        runs: the runs.
        parallel: how many at a time, each on a share of the CPUs: on few CPUs, two runs
            on one each get further than one run on two after the other.
        say: is told a line about each run.
        asked: what may ask to stop; the trainings under way are saved then.

    Returns:
        Whether all are made; False after a stop.

    Raises:
        RunError: where a run fails; those under way end first, and no other begins.
    """
    shares = [set(cpus()[i::parallel]) for i in range(parallel)]
    pool = ThreadPoolExecutor(parallel, initializer=_take_cpus, initargs=(shares,))

    def begin(run: Run) -> None:
        if not asked.requested:
            make(out, run, say)

    todo = [run for run in runs if not is_finished(out, run)]
    with pool, asked.deferred(lambda _: say("stopping: the runs are saved ...")):
        futures = [pool.submit(begin, run) for run in todo]
        while pending := [future for future in futures if not future.done()]:
            ended = [f for f in futures if f.done() and not f.cancelled()]
            if asked.requested or any(future.exception() for future in ended):
                pool.shutdown(wait=False, cancel_futures=True)
            if asked.requested:
                stop()
            wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
    if asked.requested:
        return False
    for future in futures:
        if not future.cancelled():
            future.result()  # raises what the run raised
    return True


def make(out: Path, run: Run, say: Callable[[str], None]) -> None:
    """Trains (or goes on), plays, and writes the curve of one run.

    Raises:
        StoppedError: where the training was asked to stop.
        RunError: where it fails, or the policy cannot be played.
    """
    for part in ("runs", "curves"):
        (out / part).mkdir(parents=True, exist_ok=True)
    rows = _random(run) if run.variant == RANDOM else _trained(out, run, say)
    path = curve_path(out, run)
    curves.write(path, rows)
    say(f"{path}: {rows[-1]['score']:.1f}")


def _take_cpus(shares: list[set[int]]) -> None:
    """Keeps this thread, and the processes that it starts, on a share of its own."""
    if _CAN_PIN:
        os.sched_setaffinity(0, shares.pop())


def _trained(out: Path, run: Run, say: Callable[[str], None]) -> list[dict[str, Any]]:
    folder, commit = out / "runs" / run.name, _commit()
    log = folder.with_suffix(".log")
    command = ["-m", "iqmjx.train", *run.arguments]
    say(f"{folder}: trains; {log} tells how far it is")
    with log.open("a") as file:
        code = _train([*command, "--resume", "--logdir", str(folder)], file)
    if code:
        last = log.read_text().strip().splitlines()[-1:]
        raise RunError(f"{folder}: {' '.join(last)} (exit code {code}; see {log})")
    saved, rows = run_folder.load(folder), metrics.read(folder)
    if not rows or rows[-1]["env_steps"] < saved.config.total_env_steps:
        raise StoppedError(f"{folder}: stopped early; the same command goes on with it")
    report = _play(folder, run)
    head = {
        "task": run.task,
        "variant": run.variant,
        "seed": run.seed,
        "command": " ".join(["python", *command]),
        "commit": commit,
        "preset": saved.preset,
        "config": saved.config.flat(),
        "cpus": len(cpus()),
        "versions": json.loads((folder / "config.json").read_text())["versions"],
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


def _train(arguments: list[str], log: IO[str]) -> int:
    """Runs iqmjx.train; its exit code.

    The signal by which Slurm announces the end of a job goes to all of its processes,
    and would end this one unsaved: it is blocked, and `stop` sends the right one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _under_way.add(process)
    try:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        return process.returncode
    finally:
        _under_way.discard(process)


def _play(folder: Path, run: Run) -> dict[str, Any]:
    """What iqmjx.evaluate says of a run's policy in Gymnasium."""
    play = ["-m", "iqmjx.evaluate", "--checkpoint", str(folder), "--json"]
    play += ["--sim", "gymnasium", "--episodes", str(run.episodes)]
    done = subprocess.run([sys.executable, *play], capture_output=True, text=True)
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


def _commit() -> str | None:
    """The checkout's commit, marked where files differ; None outside a checkout."""
    if shutil.which("git") is None:
        return None
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or None
