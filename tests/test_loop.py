import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqmjx import agents, envs, evaluation, loop, normalize, parallel, replay
from iqmjx.agents import base
from iqmjx.envs import vector
from iqmjx.envs.physics import FAULT_CONSTRAINTS, FAULT_CONTACTS
from iqmjx.run import checkpoint, memory
from tests import toys


@pytest.fixture(scope="module")
def setup():
    return loop.make_setup(toys.config())


def warmed(setup):
    return loop.warm_up(setup, loop.init(setup))[0]


def test_one_compilation_for_a_whole_run(setup):
    loop.train_chunk.clear_cache()
    state = warmed(setup)
    for _ in range(5):
        state, _ = loop.train_chunk(setup, state)
    assert loop.train_chunk._cache_size() == 1
    config = setup.config
    assert state.replay.size == config.env_steps_after(5) == 32 + 5 * 32
    assert state.steps * config.num_envs == config.env_steps_after(5)
    assert state.learner.updates[0] == 5 * config.chunk_steps * 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"num_seeds": 3}, marks=pytest.mark.slow),
        {"num_seeds": 2, "num_shards": 2},
        pytest.param({"algo": "sac"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("program", [loop.train_chunk, loop.warm_up])
def test_the_compiled_programs_write_the_rings_in_place(program, changes):
    """No copy of a ring, no scatter (a cursor for each seed), no branch."""
    setup = loop.make_setup(toys.config(max_replay_size=2**16, **changes))
    abstract = jax.eval_shape(lambda: loop.init(setup))
    compiled = program.lower(setup, abstract).compile()
    ring = memory.tree_bytes(abstract.replay)
    analysis = compiled.memory_analysis()
    assert analysis.alias_size_in_bytes >= ring
    assert analysis.temp_size_in_bytes < ring / 2
    text = compiled.as_text()
    assert " scatter(" not in text and " conditional(" not in text
    rows = setup.config.max_replay_size // setup.shards.count
    for line in text.splitlines():
        assert not (" copy(" in line and f",{rows}," in line), line


def test_same_seed_same_run_and_seeds_differ_from_the_start(setup):
    first, again = warmed(setup), warmed(setup)
    other = warmed(loop.make_setup(toys.config(seed=1)))
    kernels = [state.learner.params.values[0]["params"] for state in (first, other)]
    assert (kernels[0]["Dense_0"]["kernel"] != kernels[1]["Dense_0"]["kernel"]).any()
    first, _ = loop.train_chunk(setup, first)
    again, _ = loop.train_chunk(setup, again)
    other, _ = loop.train_chunk(setup, other)
    chex.assert_trees_all_equal(toys.comparable(first), toys.comparable(again))
    rows = slice(0, setup.config.num_envs)  # the very first step's
    actions = [state.replay.data.action[0, 0, rows] for state in (first, other)]
    assert (actions[0] != actions[1]).any()


def test_the_warm_up_acts_uniformly_and_learns_nothing_but_statistics():
    config = toys.config(
        num_envs=64, min_replay_size=500, max_replay_size=512, zero_last_layer=False
    )  # a policy that is anything but uniform from the start
    assert config.warm_up_steps == 8  # of 64 worlds: 512 transitions
    setup = loop.make_setup(config)
    begun = loop.init(setup)
    before = jax.tree.map(jnp.copy, begun.learner)
    state, metrics = loop.warm_up(setup, begun)
    chex.assert_trees_all_equal(before, state.learner)
    assert state.steps == 8 and state.replay.size == 512
    assert state.normalizer.count[0] == 512
    counts = np.bincount(np.asarray(state.replay.data.action).ravel())
    expected = 512 * 3 / 11
    assert np.sum((counts - expected) ** 2 / expected) < 35.6  # 10 degrees, 99.99%
    np.testing.assert_allclose(
        metrics.reward, state.replay.data.reward.mean((1, 2)), rtol=1e-5
    )


def test_without_a_warm_up_training_begins_with_a_chunk():
    setup = toys.toy_setup(toys.Commanded(), min_replay_size=0)
    with pytest.raises(ValueError, match="warm_up_steps is 0: begin with train_chunk"):
        loop.warm_up(setup, loop.init(setup))
    state, (_, learning) = loop.train_chunk(setup, loop.init(setup))
    assert np.isfinite(learning.loss).all() and state.replay.size > 0


@pytest.mark.parametrize("algo", ["iq", pytest.param("sac", marks=pytest.mark.slow)])
def test_a_step_size_that_decays_wholly_is_zero_after_the_last_update(algo):
    """Of the networks and of the temperature."""
    adapts = {} if algo == "sac" else {"target_entropy": 0.5}
    config = toys.config(
        algo=algo,
        learning_rate_decay=1.0,
        min_replay_size=60,
        num_timesteps=64 + 96,
        **adapts,
    )
    setup = loop.make_setup(config)  # 8 steps of 8 worlds, and 3 chunks of 4
    assert (config.num_chunks, config.num_updates) == (3, 3 * 4 * 2)
    state = warmed(setup)
    for _ in range(config.num_chunks):
        state, _ = loop.train_chunk(setup, state)
    assert state.learner.updates[0] == config.num_updates

    def learned():  # SAC's temperature is among its params
        temperature = getattr(state.learner, "log_temperature", None)
        return jax.tree.map(jnp.copy, (state.learner.params, temperature))

    before = learned()
    state, _ = loop.train_chunk(setup, state)
    chex.assert_trees_all_close(before, learned(), atol=1e-9)


@pytest.mark.parametrize(("decay", "share"), [(1.0, 0.5), (0.9, 0.55), (0.5, 0.75)])
def test_the_step_size_falls_linearly(decay, share):
    """Halfway, Adam's first step moves parameters by this share of the rate."""
    config = toys.config(learning_rate_decay=decay)
    params, gradients = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.1])
    optimizer = optax.adam(base.learning_rate(config))
    adam, schedule = optimizer.init(params)
    half = schedule._replace(count=jnp.array(config.num_updates // 2))
    updates, _ = optimizer.update(gradients, (adam, half))
    step = config.algorithm.learning_rate * share
    np.testing.assert_allclose(updates, [-step, step], rtol=1e-4)


def test_random_actions_fade_out_over_exploration_steps():
    """The share of random actions is 1 - env steps / exploration_steps, then 0.

    Whatever the ring holds: here it is a quarter of the exploration.
    """
    setup = toys.toy_setup(
        toys.Commanded(),
        num_envs=64,
        min_replay_size=64,
        exploration_steps=512,
        max_replay_size=128,
        chunk_steps=1,
    )

    class Zero(type(setup.agent.policy)):
        def sample(self, params, obs, key, temperature):
            return jnp.zeros((*obs.shape[:-1], 2), jnp.int8)  # random play seldom does

    fields = dataclasses.fields(setup.agent.policy)
    policy = Zero(**{f.name: getattr(setup.agent.policy, f.name) for f in fields})
    agent = dataclasses.replace(setup.agent, policy=policy)
    setup = dataclasses.replace(setup, agent=agent)
    state, random = warmed(setup), []
    for _ in range(10):
        row = int(state.replay.insert_index)
        state, _ = loop.train_chunk(setup, state)
        action = state.replay.data.action[0, 0, row : row + 64]
        random.append(np.mean((action != 0).any(-1)))
    expected = np.clip(1 - np.arange(1, 11) / 8, 0, 1) * (1 - 1 / 11**2)
    np.testing.assert_allclose(random, expected, atol=0.25)
    np.testing.assert_allclose(np.mean(random), expected.mean(), atol=0.08)
    assert random[-3:] == [0, 0, 0]


def held_for(world, num_worlds, longest):
    """By hand: from 1 to the longest in equal ratios, worlds counted from 1."""
    return round(longest ** (world / num_worlds))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_world_holds_its_noise_for_steps_of_its_own(shards):
    """Random actions change when the noise does, and no two worlds share it."""
    longest, steps = 6, 25
    setup = toys.toy_setup(
        toys.Commanded(),
        num_envs=8,
        num_shards=shards,
        min_replay_size=8 * steps,
        noise_hold_steps=longest,
        max_replay_size=8 * 32,
        num_bins=101,
    )
    state = warmed(setup)
    rows = state.replay.data.action[0, :, : 8 // shards * steps]
    actions = rows.reshape(shards, steps, -1, 2).swapaxes(0, 1).reshape(steps, 8, 2)
    for world in range(1, 9):
        length = held_for(world, 8, longest)
        own = actions[:, world - 1]
        changed = (own[1:] != own[:-1]).any(-1)
        expected = [(step + world) % length == 0 for step in range(1, steps)]
        np.testing.assert_array_equal(changed, expected, str(world))
    assert [held_for(world, 8, longest) for world in (1, 8)] == [1, longest]
    assert len({tuple(a) for a in np.asarray(actions[5])}) > 6


def test_a_policy_s_actions_are_drawn_with_the_noise_that_is_held():
    """The same observation, the same action, as long as the noise is the same."""
    setup = toys.toy_setup(toys.Commanded(), num_envs=8, noise_hold_steps=8)
    learner = setup.agent.init(jax.random.key(0))
    actor = loop.actor(setup, learner, normalize.init(2))
    obs, keys = jnp.ones((8, 2)), jax.random.split(jax.random.key(1), 8)

    def actions(keys, key):
        return loop._explore(setup, jnp.asarray(0), actor, obs, keys, key)

    first = actions(keys, jax.random.key(2))
    np.testing.assert_array_equal(first, actions(keys, jax.random.key(3)))
    some = jnp.where(jnp.arange(8) < 4, keys, jax.random.split(jax.random.key(4), 8))
    changed = (first != actions(some, jax.random.key(2))).any(-1)
    assert not changed[:4].any() and changed[4:].any()


def test_without_held_noise_a_state_is_as_it_was_before_there_was_any():
    for length, there in ((1, False), (2, True)):
        setup = toys.toy_setup(toys.Commanded(), noise_hold_steps=length)
        state = jax.eval_shape(lambda setup=setup: loop.init(setup))
        names = checkpoint.named_leaves(state)
        assert any("noise" in name for name in names) == there


@pytest.mark.parametrize(
    ("name", "algo"),
    [
        ("multicategorical", "iq"),
        ("multicategorical", "m_iq"),
        ("multicategorical", "pcl"),
        ("autoregressive", "m_iq"),
        ("gaussian", "pcl"),
        ("flow", "trust_pcl"),
    ],
)
def test_every_class_and_every_algorithm_train(name, algo):
    setup = toys.toy_setup(toys.Commanded(), policy=name, algo=algo, num_bins=5)
    state = warmed(setup)
    before = jax.tree.map(jnp.copy, state.learner.params)
    state, (_, statistics) = loop.train_chunk(setup, state)
    assert jnp.isfinite(statistics.loss).all()
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.learner.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.8
    assert state.replay.data.action.dtype == setup.agent.policy.action_dtype


def test_replay_holds_true_transitions_of_commanded_worlds():
    """next_obs is obs + 1 even where the episode ended; discount as commanded."""
    env = toys.Commanded()
    setup = toys.toy_setup(env, episode_length=3, num_envs=16, min_replay_size=256)
    state, metrics = loop.warm_up(setup, loop.init(setup))
    data = jax.tree.map(lambda leaf: leaf[0, 0, :256], state.replay.data)
    control = setup.agent.policy.control(data.action)
    kept = np.asarray(control[:, 1] <= 0.5)  # the others diverge by command
    np.testing.assert_array_equal(data.weight, kept)
    np.testing.assert_allclose(data.next_obs[kept, 0], data.obs[kept, 0] + 1, rtol=1e-6)
    np.testing.assert_allclose(data.reward[kept], data.next_obs[kept, 0])
    np.testing.assert_array_equal(data.discount[kept] == 0, control[kept, 0] > 0.5)
    assert set(np.unique(data.discount)) == {0, 1}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(data))
    assert metrics.diverged[0] == (~kept).sum()


class Crowded(toys.Commanded):
    """Says its position in its metrics; contacts have no room above 2, rows above 3."""

    def _state(self, start, position, reward, done):
        state = super()._state(start, position, reward, done)
        faults = jnp.where(position > 2, FAULT_CONTACTS, 0)
        faults |= jnp.where(position > 3, FAULT_CONSTRAINTS, 0)
        return dataclasses.replace(
            state, info={"faults": faults}, metrics={"position": position}
        )


def test_metrics_of_a_warm_up_are_those_of_its_rows():
    """Of each seed, over its shards and all steps; the rows of replay tell them."""
    env = Crowded()
    setup = toys.toy_setup(
        env,
        num_envs=8,
        num_seeds=2,
        num_shards=2,
        episode_length=3,
        min_replay_size=256,
    )
    state, metrics = loop.warm_up(setup, loop.init(setup))
    assert setup.config.warm_up_steps == 32
    rows = state.replay.data
    for seed in range(2):
        reward, at_bounds, position = [], [], []
        returns, lengths, overflow, lost = [], [], 0, 0
        for shard in range(2):
            begun = {world: (0.0, 0) for world in range(4)}
            offender = None
            for row in range(32 * 4):
                bins = np.asarray(rows.action[seed, shard, row])
                control = bins / 5 - 1  # of 11
                before = float(rows.obs[seed, shard, row, 0])
                diverged = control[1] > 0.5
                sofar, length = begun[row % 4]
                after = 0 if diverged else before + 1
                sofar, length = sofar + after, length + 1
                if control[0] > 0.5 or diverged or length == 3:
                    if not diverged:
                        returns.append(sofar)
                        lengths.append(length)
                    sofar, length = 0.0, 0
                begun[row % 4] = sofar, length
                reward.append(after)
                position.append(after)
                at_bounds += [each in (0, 10) for each in bins]
                overflow += after > 2
                lost += diverged
                if diverged and offender is None:
                    offender = before, control
            place = seed, shard
            found = jax.tree.map(lambda leaf, p=place: leaf[p], metrics.offender)
            assert found.found
            np.testing.assert_allclose(found.qpos, offender[:1], rtol=1e-6)
            np.testing.assert_allclose(found.control, offender[1], atol=1e-6)
        told = jax.tree.map(lambda leaf, s=seed: leaf[s], metrics)
        assert (told.episodes, told.diverged) == (len(returns), lost)
        assert told.overflow == overflow > 0
        for name, expected in (
            ("reward", np.mean(reward)),
            ("return_sum", np.sum(returns)),
            ("length_sum", np.sum(lengths)),
            ("at_bounds", np.mean(at_bounds)),
        ):
            got = getattr(told, name)
            np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(told.task["position"], np.mean(position), rtol=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class InPlaceOf:
    """An agent, but for what a subclass does otherwise."""

    agent: Any

    def __getattr__(self, name):
        return getattr(self.agent, name)


def test_statistics_of_a_chunk_are_the_means_of_its_steps():
    class Counter(InPlaceOf):
        def update(self, learner, batch, key, shards):
            updates = learner.updates + 1
            statistics = {"after": updates, "rows": jnp.float32(len(batch.reward))}
            return dataclasses.replace(learner, updates=updates), statistics

    setup = toys.toy_setup(toys.Commanded(), grad_updates_per_step=3, num_shards=2)
    setup = dataclasses.replace(setup, agent=Counter(setup.agent))
    state, (_, statistics) = loop.train_chunk(setup, warmed(setup))
    # Of 4 steps of 3 updates, the first of each: 1, 4, 7 and 10.
    np.testing.assert_array_equal(statistics["after"], [5.5])
    np.testing.assert_array_equal(statistics["rows"], [8])  # of a batch of 16
    np.testing.assert_array_equal(state.learner.updates, [12])


@pytest.mark.parametrize(
    ("seeds", "shards", "devices", "worlds"),
    [(1, 1, 1, 24), (2, 2, 1, 48), (1, 4, 2, 12), (2, 2, 4, 12), (4, 1, 2, 48)],
)
def test_physics_has_room_for_the_worlds_of_a_device(
    monkeypatch, seeds, shards, devices, worlds
):
    """24 worlds of each seed, divided among its shards."""
    asked = []

    def make(name, physics, worlds):
        asked.append((name, physics, worlds))
        return toys.Commanded()

    monkeypatch.setattr(envs, "make", make)
    layout = parallel.make_layout(seeds, shards, [jax.devices()[0]] * devices)
    config = toys.config(num_envs=24, num_seeds=seeds, max_replay_size=960)
    setup = loop.make_setup(config, layout=layout)
    assert asked == [("hopper", "native", worlds)]
    assert setup.worlds_per_shard == 24 // shards
    assert setup.config.num_shards == shards


@pytest.mark.parametrize(
    ("name", "fit"), [("num_envs", 9), ("batch_size", 18), ("num_shards", 3)]
)
def test_what_devices_cannot_divide_is_refused_and_what_fits_is_said(
    monkeypatch, name, fit
):
    three = [jax.devices()[0]] * 3
    monkeypatch.setattr(jax, "devices", lambda: three)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    fitting = {"num_envs": 9, "batch_size": 18, "num_shards": 3}
    fitting["max_replay_size"] = 9 * 64
    loop.make_setup(toys.config(**fitting), toys.Commanded())
    given = fitting | {name: 8 if name == "num_envs" else 16}
    given |= {"max_replay_size": 512} if name == "num_envs" else {}
    given |= {"num_shards": 0} if name != "num_shards" else {"num_shards": 1}
    wrong = given[name]
    with pytest.raises(ValueError, match=rf"--{name} {wrong}: .*of 3.* such as {fit}$"):
        loop.make_setup(toys.config(**given), toys.Commanded())


def test_setups_are_compared_by_identity_and_do_not_change(setup):
    game = evaluation.Game(setup.env, setup.agent.policy, 10)
    for each in (setup, game, setup.agent, make_sac()):
        again = dataclasses.replace(each)
        assert again != each and hash(again) != hash(each)
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.policy = None


def make_sac():
    return agents.make(toys.config(algo="sac"), 3, 2)


def test_raw_observations_are_stored_and_normalized_on_reading(setup):
    state = loop.init(setup)
    obs = np.asarray(state.envs.obs)
    state, _ = loop.warm_up(setup, state)
    np.testing.assert_array_equal(state.replay.data.obs[:, :, : obs.shape[2]], obs)
    np.testing.assert_array_equal(state.normalizer.count, 32)
    np.testing.assert_allclose(
        state.normalizer.mean[0], state.replay.data.obs[0, 0, :32].mean(0), rtol=1e-4
    )
    actors = loop.average_actors(setup, state)
    chex.assert_trees_all_equal(actors.normalizer, state.normalizer)
    plain = loop.make_setup(toys.config(normalize_observations=False))
    assert loop.average_actors(plain, state).normalizer is None


def test_what_is_learned_from_is_normalized():
    """Positions near 100: far from it raw, a mean square of about 1 normalized."""

    class Far(toys.Commanded):
        def _state(self, *values):
            state = super()._state(*values)
            return dataclasses.replace(state, obs=state.obs + 100)

    class Reader(InPlaceOf):
        def update(self, learner, batch, key, shards):
            both = (batch.obs, batch.next_obs)
            squares = jnp.stack([jnp.square(b).mean() for b in both])
            return learner, {"squares": shards.mean(squares)}

    setup = toys.toy_setup(Far(), num_envs=16)
    setup = dataclasses.replace(setup, agent=Reader(setup.agent))
    state = warmed(setup)
    for _ in range(3):
        state, (_, learning) = loop.train_chunk(setup, state)
    squares = learning["squares"]
    assert ((squares > 0.3) & (squares < 3)).all()


def test_rewards_are_divided_by_the_size_of_their_discounted_sums():
    """Against sums made by hand from the rows of replay."""

    class Reader(InPlaceOf):
        def update(self, learner, batch, key, shards):
            return learner, {"largest": batch.reward.max()}

    setup = toys.toy_setup(
        toys.Commanded(),
        num_envs=4,
        episode_length=7,
        min_replay_size=4 * 60,
        batch_size=4096,
        discounting=0.9,
        max_replay_size=512,
        normalize_rewards=True,
    )
    setup = dataclasses.replace(setup, agent=Reader(setup.agent))
    state = warmed(setup)
    state, (_, learning) = loop.train_chunk(setup, state)
    taken = 60 + setup.config.chunk_steps
    rows = jax.tree.map(
        lambda leaf: np.asarray(leaf[0, 0, : 4 * taken]).reshape(taken, 4, -1),
        state.replay.data,
    )
    sums, running, steps = [], np.zeros(4), np.zeros(4)
    for reward, discount, weight in zip(
        rows.reward[..., 0], rows.discount[..., 0], rows.weight[..., 0], strict=True
    ):
        running, steps = reward + 0.9 * running, steps + 1
        sums.append(running)
        ended = (discount == 0) | (weight == 0) | (steps == 7)
        running, steps = np.where(ended, 0, running), np.where(ended, 0, steps)
    found = state.reward_normalizer
    np.testing.assert_allclose(found.moments.variance[0, 0], np.var(sums), rtol=1e-3)
    np.testing.assert_allclose(found.largest[0], np.max(np.abs(sums)), rtol=1e-5)
    np.testing.assert_allclose(state.returns[0, 0], running, rtol=1e-5)
    scale = max(np.std(sums), np.max(np.abs(sums)) / 5)
    largest = rows.reward.max() / scale  # the statistics grow within the chunk
    np.testing.assert_allclose(learning["largest"][0], largest, rtol=0.1)
    assert rows.reward.max() > 2 * learning["largest"][0]


def play(setup, greedy, seed=0):
    """Episodes of a setup's untrained policy, one for each entry of `greedy`."""
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: leaf[0], actors)
    game = evaluation.Game(setup.env, setup.agent.policy, setup.config.episode_length)
    keys = jax.random.split(jax.random.key(seed), len(greedy))
    return evaluation.play(game, actor, np.asarray(greedy), keys)


def test_evaluation_changes_nothing_and_is_repeatable(setup):
    state = warmed(setup)
    copy = jax.tree.map(jnp.copy, state)
    greedy, config = evaluation.both_modes(2), setup.config
    game = evaluation.Game(setup.env.for_worlds(4), setup.agent.policy, 1000)

    def evaluated(env_steps):
        actors = loop.average_actors(setup, copy)
        seeds = np.arange(config.num_seeds)
        phase = np.uint32(env_steps)
        return evaluation.play_all(game, setup.layout, actors, greedy, seeds, phase)

    first = evaluated(5)
    chex.assert_trees_all_equal(first, evaluated(5))
    assert (first.returns != evaluated(6).returns).any()
    state, _ = loop.train_chunk(setup, state)
    copy, _ = loop.train_chunk(setup, copy)
    chex.assert_trees_all_equal(toys.comparable(state), toys.comparable(copy))


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
    episodes = play(setup, np.full(16, greedy))
    lengths = np.asarray(episodes.lengths)
    assert set(lengths) == {2, 3}
    # The reward is the new position: start + 1, start + 2, ...
    starts = (np.asarray(episodes.returns) - lengths * (lengths + 1) / 2) / lengths
    assert ((starts > 0) & (starts < 1)).all()
    np.testing.assert_array_equal(lengths, np.where(starts > 0.5, 2, 3))


def test_what_is_logged_of_episodes_is_of_the_valid_ones_in_either_mode():
    episodes = evaluation.Episodes(
        returns=np.array([1.0, 4.0, 9.0, 10.0, 30.0, 7.0]),
        lengths=np.array([2, 4, 9, 5, 9, 7]),
        valid=np.array([True, True, False, True, True, False]),
        succeeded=np.array([True, False, True, True, True, False]),
    )
    row = evaluation.summarize(episodes, evaluation.both_modes(3))
    assert row == {
        "eval/diverged": 2,
        "eval/episode_reward": 2.5,
        "eval/episode_reward_std": 1.5,
        "eval/avg_episode_length": 3,
        "eval/sampled_episode_reward": 20,
        "eval/sampled_episode_reward_std": 10,
        "eval/avg_sampled_episode_length": 7,
        "eval/success": 0.5,
        "eval/sampled_success": 1,
    }


@pytest.mark.parametrize(
    ("seeds", "shards", "devices", "episodes", "worlds"),
    [
        (1, 1, 1, 6, 6),
        (4, 1, 2, 6, 12),  # two seeds on each device
        (1, 2, 2, 6, 3),
        (2, 2, 4, 6, 3),
        (1, 4, 4, 6, 6),  # four devices do not divide six: each plays all
        (3, 2, 2, 6, 9),
    ],
)
def test_evaluation_has_room_for_the_worlds_of_a_device(
    seeds, shards, devices, episodes, worlds
):
    layout = parallel.make_layout(seeds, shards, [jax.devices()[0]] * devices)
    assert evaluation.worlds_on_a_device(layout, episodes) == worlds


def test_training_and_evaluation_draw_from_streams_of_their_own():
    assert loop._STREAM != evaluation._STREAM


def test_evaluation_stops_at_the_time_limit():
    setup = toys.toy_setup(Ending(), episode_length=1)
    episodes = play(setup, np.ones(4, bool))
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
    modes = evaluation.both_modes(32)
    episodes = play(setup, modes)
    # Starts below 0.5 pass 1 to 1.5 in their first step, and take 3 steps.
    np.testing.assert_array_equal(episodes.succeeded, episodes.lengths == 3)
    row = evaluation.summarize(episodes, modes)
    assert row["eval/success"] == (np.asarray(episodes.lengths)[modes] == 3).mean()
    assert 0 < row["eval/sampled_success"] < 1
    plain = dataclasses.replace(episodes, succeeded=None)
    assert "eval/success" not in evaluation.summarize(plain, modes)


def test_footprint_is_what_is_allocated(setup):
    state = loop.init(setup)
    bank = vector.make_bank(setup.env, jax.random.key(0), setup.config.num_envs)
    row = memory.tree_bytes(state.replay.data) // setup.config.max_replay_size
    parts = memory.footprint(setup)
    assert parts["replay"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.replay))
    assert parts["networks"] == memory.tree_bytes(state.learner)
    worlds = memory.tree_bytes(state.envs) + memory.tree_bytes(bank)
    assert worlds <= parts["worlds"] <= 1.1 * worlds
    assert parts["batches"] == 2 * 2 * 16 * row


def test_a_replay_larger_than_memory_is_refused(setup, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 200_000_000)
    large = loop.make_setup(toys.config(max_replay_size=2**22))
    with pytest.raises(
        ValueError, match=r"^--max_replay_size 4194304: .*such as --max_replay_size "
    ) as e:
        memory.check(memory.footprint(large), large.config)
    fit = int(str(e.value).split("--max_replay_size ")[-1].split()[0])
    smaller = loop.make_setup(toys.config(max_replay_size=fit))
    memory.check(memory.footprint(smaller), smaller.config)
    assert memory.footprint(smaller)["replay"] > 50_000_000


def test_replay_example_types():
    setup = loop.make_setup(toys.config())
    data = jax.eval_shape(lambda: loop.init(setup)).replay.data
    assert isinstance(data, replay.Transition)
    assert data.action.dtype == jnp.int8 and data.obs.dtype == jnp.float32
