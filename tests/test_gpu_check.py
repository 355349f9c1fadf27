"""launch/gpu_check.py, tiny, on a CPU: every stage, and what it refuses."""

import json
import pathlib
import subprocess
import sys

import pytest

from launch import gpu_stages
from launch.gpu_stages import scales, summary

COMMAND = [sys.executable, "launch/gpu_check.py", "--scale", "smoke"]


def call(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_refuses_an_unknown_stage_and_task(tmp_path):
    for flag, value in (("--stages", "fysics"), ("--env", "humanoyd")):
        said = call("--out", str(tmp_path), flag, value)
        assert said.returncode == 2 and f"{flag} {value}" in said.stderr
        assert said.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_stage_is_measured_once(tmp_path):
    out = ("--out", str(tmp_path), "--stages", "ceilings")
    assert call(*out).returncode == 0
    first = (tmp_path / "ceilings.json").read_text()
    result = json.loads(first)
    assert result["copy_bytes_per_second"] > 1e6 and result["fp32_flops_per_second"] > 0
    assert "there already" in call(*out).stdout
    assert (tmp_path / "ceilings.json").read_text() == first
    assert "## ceilings" in (tmp_path / "summary.md").read_text()

    (tmp_path / "ceilings.json").write_text(json.dumps({"whole": False}))  # cut short
    assert "there already" not in call(*out).stdout
    again = json.loads((tmp_path / "ceilings.json").read_text())
    assert again["whole"] and again.keys() == result.keys()


def test_scales_have_worlds_for_each_engine():
    engines = {"warp", "mjx", "native"}
    assert all(set(scale.worlds) == engines for scale in scales.SCALES.values())
    assert engines < set(gpu_stages.STAGES)


def test_the_summary_of_the_results_kept_is_the_one_kept():
    kept = pathlib.Path("launch/results/gpu")
    text = summary.summarize(kept, gpu_stages.STAGES)
    assert text == (kept / "summary.md").read_text()


@pytest.mark.slow
def test_every_stage(tmp_path):
    said = call("--out", str(tmp_path), "--env", "hopper")
    assert said.returncode == 0, said.stderr
    results = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")
    }
    engines = {"warp", "mjx", "native"}
    assert set(results) == engines | {
        "ceilings",
        "updates",
        "replay",
        "training",
        "run",
    }
    for engine in engines:
        rates = results[engine]["rates"]
        assert rates and all(row["env_steps_per_second"] > 0 for row in rates)
    for engine in engines - {"native"}:
        assert results[engine]["largest_qpos_error"] < 1e-3
    for row in results["warp"]["rates"]:
        assert row["without_jax_env_steps_per_second"] > 0
        assert row["without_jax_median_qpos_gap"] < 1e-4
    assert any(row["half"] for row in results["updates"]["rates"])
    assert results["replay"]["ring_copies_in_the_chunk"] == []
    assert results["training"]["costliest"][0]["seconds"] > 0
    assert 0 < results["training"]["efficiency"] < 2
    assert results["run"]["curve"][-1]["env_steps"] >= 512
    assert results["run"]["score"]["sim"] == "native"
