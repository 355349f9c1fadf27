"""Everything that a GPU run's speed depends on, measured stage by stage.

    python launch/gpu_check.py
    python launch/gpu_check.py --scale smoke --out /tmp/check    # tiny, on any machine

Each stage is a process of its own, with the device to itself and a limit of its own,
and writes OUT/STAGE.json row by row; one that is there already, whole, is not run again
unless the code that it depends on has changed: the same command resumes where it
stopped, and `--stages run,training` runs some alone. OUT/summary.md tabulates what
there is. The stages, the most valuable first, each in a file of launch/gpu_stages/:

- run        a run with learning, its curve, and its score in MuJoCo C (whole_run.py);
             run_twice_the_worlds, run_four_times_the_worlds, run_door, run_pen
             likewise
- training   the whole step by iqmjx.run.throughput, and its costliest operations
- worlds, seeds, tasks
             the whole step with more worlds and samples, with several seeds, and of
             other tasks (whole_steps.py)
- updates    updates/s by batch and, at the preset's, by precision, with activations in
             bfloat16, with XLA's command buffers, and with one flat vector of
             parameters in the optimizer
- ceilings   bandwidth of a copy, and rates of matrix products by precision
- replay     inserts and samples of a full ring, and what the compiled chunk copies
- warp, native, mjx
             an engine: one control step against MuJoCo C, then env steps/s by worlds,
             for warp beside what MuJoCo Warp does of the same steps without JAX
             (physics.py)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from gpu_stages import STAGES
from gpu_stages.scales import SCALES, Check
from gpu_stages.summary import summarize

from iqmjx import command_line, strict_json
from iqmjx.commands import cli
from iqmjx.config import task_name
from iqmjx.errors import UsageError

FLAGS = flags.FlagValues()
_SCALE = flags.DEFINE_enum(
    "scale", "full", list(SCALES), "How large.", flag_values=FLAGS
)
_OUT = command_line.path(FLAGS, "out", "runs/gpu", "Where results go.")
_STAGES = flags.DEFINE_list(
    "stages", None, "Stages to run; all by default.", flag_values=FLAGS
)
_ENV = flags.DEFINE_string("env", "humanoid", "Task.", flag_values=FLAGS)
_GRACE = 30  # seconds to save a state in


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        task_name(_ENV.value)
        chosen = _STAGES.value or list(STAGES)
        for name in chosen:
            if name not in STAGES:
                raise UsageError(f"--stages {name}: choose from {', '.join(STAGES)}")
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in chosen if not _whole(out, name)]
    for name in sorted(set(chosen) - set(missing)):
        print(f"{out / name}.json: there already")
    if len(missing) == 1:
        with cli.run_errors():
            _measure(missing[0], out)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # by `finally`
    failed = [name for name in missing if not _finishes(name)]
    if failed:
        sys.exit(f"not whole: {', '.join(failed)}; the same command resumes them")


def _whole(out: Path, name: str) -> bool:
    """Whether a stage has been measured, with the code that there is now."""
    path = out / f"{name}.json"
    if not path.exists():
        return False
    result = json.loads(path.read_text())
    return result["whole"] and result.get("code") == STAGES[name].code()


def _finishes(name: str) -> bool:
    """Runs a stage in a process of its own; asks all of it to stop at its limit."""
    alone = [sys.executable, *sys.argv, f"--stages={name}"]
    process = subprocess.Popen(alone, start_new_session=True)
    try:
        return process.wait(STAGES[name].seconds) == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {STAGES[name].seconds} s", flush=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # a run under way saves its state
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return False


def _measure(name: str, out: Path) -> None:
    """Runs a stage in this process, and writes what there is of it at every row."""
    stage = STAGES[name]
    check = Check(_ENV.value, SCALES[_SCALE.value], out, stage.code())
    print(f"{name} ...", flush=True)
    path, start = check.out / f"{name}.json", time.perf_counter()

    def write(result: dict[str, Any], whole: bool) -> None:
        seconds = time.perf_counter() - start
        about = {"stage_seconds": seconds, "scale": _SCALE.value, "whole": whole}
        about["code"] = check.code
        path.write_text(strict_json.dumps(result | about, indent=1) + "\n")
        (check.out / "summary.md").write_text(summarize(check.out, STAGES))
        print(f"{path}: {seconds:.0f} s", flush=True)

    result = {}
    for result in stage.measure(check):
        write(result, whole=False)
    write(result, whole=True)


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
