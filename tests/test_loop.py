import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqmjx import evaluation, loop, replay
from iqmjx.agents import base
from iqmjx.envs import vector
from iqmjx.run import memory
from tests import toys


@pytest.fixture(scope="module")
def setup():
    return loop.make_setup(toys.config())


def begin(setup, seed=0):
    return loop.init(setup, jax.random.key(seed))


def test_one_compilation_for_a_whole_run(setup):
    state = begin(setup)
    loop.train_chunk.clear_cache()
    for _ in range(6):
        state, metrics = loop.train_chunk(setup, state)
    assert loop.train_chunk._cache_size() == 1
    assert state.replay.size == 6 * setup.config.env_steps_per_chunk
    assert metrics.updates == 2 * setup.config.chunk_steps


def test_the_compiled_chunk_writes_the_ring_in_place():
    setup = loop.make_setup(toys.config(max_replay_size=2**16))
    abstract = jax.eval_shape(lambda: loop.init(setup, jax.random.key(0)))
    compiled = loop.train_chunk.lower(setup, abstract).compile()
    ring = memory.tree_bytes(abstract.replay)
    analysis = compiled.memory_analysis()
    assert analysis.alias_size_in_bytes >= ring
    assert analysis.temp_size_in_bytes < ring / 2
    for line in compiled.as_text().splitlines():
        assert not (" copy(" in line and f"[{2**16}," in line), line


def test_same_seed_same_run_and_seeds_differ_from_the_start(setup):
    first, again, other = begin(setup), begin(setup), begin(setup, seed=1)
    kernels = [state.learner.params.values[0]["params"] for state in (first, other)]
    assert (kernels[0]["Dense_0"]["kernel"] != kernels[1]["Dense_0"]["kernel"]).any()
    first, _ = loop.train_chunk(setup, first)
    again, _ = loop.train_chunk(setup, again)
    other, _ = loop.train_chunk(setup, other)
    chex.assert_trees_all_equal(_data(first), _data(again))
    rows = slice(0, setup.config.num_envs)  # the very first step's
    assert (first.replay.data.action[rows] != other.replay.data.action[rows]).any()


def _data(state):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def test_acts_uniformly_and_does_not_learn_until_min_replay_size():
    config = toys.config(
        num_envs=64, min_replay_size=512, chunk_steps=7, zero_last_layer=False
    )  # a policy that is anything but uniform from the start
    setup = loop.make_setup(config)
    state = begin(setup)
    before = jax.tree.map(jnp.copy, state.learner)
    state, metrics = loop.train_chunk(setup, state)  # 448 transitions
    assert metrics.updates == 0 and np.isnan(metrics.learning.loss)
    chex.assert_trees_all_equal(before, state.learner)
    counts = np.bincount(np.asarray(state.replay.data.action[:448]).ravel())
    expected = 448 * 3 / 11
    assert np.sum((counts - expected) ** 2 / expected) < 35.6  # 10 degrees, 99.99%
    state, metrics = loop.train_chunk(setup, state)
    assert metrics.updates > 0 and np.isfinite(metrics.learning.loss)


@pytest.mark.parametrize("algo", ["iq", "sac"])
def test_annealed_step_size_is_zero_after_the_last_update(algo):
    """Of the networks and of the temperature."""
    adapts = {} if algo == "sac" else {"target_entropy": 0.5}
    config = toys.config(
        algo=algo,
        anneal_learning_rate=True,
        min_replay_size=60,
        num_timesteps=96,
        **adapts,
    )
    setup = loop.make_setup(config)  # 3 chunks of 4 steps of 8 worlds
    assert config.num_updates == (3 * 4 - 7) * 2  # the 8th step has 60 transitions
    state, updates = begin(setup), 0
    for _ in range(config.num_chunks):
        state, metrics = loop.train_chunk(setup, state)
        updates += int(metrics.updates)
    assert updates == config.num_updates

    def learned():  # SAC's temperature is among its params
        temperature = getattr(state.learner, "log_temperature", None)
        return jax.tree.map(jnp.copy, (state.learner.params, temperature))

    before = learned()
    state, metrics = loop.train_chunk(setup, state)
    assert metrics.updates > 0
    chex.assert_trees_all_close(before, learned(), atol=1e-9)


def test_annealed_step_size_falls_linearly():
    """Halfway, Adam's first step moves each parameter by half the learning rate."""
    config = toys.config(anneal_learning_rate=True)
    params, gradients = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.1])
    optimizer = optax.adam(base.learning_rate(config))
    adam, schedule = optimizer.init(params)
    half = schedule._replace(count=jnp.array(config.num_updates // 2))
    updates, _ = optimizer.update(gradients, (adam, half))
    step = config.algorithm.learning_rate / 2
    np.testing.assert_allclose(updates, [-step, step], rtol=1e-4)


def test_random_actions_fade_out_over_exploration_steps():
    """The share of random actions is 1 - size / exploration_steps, then 0."""
    env = toys.Commanded()
    setup = toys.toy_setup(
        env, num_envs=64, min_replay_size=64, exploration_steps=512, chunk_steps=16
    )

    class Zero(type(setup.agent)):
        def act(self, learner, obs, key):
            return jnp.zeros((64, 2), jnp.int8)  # what random play seldom does

    fields = dataclasses.fields(setup.agent)
    agent = Zero(**{field.name: getattr(setup.agent, field.name) for field in fields})
    setup = loop.Setup(dataclasses.replace(setup.config, chunk_steps=8), env, agent)
    state, _ = loop.train_chunk(setup, begin(setup))
    random = np.asarray((state.replay.data.action != 0).any(-1)).reshape(8, 64).mean(1)
    expected = (1 - np.arange(8) / 8) * (1 - 1 / 11**2)
    np.testing.assert_allclose(random, expected, atol=0.25)
    np.testing.assert_allclose(random.mean(), expected.mean(), atol=0.08)
    state, _ = loop.train_chunk(setup, state)  # the whole ring anew
    assert (state.replay.data.action == 0).all()


@pytest.mark.parametrize(
    "name", ["multicategorical", "autoregressive", "gaussian", "flow"]
)
@pytest.mark.parametrize("algo", ["iq", "m_iq", "pcl", "trust_pcl"])
def test_every_class_trains_with_every_algorithm(name, algo):
    setup = toys.toy_setup(toys.Commanded(), policy=name, algo=algo, num_bins=5)
    state = loop.init(setup, jax.random.key(0))
    before = jax.tree.map(jnp.copy, state.learner.params)
    for _ in range(2):
        state, metrics = loop.train_chunk(setup, state)
    assert metrics.updates > 0 and jnp.isfinite(metrics.learning.loss)
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.learner.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.8
    assert state.replay.data.action.dtype == setup.agent.action_dtype


def test_replay_holds_true_transitions_of_commanded_worlds():
    """next_obs is obs + 1 even where the episode ended; terminated as commanded."""
    env = toys.Commanded()
    setup = toys.toy_setup(env, episode_length=3, num_envs=16, min_replay_size=512)
    state = begin(setup)
    for _ in range(4):
        state, metrics = loop.train_chunk(setup, state)
    data = jax.tree.map(lambda leaf: leaf[: int(state.replay.size)], state.replay.data)
    control = setup.agent.control(data.action)
    kept = np.asarray(control[:, 1] <= 0.5)  # the others diverge by command
    np.testing.assert_allclose(data.next_obs[kept, 0], data.obs[kept, 0] + 1, rtol=1e-6)
    np.testing.assert_array_equal(data.terminated[kept], control[kept, 0] > 0.5)
    np.testing.assert_array_equal(data.terminated[~kept], True)
    assert np.isfinite(data.next_obs).all() and metrics.diverged > 0


def test_raw_observations_are_stored_and_normalized_on_reading(setup):
    state = begin(setup)
    obs = np.asarray(state.envs.obs)
    state, _ = loop.train_chunk(setup, state)
    np.testing.assert_array_equal(state.replay.data.obs[: len(obs)], obs)
    assert state.normalizer.count == setup.config.env_steps_per_chunk
    seen = loop.observe(setup, state.normalizer, state.envs.obs)
    assert not np.allclose(seen, state.envs.obs)
    plain = loop.make_setup(toys.config(normalize_observations=False))
    assert (loop.observe(plain, state.normalizer, obs) == obs).all()


def test_what_is_learned_from_is_normalized():
    """Positions near 100: far from it raw, a mean square of about 1 normalized."""

    class Far(toys.Commanded):
        def _state(self, *values):
            state = super()._state(*values)
            return dataclasses.replace(state, obs=state.obs + 100)

    @dataclasses.dataclass(frozen=True, eq=False)
    class Reader:
        agent: Any

        def __getattr__(self, name):
            return getattr(self.agent, name)

        def update(self, learner, batch, key):
            both = (batch.obs, batch.next_obs)
            return learner, {"squares": jnp.stack([jnp.square(b).mean() for b in both])}

    setup = toys.toy_setup(Far(), num_envs=16)
    setup = dataclasses.replace(setup, agent=Reader(setup.agent))
    state = begin(setup)
    for _ in range(3):
        state, metrics = loop.train_chunk(setup, state)
    squares = metrics.learning["squares"]
    assert ((squares > 0.3) & (squares < 3)).all()


def test_evaluation_changes_nothing_and_is_repeatable(setup):
    state = begin(setup)
    copy = jax.tree.map(jnp.copy, state)
    state, _ = loop.train_chunk(setup, state)
    greedy = evaluation.both_modes(2)
    eval_setup = evaluation.make_setup(setup, 4, "native")
    inputs = (copy.learner, copy.normalizer, greedy, evaluation.key(0, 5))
    first = evaluation.play(eval_setup, *inputs)
    chex.assert_trees_all_equal(first, evaluation.play(eval_setup, *inputs))
    other = evaluation.play(eval_setup, *inputs[:3], evaluation.key(0, 6))
    assert (first.returns != other.returns).any()
    copy, _ = loop.train_chunk(setup, copy)
    chex.assert_trees_all_equal(_data(state), _data(copy))


class Ending(toys.Commanded):
    """Ends when the position is above 2.5: after 2 steps, or 3 from a start below."""

    def step(self, state, action):
        stepped = super().step(state, jnp.zeros_like(action))
        done = (stepped.obs[0] > 2.5) * 1.0
        return dataclasses.replace(stepped, done=done)


@pytest.mark.parametrize("greedy", [True, False])
def test_evaluation_counts_whole_episodes_of_known_worlds(greedy):
    """Nothing counts that comes after an episode's end, while others go on."""
    setup = toys.toy_setup(Ending(), episode_length=10)
    state = begin(setup)
    modes = np.full(16, greedy)
    episodes = evaluation.play(
        setup, state.learner, state.normalizer, modes, jax.random.key(0)
    )
    lengths = np.asarray(episodes.lengths)
    assert set(lengths) == {2, 3}
    # The reward is the new position: start + 1, start + 2, ...
    starts = (np.asarray(episodes.returns) - lengths * (lengths + 1) / 2) / lengths
    assert ((starts > 0) & (starts < 1)).all()
    np.testing.assert_array_equal(lengths, np.where(starts > 0.5, 2, 3))


def test_evaluation_stops_at_the_time_limit():
    setup = toys.toy_setup(Ending(), episode_length=1)
    state = begin(setup)
    episodes = evaluation.play(
        setup, state.learner, state.normalizer, np.ones(4, bool), jax.random.key(0)
    )
    np.testing.assert_array_equal(episodes.lengths, 1)


class Succeeding(Ending):
    """Says success at positions from 1 to 1.5, and wherever an episode has ended."""

    def reset(self, key):
        return self._said(super().reset(key))

    def step(self, state, action):
        return self._said(super().step(state, action))

    def _said(self, state):
        position = state.obs[0]
        success = (position > 1) & (position < 1.5) | (position > 3.5)
        return dataclasses.replace(state, metrics={"success": success * 1.0})


def test_evaluation_reports_success_at_any_step_of_an_episode():
    setup = toys.toy_setup(Succeeding(), episode_length=10)
    state, modes = begin(setup), evaluation.both_modes(32)
    episodes = evaluation.play(
        setup, state.learner, state.normalizer, modes, jax.random.key(0)
    )
    # Starts below 0.5 pass 1 to 1.5 in their first step, and take 3 steps.
    np.testing.assert_array_equal(episodes.succeeded, episodes.lengths == 3)
    row = evaluation.summarize(episodes, modes)
    assert row["eval/success"] == (np.asarray(episodes.lengths)[modes] == 3).mean()
    assert 0 < row["eval/sampled_success"] < 1
    plain = evaluation.Episodes(episodes.returns, episodes.lengths, None)
    assert "eval/success" not in evaluation.summarize(plain, modes)


def test_footprint_is_what_is_allocated(setup):
    state = begin(setup)
    bank = vector.make_bank(setup.env, jax.random.key(0), setup.config.num_envs)
    row = memory.tree_bytes(state.replay.data) // setup.config.max_replay_size
    parts = memory.footprint(setup)
    assert parts["replay"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.replay))
    assert parts["networks"] == memory.tree_bytes(state.learner)
    worlds = memory.tree_bytes(state.envs) + memory.tree_bytes(bank)
    assert worlds <= parts["worlds"] <= 1.1 * worlds
    assert parts["batches"] == 2 * 2 * 16 * row


def test_a_replay_larger_than_memory_is_refused(setup, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 60_000_000)
    config = toys.config(max_replay_size=2**20)
    large = loop.make_setup(config)
    with pytest.raises(
        ValueError, match=r"--max_replay_size 1048576: .*would fit"
    ) as e:
        memory.check(memory.footprint(large), config)
    fit = int(str(e.value).split("--max_replay_size ")[-1].split()[0])
    smaller = toys.config(max_replay_size=fit)
    memory.check(memory.footprint(loop.make_setup(smaller)), smaller)


def test_replay_example_types():
    data = jax.eval_shape(
        lambda: loop.init(loop.make_setup(toys.config()), jax.random.key(0))
    ).replay.data
    assert isinstance(data, replay.Transition)
    assert data.action.dtype == jnp.int8 and data.obs.dtype == jnp.float32
