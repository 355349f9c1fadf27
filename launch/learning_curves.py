"""Learning curves: tasks x algorithms x seeds, each scored in Gymnasium at its end.

    python launch/learning_curves.py --envs halfcheetah --algos iq,sac --seeds 0,1,2

Runs one after the other with the platform's preset, and writes one JSONL per run to
launch/results/curves/: a line with the command, the commit and every setting, a line
per evaluation, a line with the score. A run that has its score is skipped, and one that
was interrupted is resumed, so that the same command goes on where it stopped. `--algos
random` scores uniform play.

`--parallel 2` keeps two runs going, each on its share of the CPUs: on few cores, two
runs of one core each get further than one run of two after the other. A curve's first
line says how many CPUs it had.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags

from iqmjx import envs, evaluation, strict_json
from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.run import gymnasium_play, metrics, run_folder
from iqmjx.settings import LARGEST_INT

_ENVS = flags.DEFINE_list("envs", [], "Tasks; all by default.")
_ALGOS = flags.DEFINE_list("algos", ["iq"], "iq, m_iq, sac, or random.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds.")
_SETTINGS = flags.DEFINE_string(
    "settings", "", "Further flags of iqmjx.train, as one string."
)
_NAME = flags.DEFINE_string("name", "", "What to call runs with further settings.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time.", lower_bound=1)
_EPISODES = flags.DEFINE_integer(
    "episodes",
    10,
    "In Gymnasium, at a run's end.",
    lower_bound=1,
    upper_bound=LARGEST_INT,
)
_RUNS = flags.DEFINE_string("runs", "checkpoints/curves", "Where run folders go.")
_OUT = flags.DEFINE_string("out", "launch/results/curves", "Where curves go.")

ENV_STEPS = {
    "halfcheetah": 3_000_000,
    "hopper": 2_000_000,
    "walker2d": 3_000_000,
    "ant": 3_000_000,
    "humanoid": 5_000_000,
    "door": 1_000_000,
    "hammer": 1_000_000,
    "pen": 1_000_000,
    "relocate": 1_000_000,
}
_NUM_EVALS = 21
_RANDOM_EPISODES = 100
_CAN_PIN = hasattr(os, "sched_setaffinity")  # not on macOS


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        if bool(_SETTINGS.value) != bool(_NAME.value):
            raise UsageError("--settings and --name go together: give both, or none")
        tasks = [_task(name) for name in _ENVS.value or ENV_STEPS]
        shares = _cpu_shares(_PARALLEL.value)
        seeds = [_seed(number) for number in _SEEDS.value]
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    runs = itertools.product(tasks, _ALGOS.value, seeds)
    pool = ThreadPoolExecutor(
        _PARALLEL.value, initializer=_take_cpus, initargs=(shares,)
    )

    def run(named: tuple[str, str, int]) -> None:
        try:
            print(_curve(out, *named), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # no other begins
            raise

    list(pool.map(run, runs))  # raises what a run raised


def _task(spelling: str) -> str:
    try:
        task = envs.resolve(spelling)
    except UsageError as error:
        raise UsageError(f"--envs {spelling}: {error}") from error
    if task not in ENV_STEPS:
        raise UsageError(f"--envs {spelling}: curves are of {', '.join(ENV_STEPS)}")
    return task


def _seed(number: str) -> int:
    if not (number.isdecimal() and int(number) <= LARGEST_INT):
        raise UsageError(
            f"--seeds {number}: give whole numbers from 0 to {LARGEST_INT}"
        )
    return int(number)


def _cpu_shares(parallel: int) -> list[set[int]]:
    """Each parallel run's CPUs."""
    cpus = sorted(os.sched_getaffinity(0)) if _CAN_PIN else [0] * parallel
    if parallel > len(cpus):
        raise UsageError(
            f"--parallel {parallel}: give at most {len(cpus)}, the number of CPUs"
        )
    return [set(cpus[i::parallel]) for i in range(parallel)]


def _take_cpus(shares: list[set[int]]) -> None:
    """Keeps this thread, and the processes that it starts, on a share of its own."""
    if _CAN_PIN:
        os.sched_setaffinity(0, shares.pop())


def _curve(out: Path, task: str, algo: str, seed: int) -> str:
    """Writes one curve, unless it is there; returns a line about it."""
    name = "-".join(filter(None, [task, algo, _NAME.value, f"seed{seed}"]))
    path = out / f"{name}.jsonl"
    if _finished(path):
        return f"{path}: there already"
    if algo == "random":
        rows = _random(task, seed)
    else:
        rows = _run(task, algo, seed, Path(_RUNS.value) / name)
    path.write_text("".join(strict_json.dumps(row) + "\n" for row in rows))
    return f"{path}: {rows[-1]['score']:.1f}"


def _finished(path: Path) -> bool:
    return path.exists() and "score" in json.loads(path.read_text().splitlines()[-1])


def _run(task: str, algo: str, seed: int, folder: Path) -> list[dict]:
    """Trains (or goes on), evaluates, and returns the curve's rows."""
    commit = _commit()
    command = ["-m", "iqmjx.train"]
    command += ["--env", task, "--algo", algo, "--seed", str(seed)]
    command += ["--num_timesteps", str(ENV_STEPS[task])]
    command += ["--num_evals", str(_NUM_EVALS), *_SETTINGS.value.split()]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{folder}: trains; {log} tells how far it is", flush=True)
    with log.open("a") as file:
        train = [sys.executable, *command, "--resume", "--logdir", str(folder)]
        subprocess.run(train, check=True, stdout=file, stderr=subprocess.STDOUT)
    saved, rows = run_folder.load(folder), metrics.read(folder)
    if rows[-1]["env_steps"] < saved.config.num_timesteps:
        raise RuntimeError(f"{folder}: stopped early; the same command goes on with it")
    evaluate = ["-m", "iqmjx.evaluate", "--checkpoint", str(folder), "--json"]
    evaluate += ["--sim", "gymnasium", "--episodes", str(_EPISODES.value)]
    played = subprocess.run(
        [sys.executable, *evaluate], check=True, stdout=subprocess.PIPE, text=True
    )
    report = json.loads(played.stdout)
    head = {
        "task": task,
        "algo": algo,
        "name": _NAME.value,
        "seed": seed,
        "command": " ".join(["python", *command]),
        "commit": commit,
        "preset": saved.preset,
        "config": saved.config.flat(),
        "cpus": len(os.sched_getaffinity(0)) if _CAN_PIN else os.cpu_count(),
        "versions": json.loads((folder / "config.json").read_text())["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }
    end = _score(np.array(report["returns"], float), report.get("success"))
    return [head, *_evaluations(rows), end]


def _score(returns: np.ndarray, success: float | None) -> dict:
    """A curve's last line; `success` where the task says what that is.

    Of the episodes that stayed in the numbers: the returns of the others are NaN.
    """
    score = evaluation.over(np.mean, returns[np.isfinite(returns)])
    end = {"score": score, "returns": returns.tolist()}
    return end if success is None else end | {"success": success}


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


def _evaluations(rows: list[dict]) -> list[dict]:
    """The evaluations of a run, with what training said last before each."""
    curve, last = [], {}
    for row in rows:
        if "eval/episode_reward" in row:
            seen = {
                key: last.get(f"training/{key}")
                for key in (
                    "entropy",
                    "value",
                    "target",
                    "target_std",
                    "td_error",
                    "temperature",
                    "actions_at_bounds",
                )
            }
            curve.append(
                {
                    "env_steps": row["env_steps"],
                    "return": row["eval/episode_reward"],
                    "std": row["eval/episode_reward_std"],
                    "sampled": row["eval/sampled_episode_reward"],
                    "seconds": row["eval/walltime"],
                    **seen,
                }
            )
            if "eval/success" in row:
                curve[-1]["success"] = row["eval/success"]
        else:
            last = row
    return curve


def _random(task: str, seed: int) -> list[dict]:
    """Uniform play in Gymnasium's environment."""
    env = gymnasium_play.make(envs.REGISTRY[task])
    env.action_space.seed(seed)
    episodes = gymnasium_play.play_episodes(
        env, lambda *_: env.action_space.sample(), _RANDOM_EPISODES, seed
    )
    env.close()
    head = {"task": task, "algo": "random", "name": "", "seed": seed}
    valid, told = np.asarray(episodes.valid), episodes.succeeded
    success = None
    if told is not None:
        success = evaluation.over(np.mean, np.asarray(told)[valid])
    return [head, _score(np.where(valid, episodes.returns, np.nan), success)]


if __name__ == "__main__":
    cli.run(main)
