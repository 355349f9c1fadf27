"""Runs that are killed at random moments, the same command given again and again.

Whatever the moment (imports, compiling, a chunk, an evaluation, a save), the run ends
as one that nobody touched: every number, every row, every policy.
"""

import random
import signal
import subprocess
import sys
import time

import chex
import pytest

from iqmjx import loop
from iqmjx.run import checkpoint, metrics, run_folder, saved_policy
from tests import toys
from tests.test_cli import SETTINGS

KILLS = 40
SCHEDULE = {"num_timesteps": 32 * 150, "num_evals": 15, "num_checkpoints": 30}
TIMES = ("training/sps", "training/walltime", "eval/seconds", "eval/walltime")


def begin(folder):
    """Starts the command; it begins the run, or goes on with it."""
    settings = [s for s in SETTINGS if s.split("=")[0][2:] not in SCHEDULE]
    settings += [f"--{name}={value}" for name, value in SCHEDULE.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "iqmjx.train", *settings, "--resume"]
        + ["--logdir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def rows(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in metrics.read(folder)
    ]


def end(folder):
    """All that a run leaves behind."""
    config = run_folder.load(folder).config
    steps, state, told = checkpoint.restore(folder, loop.make_setup(config))
    assert steps == config.total_env_steps and not told
    state = toys.comparable(state)
    policies = [saved_policy.load(folder / name) for name in ("policy", "best")]
    assert not any(policy.unreadable for policy in policies)
    return state, [(policy.env_steps, policy.actor) for policy in policies]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A run that nobody disturbed, and how long it took."""
    folder = tmp_path_factory.mktemp("untouched") / "run"
    start = time.monotonic()
    finish(begin(folder))
    return folder, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_however_often_a_run_is_interrupted_its_end_is_the_same(
    untouched, kind, tmp_path
):
    reference, duration = untouched
    numbers = {
        "killed": [signal.SIGKILL],
        "stopped": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    }[kind]
    draw = random.Random(kind)
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / str(runs)
        while (process := begin(folder)).returncode is None:
            try:
                process.wait(draw.uniform(0.05, duration))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(draw.choice(numbers))
            output, _ = process.communicate(timeout=120)
            wanted = -signal.SIGKILL if kind == "killed" else 0
            assert process.returncode == wanted, output
            assert "Traceback" not in output and "error" not in output, output
            kills += 1
        finish(process)
        runs += 1
        chex.assert_trees_all_equal(end(folder), end(reference))
        assert rows(folder) == rows(reference)
    print(f"{kills} times {kind}, {runs} runs, each as the one that was not")
