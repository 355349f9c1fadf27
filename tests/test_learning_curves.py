import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iqmjx.envs.physics import native

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "--num_timesteps 512 --num_envs 8 --chunk_steps 16 --batch_size 16 --num_evals 2 "
    "--grad_updates_per_step 1 --min_replay_size 64 --max_replay_size 512 "
    "--exploration_steps 0 --hidden_sizes 16 --num_eval_envs 2"
)


def command(out, settings=SETTINGS, *more):
    return [
        *[sys.executable, ROOT / "launch/learning_curves.py", "--envs", "hopper"],
        *["--algos", "iq", "--seeds", "0,1", "--name", "tiny", "--settings", settings],
        *["--runs", out / "runs", "--out", out / "curves", *more],
    ]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True)


@pytest.mark.slow
def test_curves_end_with_a_score_and_are_not_run_again(tmp_path):
    parallel = str(min(2, native.num_threads()))
    first = run(tmp_path, SETTINGS, "--parallel", parallel)
    assert first.returncode == 0, first.stderr
    for seed in (0, 1):
        path = tmp_path / f"curves/hopper-iq-tiny-seed{seed}.jsonl"
        head, *rows, end = map(json.loads, path.read_text().splitlines())
        assert head["seed"] == seed and f"--seed {seed}" in head["command"]
        assert head["config"]["num_envs"] == 8
        assert [row["env_steps"] for row in rows] == [0, 576]
        assert len(end["returns"]) == 10
        assert end["score"] == pytest.approx(sum(end["returns"]) / 10)
    again = run(tmp_path)
    assert again.stdout.count("there already") == 2


@pytest.mark.slow
def test_an_interrupted_run_has_no_score(tmp_path):
    longer = SETTINGS.replace("512 --num_envs", "100000 --num_envs", 1)
    begun = subprocess.Popen(
        command(tmp_path, longer), stderr=subprocess.PIPE, start_new_session=True
    )
    metrics = tmp_path / "runs/hopper-iq-tiny-seed0/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.2)
    train = subprocess.check_output(["pgrep", "-P", str(begun.pid)], text=True)
    os.kill(int(train.split()[0]), signal.SIGTERM)
    _, error = begun.communicate()
    assert begun.returncode and b"stopped early" in error
    assert not list((tmp_path / "curves").iterdir())
    steps = json.loads(metrics.read_text().splitlines()[-1])["env_steps"]
    assert 0 < steps < 100_000


def test_bad_flags_are_named(tmp_path):
    asked = run(tmp_path, "", "--parallel", "1")
    assert asked.returncode == 2 and "--settings and --name go together" in asked.stderr
    asked = run(tmp_path, SETTINGS, "--parallel", "4096")
    assert asked.returncode == 2 and "--parallel 4096: give at most" in asked.stderr
    for seed in ("²", "-1", str(2**31)):
        asked = run(tmp_path, SETTINGS, "--seeds", f"0,{seed}")
        assert asked.returncode == 2
        assert asked.stderr.startswith(f"error: --seeds {seed}: give whole numbers")
