"""A run with learning, its curve, and its score in MuJoCo C.

Rates alone could be those of a program that learns nothing. So the preset trains from
its first step to its last by the command that users call, evaluated on the way, and the
policy is played at the end in the reference simulator.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from iqmjx.run import metrics

from .scales import Check, Results


def measure(check: Check) -> Results:
    """Yields the curve, then the score too; resumes a run that was stopped."""
    folder = check.out / "run"
    train = _train_command(check, folder)
    start = time.perf_counter()
    finished = subprocess.run(train).returncode == 0
    rows = metrics.read(folder)
    result = {
        "command": " ".join(["python", *train[1:]]),
        "seconds": time.perf_counter() - start,
        "curve": [row for row in rows if "eval/episode_reward" in row],
        "last": rows[-1],
    }
    yield result
    if not finished:
        raise RuntimeError(f"{folder}: the run failed after {rows[-1]['env_steps']}")
    evaluate = [sys.executable, "-m", "iqmjx.evaluate", "--checkpoint", str(folder)]
    evaluate += ["--sim", "native", "--json"]
    played = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, text=True)
    yield result | {"score": json.loads(played.stdout)}


def _train_command(check: Check, folder: Path) -> list[str]:
    train = [sys.executable, "-m", "iqmjx.train", "--logdir", str(folder)]
    if (folder / "config.json").exists():
        return [*train, "--resume"]
    train += ["--env", check.env, "--preset", "gpu"]
    for name, value in check.scale.settings.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        train += [f"--{name}", str(text)]
    return train
