"""config.json, as it is written now and as it was."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iqmjx import envs, presets
from iqmjx.run import run_folder
from tests import toys

# As written before algorithms had settings of their own, for `--env ant --preset cpu`.
OLD = """{
  "config": {
    "env": "ant", "algo": "iq", "seed": 0, "physics": "native",
    "num_timesteps": 3000000, "num_envs": 128, "episode_length": 1000,
    "chunk_steps": 64, "batch_size": 128, "grad_updates_per_step": 16,
    "min_replay_size": 8192, "exploration_steps": 32768, "max_replay_size": 32768,
    "learning_rate": 0.001, "anneal_learning_rate": true, "discounting": 0.99,
    "temperature": 0.1, "target_entropy": 0.3, "munchausen": 0.0,
    "target_rate": 0.005, "average_rate": 0.0002, "policy": "multicategorical",
    "num_bins": 11, "hidden_sizes": [256, 256], "scaled_softmax": true,
    "advantage_scale": 1.0, "value_scale": 30.0, "layer_norm": true,
    "zero_last_layer": true, "normalize_observations": true, "num_evals": 13,
    "num_eval_envs": 16, "num_checkpoints": 1
  },
  "preset": "cpu",
  "sources": {
    "env": "flag", "algo": "default", "seed": "default", "physics": "default",
    "num_timesteps": "flag", "num_envs": "preset cpu", "temperature": "preset cpu",
    "scaled_softmax": "default", "value_scale": "preset cpu"
  },
  "versions": {"jax": "0.10.2", "mujoco": "3.17.0"}
}
"""
OLD_PCL = {"algo": "pcl", "temperature": 1e-4, "target_entropy": 0.0}
OLD_SAC = {
    "algo": "sac",
    "policy": "tanh_gaussian",
    "temperature": 1.0,
    "target_entropy": 0.0,
    "value_scale": 1.0,
}


def old(folder, removed=(), **changes):
    """Writes an old file, and loads it."""
    content = json.loads(OLD)
    content["config"] |= changes
    for name in removed:
        del content["config"][name]
    (folder / "config.json").write_text(json.dumps(content))
    return run_folder.load(folder)


def expected(**given):
    """What the cpu preset is for the same command now."""
    same = {"env": "ant", "num_timesteps": 3_000_000, "num_evals": 13}
    more = {"num_checkpoints": 1, "num_shards": 1, "physics": "native"}
    more |= {"compute_dtype": "float32"}  # as before there was another
    return presets.resolve(same | more | given, "cpu").config


@pytest.mark.parametrize("changes", [{}, OLD_PCL, OLD_SAC])
def test_old_files_are_read_as_the_run_they_describe(changes, tmp_path):
    loaded = old(tmp_path, **changes)
    assert loaded.config == expected(algo=changes.get("algo", "iq"))
    assert loaded.config.noise_hold_steps == 1
    assert loaded.preset == "cpu"
    assert loaded.sources.keys() == loaded.config.flat().keys()
    assert loaded.sources["value_scale"] == "preset cpu"
    assert loaded.sources["num_seeds"] == "earlier version"
    run_folder.save(tmp_path, loaded)
    assert run_folder.load(tmp_path) == loaded


@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_old_files_name_version_1_of_the_hand_s_tasks(task, tmp_path):
    loaded = old(tmp_path, env=task, episode_length=200)
    assert loaded.config.env == f"{task}-v1"
    with pytest.raises(ValueError, match=f"env was {task}-v1, given {task}; leave"):
        run_folder.merge(loaded, {"env": task}, tmp_path)
    assert old(tmp_path, env="pen").config.env == "pen"
    nested = dataclasses.asdict(presets.resolve({"env": task}, "cpu").config)
    assert nested["env"] == task  # as files said it, before versions
    assert run_folder.config_of(nested, "config.json").env == f"{task}-v1"


@pytest.mark.parametrize("env", ["door", "door-v1", "pen", "doorsparse", "hopper"])
def test_files_name_the_version_of_a_task(env, tmp_path):
    resolved = presets.resolve({"env": env}, "cpu")
    run_folder.save(tmp_path, resolved)
    content = json.loads((tmp_path / "config.json").read_text())["config"]
    assert content["env"] == envs.REGISTRY[env].gymnasium_id
    assert run_folder.load(tmp_path) == resolved


@pytest.mark.parametrize(
    ("algo", "residual"), [("pcl", True), ("trust_pcl", True), ("m_iq", False)]
)
def test_old_residual_methods_went_by_name(algo, residual, tmp_path):
    loaded = old(tmp_path, algo=algo, munchausen=0.4).config.algorithm
    assert (loaded.residual, loaded.munchausen) == (residual, 0.4)


@pytest.mark.parametrize(("scaled", "softmax"), [(True, "shared"), (False, "raw")])
def test_the_old_softmax_was_shared_or_raw(scaled, softmax, tmp_path):
    loaded = old(tmp_path, scaled_softmax=scaled, num_value_networks=2)
    assert loaded.config.algorithm.softmax == softmax
    assert loaded.config.algorithm.num_value_networks == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"removed": ["average_rate"]}, "average_rate"),
        ({"removed": ["scaled_softmax"]}, "softmax"),
        ({"entropy_cost": 1}, "entropy_cost"),
        ({"entropy_cost": 1, "removed": ["seed"]}, "entropy_cost, seed"),
    ],
)
def test_old_files_that_say_too_little_or_too_much_are_refused(
    changes, named, tmp_path
):
    with pytest.raises(ValueError, match=rf"other settings \({named}\); use") as error:
        old(tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.fixture
def saved(tmp_path):
    resolved = presets.resolve(toys.SMALL, "cpu")
    run_folder.create(tmp_path, resolved)
    return tmp_path, resolved


def test_the_algorithm_s_settings_are_nested_and_come_back(saved):
    folder, resolved = saved
    content = json.loads((folder / "config.json").read_text())["config"]
    assert content["algorithm"]["hidden_sizes"] == [16, 16]
    assert "learning_rate" not in content
    assert run_folder.load(folder) == resolved


@pytest.mark.parametrize(
    ("where", "differing"),
    [
        ("algorithm", "average_rate"),
        ("algorithm", "no_such_setting"),
        ("config", "batch_size"),
        ("config", "no_such_setting"),
    ],
)
def test_a_run_of_another_version_is_refused_by_name(saved, where, differing):
    folder, _ = saved
    path = folder / "config.json"
    content = json.loads(path.read_text())
    part = content["config"]["algorithm"] if where == "algorithm" else content["config"]
    if part.pop(differing, None) is None:
        part[differing] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"other settings \({differing}\); use"):
        run_folder.load(folder)


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (
            "config",
            {"num_envs": 32.0},
            "num_envs 32.0: give a whole number of at least",
        ),
        ("config", {"num_envs": True}, "num_envs True: give a whole number"),
        ("config", {"seed": 2**31}, "seed 2147483648: .* at most 2147483647"),
        ("config", {"env": None}, "env None: give a name"),
        ("config", {"env": "hoper"}, "env hoper: .*did you mean hopper"),
        ("config", {"loggers": "tensorboard"}, "loggers 'tensorboard': give names"),
        ("config", {"algo": []}, "algo must be a text"),
        ("config", {"algorithm": None}, "algorithm must be an object"),
        (
            "algorithm",
            {"layer_norm": "False"},
            "layer_norm 'False': give true or false",
        ),
        (
            "algorithm",
            {"hidden_sizes": [8, "8"]},
            "hidden_sizes 8,8: give whole numbers",
        ),
        ("algorithm", {"temperature": float("nan")}, "temperature nan: give a number"),
        ("algorithm", {"temperature": 100}, "temperature 100: .*to 10.0, or"),
        ("", {"sources": None}, "sources must be an object"),
        ("", {"sources": {"env": 3}}, "sources.env 3: give a text"),
        ("", {"preset": None}, "preset must be a text"),
    ],
)
def test_values_that_no_run_can_have_are_named(where, changes, message, saved):
    folder, _ = saved
    path = folder / "config.json"
    content = json.loads(path.read_text())
    settings = content["config"]
    parts = {"": content, "config": settings, "algorithm": settings["algorithm"]}
    settings["algorithm"]["target_entropy"] = 0.3
    parts[where] |= changes
    path.write_text(json.dumps(content))
    expected = rf"^{re.escape(str(path))}: (cannot be read \()?{message}"
    with pytest.raises(ValueError, match=expected) as error:
        run_folder.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"config": {}}', '{"config": 3}', "[" * 10**5, "1" * 5000],
)
def test_files_that_are_no_config_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        run_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"munchausen": 0.5}, "munchausen was 0.0, given 0.5"),
        ({"algo": "sac"}, "algo was iq, given sac"),
        ({"algo": "m_iq", "seed": 1}, "algo was iq, given m_iq; seed was 0, given 1"),
        ({"num_seeds": 2}, "num_seeds was 1, given 2"),
        ({"num_evals": -1}, "--num_evals -1"),
    ],
)
def test_resuming_with_other_settings_is_refused(given, message, saved):
    folder, resolved = saved
    with pytest.raises(ValueError, match=message):
        run_folder.merge(resolved, given, folder)


def test_resuming_may_change_the_schedule(saved):
    folder, resolved = saved
    given = {"num_timesteps": 999, "loggers": (), "temperature": 0.1, "algo": "iq"}
    merged = run_folder.merge(resolved, given, folder)
    changed = dataclasses.replace(resolved.config, num_timesteps=999, loggers=())
    assert merged.config == changed
    assert merged.sources["loggers"] == "flag, on resume"
    assert merged.sources["temperature"] == resolved.sources["temperature"]


def test_a_changed_config_is_refused_until_it_is_accepted(saved):
    folder, resolved = saved
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # laid out otherwise: the same
    assert run_folder.load(folder) == resolved
    content["config"]["algorithm"]["discounting"] = 0.98
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json: it was changed since"):
        run_folder.load(folder)
    del content["digest"]
    path.write_text(json.dumps(content))
    assert run_folder.load(folder).config.algorithm.discounting == 0.98


def claim(folder):
    """A process that has claimed a folder, and holds it until its input ends."""
    script = (
        "import sys, pathlib; from iqmjx.run import run_folder\n"
        "with run_folder.claimed(pathlib.Path(sys.argv[1])):\n"
        "    print('claimed', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_one_process_at_a_time_trains_in_a_folder(tmp_path, end):
    folder = tmp_path / "run"
    with claim(folder) as other:
        refused = pytest.raises(ValueError, match=f"--logdir {folder}: another process")
        with refused, run_folder.claimed(folder):
            pass
        other.kill() if end == "is killed" else other.communicate("")
    with run_folder.claimed(folder):
        assert run_folder.is_empty(folder)


def test_default_folders_of_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    made = [run_folder.new_default(toys.config()) for _ in range(5)]
    names = ["hopper-iq-0-now", *(f"hopper-iq-0-now-{n}" for n in range(2, 6))]
    assert [path.name for path in made] == names
    assert all(path.is_dir() for path in made)


def test_what_counts_as_empty(tmp_path):
    assert run_folder.is_empty(tmp_path / "nowhere")
    assert run_folder.is_empty(tmp_path)
    (tmp_path / ".lock").touch()
    assert run_folder.is_empty(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert not run_folder.is_empty(tmp_path)
    with pytest.raises(ValueError, match=r"--logdir .*metrics.jsonl: it is a file"):
        run_folder.is_empty(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_the_flags_fault(tmp_path, place):
    (tmp_path / "file").touch()
    folder = tmp_path / place
    refused = pytest.raises(ValueError, match=f"--logdir {folder}: .*; give a folder")
    with refused, run_folder.claimed(folder):
        pass
    resolved = presets.resolve(toys.SMALL, "cpu")
    with pytest.raises(ValueError, match=f"--logdir {folder}: "):
        run_folder.create(folder, resolved)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    run_folder.write_whole(path, b"old")

    def fail(_self, _data):
        raise OSError("full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="full"):
        run_folder.write_whole(path, b"new")
    assert path.read_text() == "old"


def test_a_folder_is_claimed_until_it_is_left(tmp_path):
    folder = tmp_path / "run"
    assert not run_folder.is_claimed(folder) and not folder.exists()
    with run_folder.claimed(folder):
        assert run_folder.is_claimed(folder)
    assert not run_folder.is_claimed(folder)
