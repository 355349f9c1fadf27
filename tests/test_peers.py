"""launch/compare_peers.py and what it times: what is refused, and the rates' unit."""

import json
import subprocess
import sys

import pytest

from iqmjx import command_line
from iqmjx.errors import UsageError
from launch import compare_peers, peer_rates
from tests import test_cli

SETTINGS = {
    "env": "hopper",
    "algo": "iq",
    "num_timesteps": 1024,
    "num_envs": 8,
    "batch_size": 32,
    "grad_updates_per_step": 1,
    "min_replay_size": 64,
    "max_replay_size": 1024,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--env", "pen"), ("--rounds", "0"), ("--peer_share", "0"), ("--peer_share", "2")],
)
def test_flags_are_refused(flag, value):
    command_line.parse(compare_peers.FLAGS, [flag, value])
    with pytest.raises(UsageError, match=flag):
        compare_peers._check_flags()
    compare_peers.FLAGS[flag.removeprefix("--")].unparse()


def test_a_rate_is_of_env_steps_between_two_readings():
    assert peer_rates._rate((1000, 5.0), (4000, 6.5)) == 2000.0


def test_our_trainer_is_timed_by_its_own_rows(monkeypatch):
    seen = []
    monkeypatch.setattr(
        peer_rates, "_rate", lambda first, last: seen.append((first, last)) or 1.0
    )
    assert peer_rates.iqmjx(SETTINGS) == 1.0
    ((steps, seconds), (last_steps, last_seconds)) = seen[0]
    assert 64 < steps < last_steps >= 1024 and seconds < last_seconds


@pytest.mark.slow
def test_sbx_is_installed_and_compared(tmp_path):
    flags = ("--env", "hopper", "--num_timesteps", "40000", "--rounds", "1")
    command = [
        sys.executable,
        "launch/compare_peers.py",
        "--out",
        str(tmp_path),
        *flags,
    ]
    environment = test_cli.environment()
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    told = json.loads((tmp_path / "hopper.json").read_text())
    assert told["peer_versions"]["sbx-rl"]
    rates = {
        name: row["env_steps_per_second"] for name, row in told["trainers"].items()
    }
    assert all(rate[0] > 0 for rate in rates.values()) and len(rates) == 3
    assert told["trainers"]["sbx SAC"]["ratio"] == 1.0
    assert "| iqmjx IQ |" in said.stdout
