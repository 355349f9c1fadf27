"""A published SAC on the same task, to hold `--algo sac` against: sbx from PyPI.

    pip install sbx-rl
    python launch/sbx_check.py --env halfcheetah --num_timesteps 3000000

Worlds, updates per step, batch and replay are those of iqmjx's cpu preset for the task;
everything else is sbx's own. Writes a curve as iqmjx.experiment does, of the variant
sbx-sac, so that `python -m iqmjx.report` shows it beside iqmjx's.
"""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

import gymnasium
import numpy as np
import peer_rates
from absl import app, flags

from iqmjx import envs, presets
from iqmjx.experiments import curves

_ENV = flags.DEFINE_string("env", "halfcheetah", "Task.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed.")
_STEPS = flags.DEFINE_integer("num_timesteps", 3_000_000, "Env steps.")
_RATE = flags.DEFINE_float("learning_rate", 3e-4, "Adam's step size (sbx's: 3e-4).")
_EVALS = flags.DEFINE_integer("num_evals", 10, "Evaluations, the last at the end.")
_NAME = flags.DEFINE_string("name", "", "What to call a run with another setting.")
_OUT = flags.DEFINE_string("out", "checkpoints/sbx/curves", "Where curves go.")
_EPISODES = 10


def main(_) -> None:
    """Runs the command."""
    # Not among iqmjx's requirements.
    import sbx  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common import (  # pyright: ignore[reportMissingImports]
        evaluation,
    )

    config = presets.resolve({"env": _ENV.value, "algo": "sac"}, "cpu").config
    task, seed = config.env, _SEED.value
    gymnasium_id = str(envs.REGISTRY[task].gymnasium_id)
    settings = config.flat() | {"seed": seed, "gymnasium_id": gymnasium_id}
    model = peer_rates.sbx_model(sbx, settings, _RATE.value)
    env = gymnasium.make(gymnasium_id)
    env.reset(seed=seed)
    rows, returns, start = [], [], time.perf_counter()
    for part in range(_EVALS.value):
        steps = _STEPS.value * (part + 1) // _EVALS.value - model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        returns, _ = evaluation.evaluate_policy(
            model, env, _EPISODES, return_episode_rewards=True, warn=False
        )
        mean = sum(returns) / len(returns)
        rows.append(
            {"env_steps": model.num_timesteps, "return": mean, "seconds": seconds}
        )
        print(rows[-1], flush=True)
    variant = "-".join(filter(None, ["sbx-sac", _NAME.value]))
    head = {
        "task": task,
        "variant": variant,
        "seed": seed,
        "command": f"python launch/sbx_check.py --env {task} --seed {seed} "
        f"--num_timesteps {_STEPS.value} --learning_rate {_RATE.value}",
        "versions": {name: metadata.version(name) for name in ("sbx-rl", "gymnasium")},
        "date": time.strftime("%Y-%m-%d"),
    }
    path = Path(_OUT.value) / f"{task}-{variant}-seed{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    curves.write(path, [head, *rows, curves.end(np.array(returns, float), None)])


if __name__ == "__main__":
    app.run(main)
