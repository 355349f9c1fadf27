"""Learning curves: tasks x algorithms x seeds, each scored in Gymnasium at its end.

    python launch/learning_curves.py --envs halfcheetah --algos iq,sac --seeds 0,1,2

Runs one after the other with the platform's preset, and writes one JSONL per run to
launch/results/curves/: a line with the command, a line per evaluation, a line with the
score. A run that has its score is skipped, and one that was interrupted is resumed, so
that the same command goes on where it stopped. `--algos random` scores uniform play.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
from absl import app, flags

import envs
from iqmjx import metrics, run_folder

_ENVS = flags.DEFINE_list("envs", [], "Tasks; all by default.")
_ALGOS = flags.DEFINE_list("algos", ["iq"], "iq, m_iq, sac, or random.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds.")
_SETTINGS = flags.DEFINE_string(
    "settings", "", "Further flags of iqmjx.train, as one string."
)
_NAME = flags.DEFINE_string("name", "", "What to call runs with further settings.")
_RUNS = flags.DEFINE_string("runs", "checkpoints/curves", "Where run folders go.")
_OUT = flags.DEFINE_string("out", "launch/results/curves", "Where curves go.")

ENV_STEPS = {
    "halfcheetah": 3_000_000,
    "hopper": 2_000_000,
    "walker2d": 3_000_000,
    "ant": 3_000_000,
    "humanoid": 5_000_000,
}
_NUM_EVALS = 21
_EPISODES = 10
_RANDOM_EPISODES = 100


def main(_) -> None:
    """Runs the command."""
    if bool(_SETTINGS.value) != bool(_NAME.value):
        sys.exit("--settings and --name go together: a curve is told by its name")
    tasks = [envs.resolve(name) for name in _ENVS.value or ENV_STEPS]
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        for algo in _ALGOS.value:
            for seed in map(int, _SEEDS.value):
                name = "-".join(filter(None, [task, algo, _NAME.value, f"seed{seed}"]))
                path = out / f"{name}.jsonl"
                if _finished(path):
                    print(f"{path}: there already")
                    continue
                rows = (
                    _random(task, seed)
                    if algo == "random"
                    else _run(task, algo, seed, Path(_RUNS.value) / name)
                )
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                print(f"{path}: {rows[-1]['score']:.1f}", flush=True)


def _finished(path: Path) -> bool:
    return path.exists() and "score" in json.loads(path.read_text().splitlines()[-1])


def _run(task: str, algo: str, seed: int, folder: Path) -> list[dict]:
    """Trains (or goes on), evaluates, and returns the curve's rows."""
    command = ["-m", "iqmjx.train"]
    command += ["--env", task, "--algo", algo, "--seed", str(seed)]
    command += ["--num_timesteps", str(ENV_STEPS[task])]
    command += ["--num_evals", str(_NUM_EVALS), *_SETTINGS.value.split()]
    if (folder / "checkpoints").exists() and any((folder / "checkpoints").iterdir()):
        going = ["-m", "iqmjx.train", "--resume", "--logdir", str(folder)]
    else:
        going = [*command, "--logdir", str(folder)]
    subprocess.run([sys.executable, *going], check=True)
    evaluate = ["-m", "iqmjx.evaluate", "--checkpoint", str(folder), "--json"]
    evaluate += ["--sim", "gymnasium", "--episodes", str(_EPISODES)]
    played = subprocess.run(
        [sys.executable, *evaluate], check=True, stdout=subprocess.PIPE, text=True
    )
    score = json.loads(played.stdout)
    saved = run_folder.load(folder)
    rows = metrics.read(folder)
    head = {
        "task": task,
        "algo": algo,
        "name": _NAME.value,
        "seed": seed,
        "command": " ".join(["python", *command]),
        "preset": saved.preset,
        "versions": json.loads((folder / "config.json").read_text())["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }
    return [head, *_curve(rows), {"score": score["mean"], "returns": score["returns"]}]


def _curve(rows: list[dict]) -> list[dict]:
    """The evaluations of a run, with what training said last before each."""
    curve, last = [], {}
    for row in rows:
        if "eval/episode_reward" in row:
            seen = {
                key.removeprefix("training/"): last.get(key)
                for key in (
                    "training/entropy",
                    "training/value",
                    "training/td_error",
                    "training/temperature",
                    "training/actions_at_bounds",
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
        else:
            last = row
    return curve


def _random(task: str, seed: int) -> list[dict]:
    """Uniform play in Gymnasium's environment."""
    env = gymnasium.make(envs.REGISTRY[task].gymnasium_id)
    env.action_space.seed(seed)
    returns = []
    for episode in range(_RANDOM_EPISODES):
        env.reset(seed=seed if episode == 0 else None)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    env.close()
    head = {"task": task, "algo": "random", "name": "", "seed": seed}
    return [head, {"score": float(np.mean(returns)), "returns": returns}]


if __name__ == "__main__":
    app.run(main)
