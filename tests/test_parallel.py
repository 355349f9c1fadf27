"""One run on several devices and processes: the same learning as on one.

Devices are a CPU's, as many as asked for, in processes of their own.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import loop, parallel
from iqmjx.run import metrics, run_folder, saved_policy
from tests import toys
from tests.test_cli import SETTINGS, metrics_rows

TRAIN = [sys.executable, "-m", "iqmjx.train"]
LONG = [s for s in SETTINGS if "num_timesteps" not in s] + ["--num_timesteps=100000000"]


def on_devices(count, *arguments):
    """Starts a training on `count` devices; its output is kept."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
    return subprocess.Popen(
        [*TRAIN, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pair(port, *arguments):
    """Starts a training of two processes over loopback."""
    joined = ["--coordinator", f"localhost:{port}", "--num_processes", 2]
    return [on_devices(1, *arguments, *joined, "--process_id", i) for i in range(2)]


def finish(*processes, timeout=240):
    """What the processes print; each must end with code 0."""
    printed = []
    for process in processes:
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, output
        printed.append(output)
    return printed


def learned(folder):
    """The newest policy of a run, as arrays."""
    saved = saved_policy.load(folder / "policy")
    return saved.env_steps, jax.tree.leaves(saved.actor)


def assert_same_learning(folder, other, rtol=1e-4):
    (steps, ours), (other_steps, others) = learned(folder), learned(other)
    assert steps == other_steps
    for a, b in zip(ours, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)
    returns = [
        [r["eval/episode_reward"] for r in metrics.read(f) if "eval/seconds" in r]
        for f in (folder, other)
    ]
    np.testing.assert_allclose(*returns, rtol=rtol)
    assert len(returns[0]) >= 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two shards on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(on_devices(1, *SETTINGS, "--num_shards=2", "--logdir", folder))
    return folder


def test_two_devices_learn_what_one_does(alone, tmp_path):
    folder = tmp_path / "run"
    finish(on_devices(2, *SETTINGS, "--logdir", folder))
    assert run_folder.load(folder).config.num_shards == 2  # one for each device
    assert_same_learning(folder, alone)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(alone, tmp_path, free_port):
    folder = tmp_path / "run"
    first, other = finish(*pair(free_port, *SETTINGS, "--logdir", folder))
    assert "evaluation: return" in first and "env steps" not in other
    assert_same_learning(folder, alone)
    steps = [r["env_steps"] for r in metrics.read(folder) if "training/sps" in r]
    assert steps == [32 * i for i in range(1, 7)]


@pytest.mark.slow
def test_a_stop_of_one_process_stops_both_and_the_run_goes_on(tmp_path, free_port):
    folder = tmp_path / "run"
    processes = pair(free_port, *LONG, "--num_shards=2", "--logdir", folder)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and len(metrics_rows(folder)) < 4:
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = finish(*processes)
    assert "state saved" in first
    taken = metrics_rows(folder)[-1]["env_steps"]
    assert [int(p.name) for p in (folder / "checkpoints").iterdir()] == [taken]
    more = ["--resume", "--logdir", folder, "--num_timesteps"]
    finish(*pair(free_port, *more, taken + 32))
    assert metrics_rows(folder)[-1]["env_steps"] == taken + 32
    finish(on_devices(1, *more, taken + 64))  # and on one device, which has both shards
    steps = [r["env_steps"] for r in metrics_rows(folder) if "training/sps" in r]
    assert steps == sorted(set(steps)) and steps[-1] == taken + 64


@pytest.mark.slow
def test_four_devices_learn_what_one_does(tmp_path):
    for devices in (1, 2, 4):
        folder = tmp_path / str(devices)
        settings = [*SETTINGS, "--num_shards=4", "--logdir", folder]
        finish(on_devices(devices, *settings))
        assert_same_learning(folder, tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_checkpoint_of_four_devices_resumes_on_fewer(devices, tmp_path):
    """With its four shards, which is to say as on four devices."""
    ends = []
    for then in (4, devices):
        folder = tmp_path / f"then{then}"
        finish(on_devices(4, *SETTINGS, "--logdir", folder))
        more = ["--resume", "--logdir", folder, "--num_timesteps", 256]
        finish(on_devices(then, *more))
        ends.append(folder)
    assert_same_learning(*ends)


def test_a_run_on_more_devices_than_shards_is_divided_anew(alone, tmp_path):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(alone), str(run)], check=True)
    more = ["--resume", "--logdir", run, "--num_timesteps", 224]
    (said,) = finish(on_devices(4, *more))
    assert "saved in 2 shards, are divided anew into 4" in said
    assert run_folder.load(run).config.num_shards == 4
    assert metrics.read(run)[-1]["env_steps"] == 224


def test_dividing_anew_keeps_each_world_with_its_rows():
    """Shards' worlds and rows, in order, are the whole's."""
    config = toys.config(num_shards=2, max_replay_size=32)
    setup = loop.make_setup(config)
    state, _ = loop.warm_up(setup, loop.init(setup))
    state = jax.tree.map(np.asarray, toys.comparable(state))
    for shards in (1, 4, 8):
        anew = loop.regrouped(state, shards)
        obs = anew.replay.data.obs[0].reshape(shards, 4, 8 // shards, -1)
        whole = state.replay.data.obs[0].reshape(2, 4, 4, -1)  # step by step
        for step in range(4):
            rows = obs[:, step].reshape(8, -1)
            np.testing.assert_array_equal(rows, whole[:, step].reshape(8, -1))
        worlds = anew.envs.worlds.obs[0].reshape(8, -1)
        np.testing.assert_array_equal(worlds, state.envs.worlds.obs[0].reshape(8, -1))
        noise = anew.noise[0].reshape(8, -1)
        np.testing.assert_array_equal(noise, state.noise[0].reshape(8, -1))
        assert anew.replay.insert_index == 0 and anew.replay.size == 32 // shards
        half = dataclasses.replace(state.replay, insert_index=8, size=8)
        half = dataclasses.replace(state, replay=half)  # two steps of four worlds
        ring = loop.regrouped(half, shards).replay
        assert ring.insert_index == ring.size == 2 * 8 // shards
        back = loop.regrouped(anew, 2)
        jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize("algo", ["iq", pytest.param("sac", marks=pytest.mark.slow)])
def test_a_seed_among_others_is_its_solo_run(algo):
    """Over 20 chunks, to float tolerance: learner, worlds and replay."""

    def run(**changes):
        setup = loop.make_setup(toys.config(algo=algo, **changes))
        state, _ = loop.warm_up(setup, loop.init(setup))
        for _ in range(20):
            state, (_, statistics) = loop.train_chunk(setup, state)
        return state, statistics

    together, statistics = run(num_seeds=3, seed=4)
    for index, seed in ((0, 4), (2, 6)):
        solo, alone = run(seed=seed)
        for name in ("learner", "envs", "replay", "normalizer"):
            ours = jax.tree.map(
                lambda leaf, k=index: leaf[k] if leaf.ndim else leaf,
                getattr(together, name),
            )
            expected = jax.tree.map(
                lambda leaf: leaf[0] if leaf.ndim else leaf, getattr(solo, name)
            )
            for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
                if jnp.issubdtype(a.dtype, jnp.floating):  # not MuJoCo's raw doubles
                    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(statistics.loss[index], alone.loss[0], rtol=1e-3)


def test_seeds_have_folders_and_policies_of_their_own(tmp_path):
    folder = tmp_path / "run"
    (said,) = finish(on_devices(1, *SETTINGS, "--num_seeds=2", "--logdir", folder))
    assert "means over 2 seeds" in said
    assert f"--checkpoint {folder}/seed0 plays" in said
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        "checkpoints",
        "config.json",
        "seed0",
        "seed1",
    ]
    solo = tmp_path / "solo"
    finish(on_devices(1, *SETTINGS, "--seed=1", "--logdir", solo))
    assert_same_learning(folder / "seed1", solo)
    assert run_folder.load(folder / "seed1").config.seed == 1
    with pytest.raises(ValueError, match="several seeds"):
        saved_policy.locate(folder)
    more = ["--resume", "--logdir", folder, "--num_timesteps", 256]
    finish(on_devices(1, *more))
    for seed in ("seed0", "seed1"):
        steps = [
            r["env_steps"] for r in metrics.read(folder / seed) if "training/sps" in r
        ]
        assert steps == [32 * i for i in range(1, 9)]


@pytest.mark.slow
def test_seeds_lie_on_devices_of_their_own(tmp_path):
    folder, other = tmp_path / "two", tmp_path / "one"
    finish(on_devices(2, *SETTINGS, "--num_seeds=2", "--logdir", folder))
    finish(on_devices(1, *SETTINGS, "--num_seeds=2", "--logdir", other))
    assert run_folder.load(folder).config.num_shards == 1
    for seed in ("seed0", "seed1"):
        assert_same_learning(folder / seed, other / seed)


@pytest.mark.parametrize(
    ("seeds", "shards", "devices", "rows", "own"),
    [
        (1, 0, 1, 1, 1),
        (1, 0, 4, 1, 1),
        (4, 0, 2, 2, 1),
        (2, 4, 4, 2, 2),
        (3, 6, 2, 1, 3),
    ],
)
def test_devices_take_seeds_first_then_shards(seeds, shards, devices, rows, own):
    devices = [jax.devices()[0]] * devices
    layout = parallel.make_layout(seeds, shards, devices)
    assert layout.mesh.devices.shape[0] == rows and layout.own_shards == own
    assert layout.own_seeds == seeds // rows


def test_shards_that_devices_cannot_divide_are_refused():
    with pytest.raises(ValueError, match=r"--num_shards 3: .* multiple of 2"):
        parallel.make_layout(1, 3, [jax.devices()[0]] * 2)


def test_refusals_on_two_processes_are_said_once(tmp_path, free_port):
    (tmp_path / "there").write_text("")
    processes = pair(free_port, *SETTINGS, "--logdir", tmp_path)
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    errors = [line for text in said for line in text.splitlines() if "error:" in line]
    assert len(errors) == 1 and "--logdir" in errors[0]


def test_joining_needs_all_three_flags(tmp_path):
    process = on_devices(1, *SETTINGS, "--process_id", 0, "--logdir", tmp_path / "run")
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 2 and "--coordinator" in said
    assert json.dumps(said).count("error:") == 1
