import dataclasses
import json
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from iqmjx import acting, loop, presets
from iqmjx.errors import RunError
from iqmjx.run import checkpoint, metrics, run_folder, saved_policy, trainer
from tests import toys

EVERY = {**toys.SMALL, "num_checkpoints": 6}  # one checkpoint after each chunk
CHUNK = 32  # env steps


def start(folder, **changes):
    resolved = presets.resolve(EVERY | changes, "cpu")
    run_folder.create(folder, resolved)
    return resolved.config


def restored(folder, config):
    _, state, told = checkpoint.restore(folder, loop.make_setup(config))
    return toys.comparable(state), told


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 chunks without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    config = start(folder)
    assert trainer.train(config, folder)
    return folder, config


def test_a_new_process_continues_bit_for_bit(whole, tmp_path):
    """3 chunks, save, a new process, 3 more: the state of 6, every leaf exact."""
    folder, config = whole
    start(tmp_path, num_timesteps=3 * CHUNK)
    flags = [sys.executable, "-m", "iqmjx.train", "--resume", "--logdir", str(tmp_path)]
    trainer.train(run_folder.load(tmp_path).config, tmp_path)
    subprocess.run([*flags, "--num_timesteps", str(6 * CHUNK)], check=True)
    chex.assert_trees_all_equal(
        restored(folder, config)[0], restored(tmp_path, config)[0]
    )
    steps = [r["env_steps"] for r in metrics.read(tmp_path) if "training/sps" in r]
    assert steps == [CHUNK * i for i in range(1, 7)]


@pytest.mark.parametrize("engine", ["native", "mjx", "warp"])
@pytest.mark.parametrize("task", ["hopper", "humanoid"])
def test_a_state_of_every_engine_can_be_saved(engine, task, tmp_path):
    config = presets.resolve(EVERY | {"env": task, "physics": engine}, "cpu").config
    setup = loop.make_setup(config)

    def filled(leaf):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(7), leaf.shape)
        return jax.numpy.full(leaf.shape, 3, leaf.dtype)

    state = jax.tree.map(filled, checkpoint.abstract_state(setup))
    with checkpoint.open_store(tmp_path, state) as store:
        store.save(CHUNK, state)
    env_steps, found, told = checkpoint.restore(tmp_path, setup)
    assert env_steps == CHUNK and not told
    assert jax.numpy.issubdtype(found.key.dtype, jax.dtypes.prng_key)
    chex.assert_trees_all_equal(*map(toys.comparable, (found, state)))


def test_how_often_one_evaluates_changes_no_weight(tmp_path):
    counts, states = [], []
    for num_evals in (2, 10):
        folder = tmp_path / str(num_evals)
        config = start(
            folder,
            num_timesteps=12 * CHUNK,
            num_evals=num_evals,
            num_checkpoints=1,
        )
        trainer.train(config, folder)
        states.append(restored(folder, config)[0])
        rows = metrics.read(folder)
        counts.append(sum("eval/episode_reward" in row for row in rows))
    assert counts == [2, 10]
    chex.assert_trees_all_equal(*states)


def copy_of(folder, to):
    subprocess.run(["cp", "-r", f"{folder}/.", str(to)], check=True)
    return to


def test_only_the_newest_few_are_kept_and_the_best(whole):
    folder, _ = whole
    for kept in ("checkpoints", "policy"):
        assert sorted(os.listdir(folder / kept)) == ["160", "192"]
    rows = [r for r in metrics.read(folder) if "eval/episode_reward" in r]
    best = max(rows, key=lambda row: row["eval/episode_reward"])
    assert os.listdir(folder / "best") == [str(best["env_steps"])]


def test_the_best_is_kept_when_worse_ones_and_no_numbers_follow(whole, tmp_path):
    _, config = whole
    setup = loop.make_setup(config)
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: np.asarray(leaf[0]), actors)
    store = saved_policy.PolicyStore(tmp_path, config, (11, 3))
    store.save_if_best(1, actor, float("nan"))
    assert not os.listdir(tmp_path / "best")
    for env_steps, score in enumerate([5.0, 3.0, float("nan"), 4.0, float("inf")], 2):
        store.save_if_best(env_steps, actor, score)
    store.close()
    assert os.listdir(tmp_path / "best") == ["2"]


def test_a_saved_policy_is_the_average_and_acts_as_it_did(whole):
    folder, config = whole
    setup = loop.make_setup(config)
    _, state, _ = checkpoint.restore(folder, setup)
    saved = saved_policy.load(folder / "policy")
    assert saved.config == dataclasses.replace(config, num_shards=1)
    assert saved.env_steps == 192
    chex.assert_trees_all_equal(
        saved.actor.params, jax.tree.map(lambda x: x[0], state.learner.average_policy)
    )
    chex.assert_trees_all_equal(
        saved.actor.normalizer, jax.tree.map(lambda x: x[0], state.normalizer)
    )
    obs = state.envs.obs[0, 0]
    actors = loop.average_actors(setup, state)
    now = jax.tree.map(lambda leaf: leaf[0], actors)
    np.testing.assert_array_equal(
        acting.act_greedily(saved.policy, saved.actor, obs),
        acting.act_greedily(setup.agent.policy, now, obs),
    )


def test_a_saved_policy_keeps_the_version_of_its_task(tmp_path):
    config = toys.config(env="door")
    setup = loop.make_setup(config)
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: np.asarray(leaf[0]), actors)
    sizes = setup.env.observation_size, setup.env.action_size
    store = saved_policy.PolicyStore(tmp_path, config, sizes)
    store.save(7, actor)
    store.close()
    assert saved_policy.load(tmp_path / "policy").config.env == "door"


@pytest.mark.parametrize("algo", ["iq", "sac"])
@pytest.mark.parametrize("normalize_observations", [True, False])
def test_every_algorithms_policy_can_be_saved(algo, normalize_observations, tmp_path):
    config = toys.config(algo=algo, normalize_observations=normalize_observations)
    setup = loop.make_setup(config)
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: np.asarray(leaf[0]), actors)
    store = saved_policy.PolicyStore(tmp_path, config, (11, 3))
    store.save(7, actor)
    store.close()
    saved = saved_policy.load(tmp_path / "policy")
    assert saved.config == config
    chex.assert_trees_all_equal(saved.actor, actor)


@pytest.mark.parametrize("damage", ["truncate", "remove", "metadata"])
def test_a_damaged_newest_step_falls_back_to_the_one_before(whole, tmp_path, damage):
    folder, config = whole
    run = copy_of(folder, tmp_path)
    replay = run / "checkpoints" / "192" / "replay"
    if damage == "truncate":
        for path in replay.rglob("*"):
            if path.is_file() and path.name[0].isdigit():  # a chunk of an array
                os.truncate(path, path.stat().st_size // 2)
    elif damage == "remove":
        subprocess.run(["rm", "-r", str(replay)], check=True)
    else:
        (replay / "_METADATA").write_text("{")
    step, state, told = checkpoint.restore(run, loop.make_setup(config))
    assert step == 160 and len(told) == 1 and "step 192" in told[0]
    assert state.replay.size == 160


def test_a_resume_drops_the_rows_of_steps_taken_again(whole, tmp_path, capsys):
    folder, config = whole
    run = copy_of(folder, tmp_path)
    subprocess.run(
        ["rm", "-r", str(run / "checkpoints" / "192" / "worlds")], check=True
    )
    with (run / metrics.FILE).open("a") as file:
        file.write('{"env_steps": 19')  # cut short
    trainer.train(config, run, resume=True)
    assert "falling back" in capsys.readouterr().out
    steps = [r["env_steps"] for r in metrics.read(run) if "training/sps" in r]
    assert steps == [CHUNK * i for i in range(1, 7)]
    chex.assert_trees_all_equal(restored(folder, config)[0], restored(run, config)[0])


def test_nothing_to_restore(whole, tmp_path):
    _, config = whole
    setup = loop.make_setup(config)
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(ValueError, match="holds no step"):
        checkpoint.restore(tmp_path, setup)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds no step"):
        checkpoint.restore(tmp_path, setup)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"env": "walker2d"}, r"float32\[1, 11, 16\], not float32\[1, 17, 16\]"),
        ({"hidden_sizes": (16, 8)}, r"float32\[1, 16\], not float32\[1, 8\]"),
        ({"num_envs": 4}, r"envs.episode_return is float32\[1, 1, 8\], not .*, 4\]"),
        (
            {"max_replay_size": 1024},
            r"data.action is int8\[1, 1, 512, 3\], not .*, 1024, 3\]",
        ),
        ({"num_value_networks": 2}, r"mu.values.1.params.Dense_0.bias is missing"),
        ({"algo": "sac"}, r"average_policy.* is float32\[1, 33\], not .*\[1, 6\]"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(whole, changes, told):
    folder, _ = whole
    other = loop.make_setup(toys.config(**changes))
    with pytest.raises(ValueError, match=told) as error:
        checkpoint.restore(folder, other)
    assert "other settings" in str(error.value) and "\n" not in str(error.value)
    # Both steps are of the same settings: that is said once.
    assert str(error.value).count("steps 192, 160 cannot be read") == 1
    assert len(str(error.value)) - len(str(folder)) < 300


def test_a_run_of_which_nothing_is_whole_says_how_to_begin_anew(whole, tmp_path):
    run = copy_of(whole[0], tmp_path)
    for step in ("160", "192"):
        (run / "checkpoints" / step / "checksums.json").write_text("[" * 100_000)
    told = rf"^{run / 'checkpoints'}: .* whole .*; to begin anew, remove that folder$"
    with pytest.raises(RunError, match=told):
        trainer.train(whole[1], run, resume=True)
    subprocess.run(["rm", "-r", str(run / "checkpoints")], check=True)
    assert trainer.train(whole[1], run, resume=True)


def test_a_run_of_before_is_refused_in_one_line(whole, tmp_path):
    """Its items were policy, replay and worlds, and its policies had no folder."""
    folder, config = whole
    run = copy_of(folder, tmp_path)
    subprocess.run(["rm", "-r", str(run / "policy")], check=True)
    for step in ("160", "192"):
        saved = run / "checkpoints" / step
        (saved / "learner").rename(saved / "policy")
        (saved / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"other settings: .* is missing") as error:
        checkpoint.restore(run, loop.make_setup(config))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no saved policy"):
        saved_policy.locate(run)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path, capsys):
    folder, config = whole
    start(tmp_path)
    (tmp_path / metrics.FILE).write_text('{"env_steps": 0}\n{"env_steps": 32}\n')
    assert trainer.train(config, tmp_path, resume=True)
    assert "no checkpoint yet" in capsys.readouterr().out
    chex.assert_trees_all_equal(
        restored(folder, config)[0], restored(tmp_path, config)[0]
    )
    steps = [[r["env_steps"] for r in metrics.read(f)] for f in (folder, tmp_path)]
    assert steps[0] == steps[1]


def test_locate_takes_the_run_its_folders_and_one_step(whole):
    folder, _ = whole
    found = {
        path: saved_policy.load(saved_policy.locate(folder / path)).env_steps
        for path in ("", "policy", "policy/160", "best")
    }
    best = int(os.listdir(folder / "best")[0])
    assert found == {"": 192, "policy": 192, "policy/160": 160, "best": best}
    with pytest.raises(ValueError, match=r"no saved policy; give a run folder"):
        saved_policy.locate(folder.parent)


def test_a_damaged_policy_falls_back_to_the_one_before_and_says_so(whole, tmp_path):
    run = copy_of(whole[0], tmp_path)
    for path in (run / "policy" / "192" / "actor").rglob("*"):
        if path.is_file() and path.name.startswith("0"):  # a chunk of an array
            os.truncate(path, path.stat().st_size // 2)
    saved = saved_policy.load(run / "policy")
    assert saved.env_steps == 160
    assert len(saved.unreadable) == 1 and "step 192" in saved.unreadable[0]


def test_config_is_saved_with_sources_and_versions(whole):
    folder, config = whole
    content = json.loads((folder / "config.json").read_text())
    assert run_folder.load(folder).config == config
    assert content["sources"]["batch_size"] == "flag"
    assert content["versions"]["jax"] == jax.__version__


def test_resume_refuses_what_would_change_the_run(whole):
    folder, config = whole
    saved = run_folder.load(folder)
    with pytest.raises(ValueError, match=r"learning_rate was 0.0003, given 0.01"):
        run_folder.merge(saved, {"learning_rate": 0.01}, folder)
    same = {"learning_rate": 3e-4, "env": "Hopper-v5", "num_timesteps": 10**6}
    merged = run_folder.merge(saved, same, folder)
    assert merged.config == dataclasses.replace(config, num_timesteps=10**6)


def test_log_rows_tell_what_a_reader_needs(whole):
    rows = metrics.read(whole[0])
    learned = [row for row in rows if row.get("training/updates")]
    assert len(learned) == 5  # the warm-up is as long as a chunk
    assert "training/loss" not in rows[1] and rows[1]["training/updates"] == 0
    for row in rows[1:-1]:
        assert np.isfinite(row["task/x_velocity"])
    for key in ("loss", "td_error", "value", "target", "entropy", "grad_norm"):
        assert np.isfinite(learned[-1][f"training/{key}"])
    for key in ("training/sps", "training/walltime", "physics/overflow"):
        assert key in rows[-2]
    assert rows[0]["env_steps"] == 0 and "eval/episode_reward_std" in rows[0]
