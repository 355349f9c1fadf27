import dataclasses

import pytest

from iqmjx import presets
from iqmjx.config import Config


def test_layers_win_in_order_and_say_so():
    resolved = presets.resolve({"env": "Humanoid-v5", "batch_size": 128}, "cpu")
    assert resolved.config.env == "humanoid" and resolved.config.batch_size == 128
    assert resolved.sources["batch_size"] == "flag"
    assert resolved.sources["discounting"] == "default"
    task = presets.TASKS["cpu", "humanoid"]
    assert resolved.config.grad_updates_per_step == task["grad_updates_per_step"]
    assert resolved.sources["grad_updates_per_step"] == "preset cpu, task humanoid"
    assert set(resolved.sources) == {f.name for f in dataclasses.fields(Config)}


def test_an_algorithm_on_a_task_wins_over_the_algorithm_and_a_flag_over_both():
    given = {"env": "pen", "algo": "m_iq", "temperature": 0.5}
    resolved = presets.resolve(given, "cpu")
    assert resolved.config.value_scale == 300  # over the algorithm's 1
    assert resolved.sources["value_scale"] == "preset cpu, task pen, algo m_iq"
    assert resolved.config.temperature == 0.5
    assert presets.resolve({"env": "pen", "algo": "sac"}, "cpu").config.value_scale == 1


def test_m_iq_is_iq_with_munchausen_and_a_flag_wins():
    assert presets.resolve({"algo": "iq"}).config.munchausen == 0
    assert presets.resolve({"algo": "m_iq"}).config.munchausen == 0.9
    given = presets.resolve({"algo": "m_iq", "munchausen": 0.5})
    assert given.config.munchausen == 0.5 and given.sources["munchausen"] == "flag"


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_valid(preset):
    layers = (presets.PRESETS, presets.TASKS)
    before = repr(layers)
    config = presets.resolve({"env": "halfcheetah"}, preset).config
    hash(config)  # a static argument of jitted functions
    assert repr(layers) == before


def test_paper_preset_is_the_paper():
    config = presets.resolve({}, "paper").config
    assert config.replay_ratio == 256 and config.max_replay_size == 1_000_000
    assert not (config.scaled_softmax or config.layer_norm)
    assert not (config.zero_last_layer or config.normalize_observations)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"env": "humanoyd"}, "--env humanoyd: .*humanoid"),
        ({"env": "Humanoid-v4"}, "--env Humanoid-v4"),
        ({"algo": "dqn"}, "--algo dqn: choose one of iq, m_iq"),
        ({"physics": "bullet"}, "--physics bullet"),
        ({"num_envs": 100}, "--max_replay_size 32768: .*--num_envs 100.*32700"),
        (
            {"min_replay_size": 2000, "max_replay_size": 1280},
            "--min_replay_size 2000: .*at most --max_replay_size 1280",
        ),
        ({"exploration_steps": 2**21}, "--exploration_steps 2097152: .*at most"),
        ({"target_entropy": 1.5}, "--target_entropy 1.5"),
        ({"advantage_scale": 0.0}, "--advantage_scale 0.0: give a number above 0"),
        ({"value_scale": 0.0}, "--value_scale 0.0: give a number above 0"),
        ({"temperature": -0.1}, "--temperature -0.1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"munchausen": 1.5}, "--munchausen 1.5: .*0 to 1"),
        ({"munchausen": -0.5}, "--munchausen"),
        ({"discounting": 1.01}, "--discounting"),
        ({"num_envs": 0}, "--num_envs 0"),
        ({"num_bins": 200}, "--num_bins 200"),
        ({"hidden_sizes": ()}, "--hidden_sizes"),
        ({"num_evals": -1}, "--num_evals -1"),
    ],
)
def test_bad_values_are_refused_by_flag_name(given, message):
    with pytest.raises(ValueError, match=message) as error:
        presets.resolve(given, "cpu")
    assert "\n" not in str(error.value)


def test_unknown_preset():
    with pytest.raises(ValueError, match="--preset tpu: choose one of auto, cpu"):
        presets.resolve({}, "tpu")


def test_chunks_cover_the_timesteps():
    config = presets.resolve({"num_timesteps": 8193, "env": "hopper"}, "cpu").config
    assert config.env_steps_per_chunk == 8192 and config.num_chunks == 2
