"""Everything that a GPU run's speed depends on, measured stage by stage.

    python launch/gpu_check.py
    python launch/gpu_check.py --scale smoke --out /tmp/check    # tiny, on any machine

Each stage is a process of its own, with the device to itself, and writes OUT/STAGE.json
row by row; one that is there already, whole, is not run again: the same command resumes
where it stopped, and `--stages run,training` runs some alone. OUT/summary.md tabulates
what there is. The stages, each a file in launch/gpu_stages/:

- ceilings   bandwidth of a copy, and rates of matrix products by precision
- run        a run with learning, its curve, and its score in MuJoCo C (whole_run.py)
- training   the whole step by iqmjx.run.throughput, and its costliest operations
- updates    updates/s by batch and, at the preset's, by precision, with activations in
             bfloat16, with XLA's command buffers, and with one flat vector of
             parameters in the optimizer
- replay     inserts and samples of a full ring, and what the compiled chunk copies
- warp, native, mjx
             an engine: one control step against MuJoCo C, then env steps/s by worlds,
             for warp beside what MuJoCo Warp does of the same steps without JAX
             (physics.py)
"""

from __future__ import annotations

import json
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
    missing = [name for name in chosen if not _whole(out / f"{name}.json")]
    for name in sorted(set(chosen) - set(missing)):
        print(f"{out / name}.json: there already")
    if len(missing) == 1:
        _measure(missing[0], Check(_ENV.value, SCALES[_SCALE.value], out))
        return
    failed = []
    for name in missing:
        alone = [sys.executable, *sys.argv, f"--stages={name}"]
        failed += [name] if subprocess.run(alone).returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the same command runs them again")


def _whole(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["whole"]


def _measure(name: str, check: Check) -> None:
    """Runs a stage in this process, and writes what there is of it at every row."""
    print(f"{name} ...", flush=True)
    path, start = check.out / f"{name}.json", time.perf_counter()

    def write(result: dict[str, Any], whole: bool) -> None:
        seconds = time.perf_counter() - start
        about = {"stage_seconds": seconds, "scale": _SCALE.value, "whole": whole}
        path.write_text(strict_json.dumps(result | about, indent=1) + "\n")
        (check.out / "summary.md").write_text(summarize(check.out, STAGES))
        print(f"{path}: {seconds:.0f} s", flush=True)

    result = {}
    for result in STAGES[name](check):
        write(result, whole=False)
    write(result, whole=True)


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
