"""Numbers at the edges of their ranges: refused before a run begins, or of no harm."""

import dataclasses
import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import loop, presets
from iqmjx.envs.vector import Outcome
from iqmjx.run import memory
from iqmjx.settings import LARGEST_INT
from tests import random_flags, toys


def try_random_flags(count, seed, depth):
    """The lines of `tests.random_flags`."""
    command = [sys.executable, "-m", "tests.random_flags"]
    done = subprocess.run(
        [*command, str(count), str(seed), depth], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_random_flags_are_refused_by_name_and_advice_leads_to_a_run():
    lines = try_random_flags(30, 7, "refuse")
    refused = [line for line in lines if line["told"]]
    assert len(lines) == 30 and 10 < len(refused) < 30


@pytest.mark.slow
def test_a_thousand_random_flags():
    assert len(try_random_flags(1000, 1, "trace")) == 1000


@pytest.mark.slow
def test_random_flags_that_are_accepted_run_to_the_end():
    lines = try_random_flags(60, 2, "run")
    assert sum(line["short"] for line in lines) > 10


@pytest.mark.slow
def test_random_flags_in_processes(tmp_path):
    """Refusals name the flag, leave no folder, and take 2.5 s of a processor."""
    lines = try_random_flags(50, 3, "refuse")
    lines = [line for line in lines if line["told"] or line["short"]][:30]
    assert len(lines) == 30
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for line in lines:
        flags = random_flags.command_line(line["given"])
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "iqmjx.train", *flags, "--logdir=run"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if line["told"]:
            named = random_flags.refused_flag(line["told"][0])
            assert done.returncode == 2, done.stderr
            assert random_flags.refused_flag(done.stderr) == named
            assert not any(tmp_path.iterdir())
            assert seconds < 2.5, (seconds, done.stderr)
        else:
            assert done.returncode == 0, (flags, done.stderr)
            (tmp_path / "run").rename(tmp_path.parent / f"run{random.random()}")


# By hand: seeds, lengths and counts are int32s, a ring has up to 2^30 rows; with the
# cpu preset Hopper has 128 worlds, chunks of 64 vector steps, and 16 updates for each.
LARGEST = {
    "seed": 2**31 - 1,
    "num_seeds": 128,
    "num_envs": 2**30,
    "episode_length": 2**31 - 1,
    "chunk_steps": (2**31 - 1) // 128,
    "grad_updates_per_step": (2**31 - 1) // 64,
    "batch_size": 2**31 - 1,
    "max_replay_size": 2**30,
    "min_replay_size": 2**15,
    "exploration_steps": 2**53,
    # The warm-up's 64 vector steps, and chunks of 1024 updates.
    "num_timesteps": 128 * (64 + 64 * ((2**31 - 1) // 1024)),
    "num_evals": 10**6,
    "num_checkpoints": 10**6,
    "num_eval_envs": 2**31 - 1,
    "num_shards": 128,
    "num_value_networks": 64,
    "learning_rate": 1,
    "discounting": 1,
    "temperature": 10,
    "target_rate": 1,
    "value_scale": 1e6,
    "num_bins": 127,
}
SMALLEST = {
    "seed": 0,
    "num_timesteps": 1,
    "min_replay_size": 0,
    "max_replay_size": 128 * 64,
    "episode_length": 1,
    "target_rate": 1e-6,
    "average_rate": 1e-6,
    "learning_rate": 1e-6,
    "temperature": 1e-6,
    "value_scale": 1e-6,
    "discounting": 0,
    "munchausen": 0,
}


def cpu(**given):
    return presets.resolve({"env": "hopper"} | given, "cpu").config


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_value_is_accepted_and_the_next_refused(name):
    largest = LARGEST[name]
    of_all_worlds = {"max_replay_size": 2**30, "chunk_steps": 1}
    more = of_all_worlds if name == "num_envs" else {}
    more |= {"chunk_steps": 1} if name == "grad_updates_per_step" else {}
    with_it = {"num_timesteps": 1} if name in ("chunk_steps", *more) else {}
    if name == "grad_updates_per_step":
        largest, with_it = 2**31 - 1, {"num_timesteps": 1, "chunk_steps": 1}
    cpu(**more | with_it | {name: largest})
    step = 128 if name == "max_replay_size" else 1
    beyond = largest + step if isinstance(largest, int) else largest * 1.01
    with pytest.raises(ValueError, match=f"^--{name} "):
        cpu(**more | with_it | {name: beyond})


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"num_envs": 10**9}, "num_envs"),
        ({"chunk_steps": 10**9}, "chunk_steps"),
        ({"grad_updates_per_step": 2**25}, "grad_updates_per_step"),
        ({"num_timesteps": 10**15}, "num_timesteps"),
    ],
)
def test_of_settings_that_are_too_large_together_the_odd_one_is_named(given, flag):
    with pytest.raises(ValueError, match=f"^--{flag} ") as error:
        cpu(**given)
    advised = int(re.findall(r"\d+", str(error.value))[-1])
    cpu(**given | {flag: advised})


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_value_is_accepted_and_less_refused(name):
    smallest = SMALLEST[name]
    cpu(**{name: smallest})
    below = smallest - 1 if isinstance(smallest, int) else smallest * 0.99
    below = 0 if name == "max_replay_size" else below
    with pytest.raises(ValueError, match=f"^--{name} "):
        cpu(**{name: below})


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"num_seeds": 3, "seed": 2**31 - 3}, None),
        ({"num_seeds": 3, "seed": 2**31 - 2}, "--seed .*at most 2147483645$"),
        ({"target_entropy": 0.0, "temperature": 1e6}, None),
        ({"target_entropy": 0.0, "temperature": 1e-6}, None),
        ({"temperature": 11}, "--temperature 11: .*to 10.0, or --target_entropy 0"),
        ({"temperature": 1e-320}, "--temperature 1e-320: give a number from 1e-06"),
        ({"discounting": 1e-320}, "--discounting 1e-320: float32 holds it as 0;"),
        ({"discounting": 1.2e-38}, None),
        ({"algo": "m_iq", "munchausen": 0}, "--munchausen 0: .* above 0 .*such as 0.9"),
        ({"algo": "trust_pcl", "munchausen": 0.0}, "--munchausen 0"),
        ({"algo": "pcl", "munchausen": 0.0}, None),
        ({"max_replay_size": 2**29, "num_seeds": 3}, "--max_replay_size 536870912:"),
        ({"seed": 10**400}, "--seed 10000"),
        ({"temperature": 10**400}, "--temperature 10000"),
        ({"hidden_sizes": (8,) * 65}, "--hidden_sizes 8,8.*1 to 64 widths"),
        ({"hidden_sizes": (8, 1)}, "--hidden_sizes 8,1: give whole numbers of at"),
    ],
)
def test_ranges_that_depend_on_other_settings(given, refused):
    if refused is None:
        cpu(**given)
        return
    with pytest.raises(ValueError, match=refused) as error:
        cpu(**given)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_last_updates_of_the_longest_run_are_like_others():
    """The counters end at 2^31 - 1, and the rates that depend on them stay rates."""
    given = {"average_rate": 1e-6, "learning_rate_decay": 1.0, "min_replay_size": 0}
    given |= {"num_timesteps": 8 * 4 * ((2**31 - 1) // 8)}
    setup = toys.toy_setup(toys.Commanded(), **given)
    with pytest.raises(ValueError, match="--num_timesteps"):
        dataclasses.replace(setup.config, num_timesteps=setup.config.num_timesteps + 1)
    state = loop.init(setup)
    steps, updates = setup.config.num_vector_steps, setup.config.num_updates

    def near_the_end(path, leaf):
        counts = jax.tree_util.keystr(path).endswith(("count", "updates"))
        return jnp.full_like(leaf, updates - 8) if counts else leaf

    learner = jax.tree_util.tree_map_with_path(near_the_end, state.learner)
    steps_before = jnp.full_like(state.steps, steps - 4)
    state = dataclasses.replace(state, learner=learner, steps=steps_before)
    before = jax.tree.map(np.asarray, state.learner.average_policy)
    state, (_, statistics) = loop.train_chunk(setup, state)
    assert state.steps == steps and state.learner.updates[0] == updates
    assert updates > LARGEST_INT - 8
    assert np.isfinite(statistics.loss).all()
    after = jax.tree.map(np.asarray, state.learner.average_policy)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-4)


def test_the_lengths_of_many_long_episodes_add_up():
    worlds = jnp.ones(4)
    ended = worlds > 0
    outcome = Outcome(
        reward=worlds,
        terminated=ended,
        truncated=~ended,
        next_obs=worlds[:, None],
        diverged=~ended,
        offender=None,
        overflowed=~ended,
        counted=ended,
        episode_return=worlds,
        length=jnp.full(4, 2**30, jnp.int32),
        metrics={},
    )
    told = loop._step_metrics(worlds[:, None], outcome, jnp.ones(()))
    assert float(told.length_sum / told.episodes) == 2**30


@pytest.mark.parametrize(
    ("given", "blamed"),
    [
        ({"max_replay_size": 2**22}, "max_replay_size"),
        ({"num_envs": 2**19, "max_replay_size": 2**19}, "num_envs"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"grad_updates_per_step": 10**6}, "grad_updates_per_step"),
        ({"hidden_sizes": (8000, 8000)}, "hidden_sizes"),
        ({"num_eval_envs": 10**6}, "num_eval_envs"),
        ({"chunk_steps": 10**7}, "chunk_steps"),
        ({"batch_size": 10**7, "num_eval_envs": 10**7}, "batch_size"),
    ],
)
def test_what_takes_the_memory_is_blamed_and_the_advice_fits(
    given, blamed, monkeypatch
):
    monkeypatch.setattr(memory, "available", lambda: 50_000_000)
    env = toys.Commanded()

    def check(given):
        setup = loop.make_setup(toys.config(**given), env)
        memory.check(memory.footprint(setup), setup.config)

    with pytest.raises(ValueError, match=f"^--{blamed} ") as error:
        check(given)
    advice = random_flags.advice(f"error: {error.value}\n")
    assert blamed in advice
    values = {name: tuple(map(int, text.split(","))) for name, text in advice.items()}
    whole = {name: v if name == "hidden_sizes" else v[0] for name, v in values.items()}
    check(given | whole)


def test_evaluations_count_and_none_do_not():
    def evaluation(**given):
        setup = toys.toy_setup(toys.Commanded(), **given)
        return memory.footprint(setup)["evaluation"]

    one_world = memory.tree_bytes(jax.eval_shape(toys.Commanded().reset, KEY))
    played = evaluation(num_eval_envs=500)
    assert played >= 2 * 500 * one_world
    assert evaluation(num_eval_envs=500, num_evals=0) == 0


@pytest.mark.parametrize(
    ("engine", "shared"), [("native", True), ("mjx", False), ("warp", False)]
)
def test_what_stepping_takes_grows_with_the_worlds_where_an_engine_s_does(
    engine, shared
):
    """By 600 evaluation worlds beside one that trains; MuJoCo has a buffer a thread."""
    setup = loop.make_setup(
        toys.config(physics=engine, num_envs=1, num_shards=1, num_eval_envs=600)
    )
    scratch = setup.env.physics.scratch_bytes
    assert scratch(1200) == scratch(1) * (1 if shared else 1200)
    parts = memory.footprint(setup)
    states = parts["evaluation"] - scratch(1200)
    assert parts["contacts"] == scratch(1)
    assert 0 < states < 50_000_000


KEY = jax.random.key(0)


def test_episodes_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    with pytest.raises(ValueError, match=r"--episodes 1000000: .* give at") as error:
        memory.check_episodes(toys.Commanded(), 10**6)
    fit = int(str(error.value).split()[-1])
    memory.check_episodes(toys.Commanded(), fit)
    assert fit > 1000
