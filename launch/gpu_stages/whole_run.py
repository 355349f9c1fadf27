"""A run with learning, its curve, and its score in MuJoCo C.

Rates alone could be those of a program that learns nothing. So the preset trains from
its first step to its last by the command that users call, evaluated on the way, and the
policy is played at the end in the reference simulator.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from iqmjx import command_line
from iqmjx.errors import RunError
from iqmjx.run import metrics, run_folder

from . import common
from .scales import Check, Results


def measure(name: str, changes: dict[str, Any], check: Check) -> Results:
    """Yields the curve, then the score too; resumes a run that was stopped.

    Args:
        name: of the run's folder.
        changes: of the preset, as `common.changed` takes them.
        check: the scale, and where results go.
    """
    folder = check.out / f"{name}-{check.code}"
    train = _train_command(check, folder, changes)
    start = time.perf_counter()
    # It has the signal too, and saves its state: this process waits for that.
    signal.signal(signal.SIGTERM, lambda *_: None)
    done = subprocess.run(train).returncode == 0
    rows = metrics.read(folder)
    if not rows:
        raise RunError(f"{folder}: the run ended before its first evaluation")
    result = {
        "command": " ".join(["python", *train[1:]]),
        "seconds": time.perf_counter() - start,
        "curve": [row for row in rows if "eval/episode_reward" in row],
        "last": rows[-1],
    }
    yield result
    env_steps = rows[-1]["env_steps"]
    if not done or env_steps < run_folder.load(folder).config.total_env_steps:
        raise RunError(f"{folder}: the run ended after {env_steps:,} env steps")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    evaluate = [sys.executable, "-m", "iqmjx.evaluate", "--checkpoint", str(folder)]
    evaluate += ["--sim", "native", "--json"]
    played = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, text=True)
    yield result | {"score": json.loads(played.stdout)}


def _train_command(check: Check, folder: Path, changes: dict[str, Any]) -> list[str]:
    train = [sys.executable, "-m", "iqmjx.train", "--logdir", str(folder)]
    if (folder / "config.json").exists():
        return [*train, "--resume"]
    settings = {"env": check.env} | check.scale.settings
    settings |= common.changed(check, changes)
    return [*train, "--preset", "gpu", *command_line.arguments(settings)]
