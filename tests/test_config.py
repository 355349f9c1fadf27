import dataclasses
import itertools
import re

import pytest

from iqmjx import agents, command_line, envs, presets
from iqmjx.agents import iq
from iqmjx.config import Config, own_fields, setting_fields
from iqmjx.experiments import plan
from iqmjx.settings import check, setting

ALGORITHMS = tuple(agents.ALGORITHMS)
IQ = ("iq", "m_iq", "pcl", "trust_pcl")


def test_layers_win_in_order_and_say_so():
    resolved = presets.resolve({"env": "Humanoid-v5", "batch_size": 99}, "cpu")
    assert resolved.config.env == "humanoid" and resolved.config.batch_size == 99
    assert resolved.sources["batch_size"] == "flag"
    assert resolved.sources["num_bins"] == "default"
    assert resolved.config.grad_updates_per_step == 12  # over the preset's 16
    assert resolved.sources["grad_updates_per_step"] == "preset cpu, task humanoid"
    assert resolved.sources["episode_length"] == "task humanoid"
    assert resolved.sources["value_scale"] == "preset cpu, algo iq"
    assert resolved.sources.keys() == resolved.config.flat().keys()


def test_an_algorithm_on_a_task_wins_over_the_algorithm_and_a_flag_over_both():
    given = {"env": "pen", "algo": "m_iq", "temperature": 0.5}
    resolved = presets.resolve(given, "cpu")
    assert resolved.config.algorithm.value_scale == 300  # over the algorithm's 1
    assert resolved.sources["value_scale"] == "preset cpu, task pen, algo m_iq"
    assert resolved.config.algorithm.temperature == 0.5
    sac = presets.resolve({"env": "pen", "algo": "sac"}, "cpu").config.algorithm
    assert sac.value_scale == 1


def test_m_iq_and_the_residual_methods_are_iq_with_other_settings():
    found = {}
    for algo in IQ:
        config = presets.resolve({"algo": algo}, "cpu").config
        assert config.algo == algo
        assert issubclass(agents.find(algo), agents.find("iq"))
        found[algo] = (config.algorithm.munchausen, config.algorithm.residual)
    assert found == {
        "iq": (0.0, False),
        "m_iq": (0.9, False),
        "pcl": (0.0, True),
        "trust_pcl": (0.9, True),
    }
    given = presets.resolve({"algo": "m_iq", "munchausen": 0.5})
    assert given.config.algorithm.munchausen == 0.5
    assert given.sources["munchausen"] == "flag"


# The tuned values, by task: a change of one is a change of the recipe.
CPU = {
    "num_envs": 128,
    "batch_size": 128,
    "grad_updates_per_step": 16,
    "exploration_steps": 2**15,
    "max_replay_size": 2**15,
    "learning_rate": 1e-3,
    "learning_rate_decay": 1.0,
    "temperature": 0.1,
    "target_entropy": 0.3,
    "advantage_scale": 1.0,
    "softmax": "shared",
    "value_scale": 30.0,
    "average_rate": 2e-4,
    "discounting": 0.99,
}
LONG = {"exploration_steps": 2**17, "max_replay_size": 2**17}
HAND = {"noise_hold_steps": 32, "max_replay_size": 2**17}


@pytest.mark.parametrize(
    ("given", "preset", "values"),
    [
        ({"env": "ant"}, "cpu", CPU),
        ({"env": "doorsparse"}, "cpu", CPU | HAND),
        ({"env": "halfcheetah"}, "cpu", CPU | LONG | {"learning_rate": 2e-3}),
        ({"env": "walker2d"}, "cpu", CPU | LONG),
        ({"env": "hopper"}, "cpu", CPU | {"discounting": 0.995}),
        ({"env": "humanoid"}, "cpu", {"num_envs": 256, "average_rate": 5e-5}),
        (
            {"env": "ant", "algo": "m_iq"},
            "cpu",
            CPU | {"munchausen": 0.9, "value_scale": 1.0},
        ),
        (
            {"env": "halfcheetah", "algo": "sac"},
            "cpu",
            {"learning_rate": 2e-3, "temperature": 1.0, "value_scale": 1.0},
        ),
        (
            {"env": "humanoid"},
            "gpu",
            {"batch_size": 8192, "average_rate": 1e-3, "value_scale": 30.0},
        ),
        ({"env": "pensparse", "algo": "m_iq"}, "gpu", {"value_scale": 1.0}),
        ({"env": "hammer", "algo": "m_iq"}, "cpu", {"value_scale": 300.0}),
        ({"env": "door-v1", "algo": "sac"}, "cpu", {"noise_hold_steps": 32}),
        ({"env": "pensparse"}, "gpu", {"noise_hold_steps": 32}),
        ({"env": "ant"}, "cpu", {"noise_hold_steps": 1}),
        ({"env": "hammer"}, "gpu", {"max_replay_size": 2**22}),
    ],
)
def test_tuned_values(given, preset, values):
    flat = presets.resolve(given, preset).config.flat()
    assert {name: flat[name] for name in values} == values


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_valid_for_every_task_and_algorithm(preset):
    before = repr(presets.LAYERS)
    for env, algo in itertools.product(envs.REGISTRY, ALGORITHMS):
        config = presets.resolve({"env": env, "algo": algo}, preset).config
        hash(config)  # a static argument of jitted functions
        assert config.episode_length == envs.REGISTRY[env].episode_length
        assert Config.of(config.flat()) == config
    assert repr(presets.LAYERS) == before


def test_what_is_the_algorithms_own_is_set_for_the_algorithms_here_alone():
    shared = {field.name for field in dataclasses.fields(Config)}
    for layer in presets.LAYERS:
        names = set(layer.settings) - shared
        assert not names or set(layer.algo or ("any",)) <= set(ALGORITHMS), layer


PAPER = {
    "num_timesteps": 20_000_000,
    "num_envs": 1,
    "num_shards": 1,
    "chunk_steps": 1000,
    "batch_size": 256,
    "grad_updates_per_step": 1,
    "min_replay_size": 10_000,
    "exploration_steps": 0,
    "noise_hold_steps": 1,
    "max_replay_size": 1_000_000,
    "normalize_observations": False,
    "normalize_rewards": False,
    "learning_rate": 3e-4,
    "learning_rate_decay": 0.0,
    "discounting": 0.99,
    "target_rate": 0.005,
    "average_rate": 1.0,
    "hidden_sizes": (256, 256),
    "layer_norm": False,
    "zero_last_layer": False,
    "value_scale": 1.0,
    "compute_dtype": "float32",
}
PAPER_IQ = {
    "temperature": 0.01,
    "target_entropy": 0.0,
    "munchausen": 0.0,
    "residual": False,
    "policy": "multicategorical",
    "num_bins": 11,
    "softmax": "raw",
    "advantage_scale": 1.0,
    "num_value_networks": 1,
}
PAPER_ALGORITHMS = {
    "iq": PAPER_IQ,
    "m_iq": PAPER_IQ | {"munchausen": 0.9},
    "pcl": PAPER_IQ | {"residual": True, "temperature": 1e-4},
    "trust_pcl": PAPER_IQ | {"residual": True, "temperature": 1e-4, "munchausen": 0.9},
    "sac": {"temperature": 1.0},
}
NOT_LEARNING = {
    *("env", "algo", "seed", "num_seeds", "physics"),
    *("num_evals", "num_eval_envs", "num_checkpoints", "video_every", "loggers"),
}


@pytest.mark.parametrize("env", envs.REGISTRY)
@pytest.mark.parametrize("algo", PAPER_ALGORITHMS)
def test_paper_preset_is_the_paper_value_by_value(env, algo):
    """All that shapes learning, and none of it left to a default."""
    expected = PAPER | PAPER_ALGORITHMS[algo]
    expected["episode_length"] = envs.REGISTRY[env].episode_length
    if re.match("door|hammer|pen|relocate", env):
        expected["learning_rate"] = 3e-5
        if algo in ("iq", "m_iq"):
            expected["temperature"] = 1e-3
    elif env in ("humanoid", "walker2d") and algo != "sac":
        expected["learning_rate"] = 1e-4
    resolved = presets.resolve({"env": env, "algo": algo}, "paper")
    flat = resolved.config.flat()
    assert {name: flat[name] for name in flat if name not in NOT_LEARNING} == expected
    for name, source in resolved.sources.items():
        assert source != "default" or name in NOT_LEARNING, name


RECIPE = {
    "average_rate": 2e-4,
    "layer_norm": True,
    "zero_last_layer": True,
    "softmax": "shared",
    "advantage_scale": 0.1,
}


@pytest.mark.parametrize("algo", ["iq", "m_iq", "sac"])
def test_settings_are_the_paper_s_by_default_but_for_the_recipe(algo):
    """What an algorithm from elsewhere begins with that extends them."""
    expected = PAPER | PAPER_ALGORITHMS[algo] | RECIPE
    for name, field in own_fields(algo).items():
        assert field.default == expected[name], name


RANGES = {
    "learning_rate": (1e-6, 1.0),
    "discounting": (0.0, 1.0),
    "target_rate": (1e-6, 1.0),
    "average_rate": (1e-6, 1.0),
    "value_scale": (1e-6, 1e6),
    "temperature": (1e-6, 1e6),
    "target_entropy": (0.0, 1.0),
    "munchausen": (0.0, 1.0),
    "num_bins": (2, 127),
    "advantage_scale": (1e-6, 1e6),
    "num_value_networks": (1, 64),
}


@pytest.mark.parametrize("name", RANGES)
def test_settings_hold_to_the_last_number_of_their_range(name):
    low, high = RANGES[name]
    beyond = (low - 1, high + 1)
    if isinstance(low, float):
        beyond = low - 1e-7, high * (1 + 1e-7)
    for value in (low, high):
        assert getattr(iq.Settings(**{name: value}), name) == value
    for value in beyond:
        with pytest.raises(ValueError, match=f"--{name} "):
            iq.Settings(**{name: value})


def test_settings_hold_to_ranges_that_depend_on_each_other():
    for sizes in ((2,), (2,) * 64):
        assert iq.Settings(hidden_sizes=sizes).hidden_sizes == sizes
    for sizes in ((2,) * 65, (), (1,)):
        with pytest.raises(ValueError, match="--hidden_sizes"):
            iq.Settings(hidden_sizes=sizes)
    for temperature in (1e-6, 10.0):
        iq.Settings(temperature=temperature, target_entropy=0.5)
    iq.Settings(temperature=10.1)
    with pytest.raises(ValueError, match=r"--temperature 10.1: .*from 1e-06 to 10.0"):
        iq.Settings(temperature=10.1, target_entropy=0.5)
    iq.MunchausenSettings(munchausen=1e-9)
    for munchausen in (0.0, 1.0001):
        with pytest.raises(ValueError, match="--munchausen"):
            iq.MunchausenSettings(munchausen=munchausen)
    with pytest.raises(ValueError, match="--policy normal"):
        iq.Settings(policy="normal")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"env": "humanoyd"}, "--env humanoyd: .*humanoid"),
        ({"env": "Humanoid-v4"}, "--env Humanoid-v4"),
        ({"algo": "dqn"}, "--algo dqn: choose one of iq, m_iq"),
        ({"algo": "trust-pcl"}, "--algo trust-pcl: did you mean trust_pcl"),
        ({"algo": "no_module:X"}, "--algo no_module:X: there is no module no_module"),
        ({"physics": "bullet"}, "--physics bullet"),
        ({"num_envs": 100}, "--max_replay_size 32768: .*--num_envs 100.*32700"),
        (
            {"min_replay_size": 2000, "max_replay_size": 1280},
            "--min_replay_size 2000: .*at most --max_replay_size 1280",
        ),
        ({"num_shards": 3}, "--num_shards 3: .*--num_envs 256.* as 2 does"),
        ({"num_shards": -1}, "--num_shards -1: .*at least 0"),
        ({"num_seeds": 0}, "--num_seeds 0: .*from 1 to 128"),
        ({"num_envs": 0}, "--num_envs 0: give a whole number of at least 1"),
        ({"num_envs": 12.5}, "--num_envs 12.5: give a whole number"),
        ({"num_evals": -1}, "--num_evals -1: .*from 0 to 1000000"),
        ({"video_every": 1, "num_evals": 0}, "--video_every 1: .*--num_evals 0.*0$"),
        ({"video_every": 1, "env": "brax:ant"}, "--video_every 1: brax:ant brings its"),
        ({"loggers": "wandb"}, "--loggers 'wandb': give names"),
        ({"target_entropy": 1.5}, "--target_entropy 1.5"),
        ({"advantage_scale": 0.0}, "--advantage_scale 0.0: give a number from 1e-06"),
        ({"value_scale": 0.0}, "--value_scale 0.0: give a number from 1e-06"),
        ({"value_scale": float("inf")}, "--value_scale inf: give a number from 1e-06"),
        ({"temperature": -0.1}, "--temperature -0.1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"temperature": "hot"}, "--temperature 'hot': give a number"),
        ({"munchausen": 2}, "--munchausen 2: give a number from 0 to 1, such as 0.0$"),
        ({"munchausen": -0.5}, "--munchausen"),
        ({"residual": 1}, "--residual 1: give true or false"),
        ({"discounting": 1.01}, "--discounting"),
        ({"num_bins": 200}, "--num_bins 200: give a whole number from 2 to 127"),
        ({"softmax": "both"}, "--softmax both: choose one of raw, scaled, shared"),
        ({"hidden_sizes": ()}, "--hidden_sizes '': give 1 to 64 widths, such as 256"),
        ({"hidden_sizes": (16, 0)}, "--hidden_sizes 16,0: .*at least 2"),
        ({"num_bins": 5, "algo": "sac"}, "--num_bins 5: --algo sac does not have it;"),
        ({"entropy": 1}, "--entropy 1: --algo iq does not have it; .*temperature"),
        ({"algorithm": None}, "--algorithm None: --algo iq does not have it"),
    ],
)
def test_bad_values_are_refused_by_flag_name(given, message):
    with pytest.raises(ValueError, match=message) as error:
        presets.resolve(given, "cpu")
    assert "\n" not in str(error.value)


def test_a_foreign_setting_is_answered_with_the_algorithm_s_own():
    with pytest.raises(ValueError, match="its settings: ") as error:
        presets.resolve({"algo": "sac", "num_bins": 5}, "cpu")
    named = str(error.value).split("its settings: ")[1].split(", ")
    assert named == list(own_fields("sac"))


@pytest.mark.parametrize(
    "given",
    [
        {"num_envs": 100},
        {"num_envs": 60_000},
        {"num_envs": 1000, "min_replay_size": 32_700},
        {"num_envs": 7, "max_replay_size": 3, "min_replay_size": 0},
        {"min_replay_size": 10**7},
        {"min_replay_size": 10, "max_replay_size": 10, "num_envs": 5, "num_shards": 2},
        {"num_shards": 3},
        {"num_shards": 10**4},
        {"num_shards": 5, "num_envs": 64, "batch_size": 96},
    ],
)
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_fix_that_a_message_names_works(given, preset):
    with pytest.raises(ValueError) as error:
        presets.resolve(given, preset)
    flag, fix = re.match(r"--(\w+) .*?: (.*)", str(error.value)).groups()
    value = int(re.findall(r"\d+", fix)[-1])
    fixed = presets.resolve(given | {flag: value}, preset).config
    assert getattr(fixed, flag) == value


def test_random_actions_may_last_longer_than_replay_remembers():
    given = {"exploration_steps": 10**6, "max_replay_size": 2**15}
    assert presets.resolve(given, "cpu").config.exploration_steps == 10**6


def test_settings_of_another_algorithm_are_refused():
    config = presets.resolve({"algo": "sac"}, "cpu").config
    with pytest.raises(ValueError, match="--algo iq: its settings are a Settings"):
        dataclasses.replace(config, algo="iq")


@dataclasses.dataclass(frozen=True)
class Example:
    share: "float" = setting(0.5, "", above=0, at_most=1)  # noqa: RUF009
    names: tuple[str, ...] = ()
    sizes: "tuple[int, ...]" = setting((), "", at_least=2)  # noqa: RUF009
    anything: dict | None = None

    def __post_init__(self):
        check(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "--share 0: give a number above 0 and of at most 1"),
        ({"share": 1.5}, "--share 1.5"),
        ({"share": True}, "--share True"),
        ({"names": ("a", 1)}, "--names a,1: give names"),
        ({"sizes": (2, 1)}, "--sizes 2,1: give whole numbers of at least 2"),
        ({"sizes": (2.5,)}, "--sizes 2.5"),
    ],
)
def test_fields_hold_to_their_types_and_ranges(values, message):
    with pytest.raises(ValueError, match=message):
        Example(**values)


def test_fields_take_what_fits():
    example = Example(share=1, names=["a"], sizes=[2, 3], anything={})
    assert (example.names, example.sizes) == (("a",), (2, 3))


def test_every_setting_says_what_it_is():
    for algo in ALGORITHMS:
        for name, field in setting_fields(algo).items():
            assert field.metadata["help"].endswith("."), name


def test_unknown_preset():
    with pytest.raises(ValueError, match="--preset tpu: choose one of auto, cpu"):
        presets.resolve({}, "tpu")


@pytest.mark.parametrize(
    ("timesteps", "least", "warm_up_steps", "chunks", "total"),
    [
        (1000, 64, 8, 8, 64 + 8 * 128),
        (1000, 65, 9, 8, 72 + 8 * 128),  # whole vector steps
        (1000, 0, 0, 8, 8 * 128),
        (64 + 128, 64, 8, 1, 64 + 128),
        (64 + 129, 64, 8, 2, 64 + 2 * 128),  # whole chunks
        (1, 64, 8, 0, 64),  # all of it under random actions
    ],
)
def test_the_warm_up_and_chunks_cover_the_timesteps(
    timesteps, least, warm_up_steps, chunks, total
):
    given = {
        "num_timesteps": timesteps,
        "min_replay_size": least,
        "num_envs": 8,
        "chunk_steps": 16,
        "grad_updates_per_step": 3,
    }
    config = presets.resolve(given, "cpu").config
    assert config.env_steps_per_chunk == 128
    assert (config.warm_up_steps, config.num_chunks) == (warm_up_steps, chunks)
    assert config.total_env_steps == total
    assert config.env_steps_after(2) == 8 * warm_up_steps + 2 * 128
    assert config.num_updates == chunks * 16 * 3  # none in the warm-up


@pytest.mark.parametrize("algo", ["iq", "m_iq", "sac"])
def test_settings_given_as_arguments_are_the_same_settings(algo):
    """Switches, lists and numbers, those that differ from the preset's among them."""
    given = {"env": "hopper", "algo": algo, "layer_norm": False, "loggers": ()}
    flat = presets.resolve(given | {"hidden_sizes": (32, 16)}, "cpu").config.flat()
    assert plan.settings(command_line.arguments(flat)).config.flat() == flat
