"""launch/gpu_check.py, tiny, on a CPU: every stage, and what it refuses."""

import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from iqmjx import replay
from iqmjx.replay import Transition
from launch import gpu_stages
from launch.gpu_stages import common, scales, summary
from launch.gpu_stages import replay as replay_stage

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

    changed = (tmp_path / "ceilings.json").read_text().replace(again["code"], "0" * 8)
    (tmp_path / "ceilings.json").write_text(changed)  # of other code
    assert "there already" not in call(*out).stdout


def test_a_stage_depends_on_the_code_that_it_measures():
    """And on no other: a result is kept until what it is of changes."""

    def depends(stage, path):
        patterns = gpu_stages.STAGES[stage].depends
        return any(pathlib.Path(path) in pathlib.Path().glob(p) for p in patterns)

    assert depends("run", "iqmjx/agents/iq.py") and depends("run", "envs/vector.py")
    assert depends("worlds", "iqmjx/loop.py") and not depends("warp", "iqmjx/loop.py")
    assert depends("warp", "envs/physics/warp.py")
    assert not depends("updates", "envs/physics/warp.py")
    assert depends("seeds", "iqmjx/run/throughput.py")
    assert depends("warp", "launch/gpu_stages/without_jax.py")
    assert depends("training", "launch/gpu_stages/profile.py")
    for stage in gpu_stages.STAGES.values():
        assert all(list(pathlib.Path().glob(p)) for p in stage.depends), stage.depends


def test_scales_have_worlds_for_each_engine():
    engines = {"warp", "mjx", "native"}
    assert all(set(scale.worlds) == engines for scale in scales.SCALES.values())
    assert engines < set(gpu_stages.STAGES)


def test_the_summary_of_the_results_kept_is_the_one_kept():
    kept = pathlib.Path("launch/results/gpu")
    text = summary.summarize(kept, gpu_stages.STAGES)
    assert text == (kept / "summary.md").read_text()


@pytest.mark.parametrize("leading", [(1, 1), (2, 3)])
def test_copies_of_the_ring_are_found_in_a_program_s_text(leading):
    """An insert into a ring that is not donated copies it, and one donated does not."""
    example = Transition(
        obs=jnp.zeros((*leading, 3)),
        action=jnp.zeros((*leading, 2), jnp.int8),
        reward=jnp.zeros(leading),
        discount=jnp.zeros(leading),
        weight=jnp.zeros(leading),
        next_obs=jnp.zeros((*leading, 3)),
    )
    ring = replay.init(example, 960)
    new = jax.tree.map(lambda leaf: leaf[:, :, :32], ring.data)

    def copies(**donated):
        program = jax.jit(replay.add, **donated).lower(ring, new).compile()
        return replay_stage._copies(program.as_text(), {960})

    assert len(copies()) >= 6 and copies(donate_argnums=0) == []


@pytest.mark.parametrize("worlds", [8, 24])
def test_the_ring_of_any_number_of_worlds_has_whole_inserts(tmp_path, worlds):
    check = scales.Check("hopper", scales.SCALES["smoke"], tmp_path)
    config = common.config(check, num_envs=worlds)
    assert config.num_envs == worlds
    assert config.max_replay_size == 1024 // worlds * worlds
    assert common.config(check).max_replay_size == 1024


@pytest.mark.slow
def test_every_stage(tmp_path):
    said = call("--out", str(tmp_path), "--env", "hopper")
    assert said.returncode == 0, said.stderr
    results = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")
    }
    engines = {"warp", "mjx", "native"}
    assert set(results) == set(gpu_stages.STAGES)
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
    for name in (name for name in results if name.startswith("run")):
        assert results[name]["curve"][-1]["env_steps"] >= 512
        assert results[name]["score"]["sim"] == "native"
    assert [row["num_envs"] for row in results["worlds"]["rates"]] == [16, 32]
    assert [row["batch_size"] for row in results["worlds"]["rates"]] == [64, 128]
    assert [row["num_seeds"] for row in results["seeds"]["rates"]] == [4, 16]
    assert results["tasks"]["rates"][0]["env"] == "halfcheetah"


@pytest.mark.slow
def test_a_stage_at_its_limit_saves_its_run_and_is_resumed(tmp_path):
    command = [*COMMAND, "--out", str(tmp_path), "--env", "hopper", "--stages"]
    process = subprocess.Popen([*command, "run,ceilings"], stdout=subprocess.DEVNULL)
    for _ in range(3000):
        rows = [path.read_text() for path in tmp_path.glob("run-*/metrics.jsonl")]
        if any("training/reward" in text for text in rows):
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(120)
    assert list(tmp_path.glob("run-*/checkpoints/*"))
    assert not json.loads((tmp_path / "run.json").read_text())["whole"]
    said = subprocess.run([*command, "run"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "--resume" in json.loads((tmp_path / "run.json").read_text())["command"]
