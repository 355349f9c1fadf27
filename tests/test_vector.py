import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx.envs import vector
from iqmjx.envs.physics import FAULT_CONSTRAINTS, FAULT_CONTACTS, FAULT_STATE
from tests.toys import Commanded

LIMIT = 5


def begin(env, num_worlds=4, seed=0):
    state = vector.init(env, jax.random.key(seed), num_worlds, LIMIT)
    bank = vector.make_bank(env, jax.random.key(seed + 1), num_worlds)
    return state, bank


def advance(env, state, bank, action, seed=0, limit=LIMIT):
    key = jax.random.key(seed)
    return vector.step(env, state, jnp.asarray(action, jnp.float32), bank, key, limit)


def test_only_finished_worlds_reset_and_the_last_observation_is_the_true_one():
    env = Commanded()
    state, bank = begin(env)
    action = [[0, 0], [1, 0], [0, 0], [1, 0]]
    after, outcome = advance(env, state, bank, action)
    np.testing.assert_array_equal(outcome.terminated, [False, True, False, True])
    # Before any reset, every world's position has grown by one.
    np.testing.assert_allclose(outcome.next_obs[:, 0], state.obs[:, 0] + 1)
    np.testing.assert_allclose(outcome.reward, state.obs[:, 0] + 1)
    # After it, the finished ones are at a start in (0, 1), observation and physics.
    np.testing.assert_allclose(after.obs[::2], outcome.next_obs[::2])
    assert (after.obs[1::2, 0] < 1).all()
    np.testing.assert_allclose(after.worlds.pipeline_state.qpos[:, 0], after.obs[:, 0])
    np.testing.assert_array_equal(after.steps, [1, 0, 1, 0])
    assert (outcome.next_obs[1::2, 0] > 1).all()


def test_time_limit_truncates_and_does_not_terminate():
    env = Commanded()
    state, bank = begin(env)
    for _ in range(LIMIT):
        state, outcome = advance(env, state, bank, np.zeros((4, 2)))
    assert outcome.truncated.all() and not outcome.terminated.any()
    assert (outcome.next_obs[:, 0] > LIMIT).all() and (state.obs[:, 0] < 1).all()
    np.testing.assert_array_equal(outcome.length, LIMIT)
    assert outcome.counted.all()


def test_termination_at_the_time_limit_is_a_termination():
    env = Commanded()
    state, bank = begin(env)
    for step in range(LIMIT):
        ending = np.full((4, 2), [float(step == LIMIT - 1), 0])
        state, outcome = advance(env, state, bank, ending)
    assert outcome.terminated.all() and not outcome.truncated.any()


def test_episode_returns_are_sums_of_rewards():
    env = Commanded()
    state, bank = begin(env)
    rewards = []
    for step in range(3):
        ending = np.full((4, 2), [float(step == 2), 0])
        state, outcome = advance(env, state, bank, ending)
        rewards.append(np.asarray(outcome.reward))
    np.testing.assert_allclose(outcome.episode_return, np.sum(rewards, 0), rtol=1e-6)
    assert (state.episode_return == 0).all() and (state.length == 0).all()


def test_fresh_starts_differ_across_worlds_and_episodes():
    env = Commanded()
    state, bank = begin(env, 32)
    starts = [np.asarray(state.obs[:, 1])]
    for seed in range(3):
        state, _ = advance(env, state, bank, np.full((32, 2), [1.0, 0]), seed)
        starts.append(np.asarray(state.obs[:, 1]))
    assert len(np.unique(starts[0])) == 32
    assert len(np.unique(np.concatenate(starts[1:]))) > 60  # of 96, and a bank of 256
    other = vector.make_bank(env, jax.random.key(99), 32)
    assert not np.isin(other.obs[:, 1], bank.obs[:, 1]).any()


def test_worlds_that_never_terminate_begin_at_random_phases():
    env = Commanded(terminates=False)
    state, bank = begin(env, 512)
    counts = np.bincount(state.steps, minlength=LIMIT)
    assert len(counts) == LIMIT and (counts > 50).all()
    np.testing.assert_array_equal(state.whole, state.steps == 0)
    ended, counted = 0, 0
    for step in range(LIMIT):
        state, outcome = advance(env, state, bank, np.zeros((512, 2)), step)
        ended += int(outcome.truncated.sum())
        counted += int(outcome.counted.sum())
    assert ended == 512  # each ends its first, shortened episode just once
    assert counted == int(counts[0])  # and only the whole ones count
    assert (begin(Commanded(), 512)[0].steps == 0).all()


def test_a_single_world_has_many_starts_too():
    """25 episodes of one world, one bank: hardly two with the same start."""
    env = Commanded()
    state, bank = begin(env, 1)
    assert bank.obs.shape[0] == len(np.unique(bank.obs[:, 1])) == 256
    starts = []
    for seed in range(25):
        state, _ = advance(env, state, bank, [[1.0, 0]], seed)
        starts.append(float(state.obs[0, 1]))
    assert len(set(starts)) >= 22


@pytest.mark.parametrize(("worlds", "size"), [(1, 256), (100, 300), (256, 256)])
def test_a_bank_has_whole_rounds_of_the_worlds(worlds, size):
    assert vector.bank_size(worlds) == size
    bank = vector.make_bank(Commanded(), jax.random.key(0), worlds)
    assert bank.obs.shape == (size, 2)


def test_a_diverged_world_is_reset_and_said_to_be():
    env = Commanded()
    state, bank = begin(env)
    after, outcome = advance(env, state, bank, [[0, 1], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(outcome.diverged, [True, False, False, False])
    assert outcome.terminated[0] and outcome.reward[0] == 0
    np.testing.assert_array_equal(outcome.next_obs[0], state.obs[0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_a_control_is_none_beyond_ten_times_its_range_and_a_world_is_lost_by_any_part():
    calm = jax.vmap(Commanded().reset)(jax.random.split(jax.random.key(0), 2))

    def lost(control=0.0, **changes):
        controls = jnp.zeros((2, 2)).at[1, 0].set(control)
        stepped = dataclasses.replace(calm, **changes)
        return vector.has_diverged(stepped, controls).tolist()

    for control in (0.0, 10.0, -10.0):
        assert lost(control) == [False, False]
    for control in (10.001, -10.001, jnp.inf, jnp.nan):
        assert lost(control) == [False, True]
    assert lost(obs=calm.obs.at[1, 1].set(jnp.nan)) == [False, True]
    assert lost(reward=calm.reward.at[1].set(-jnp.inf)) == [False, True]
    faults = jnp.array([FAULT_CONTACTS | FAULT_CONSTRAINTS, FAULT_STATE])
    assert lost(info={"faults": faults}) == [False, True]
    assert lost(info={}) == [False, False]


class Telling(Commanded):
    """Says truncation where the position is odd, at an end or not; counts in `info`."""

    def reset(self, key):
        return self._told(super().reset(key), jnp.zeros((), jnp.int32))

    def step(self, state, action):
        return self._told(super().step(state, action), state.info["count"] + 1)

    def _told(self, state, count):
        odd = jnp.floor(state.obs[0]) % 2 == 1
        info = {"truncation": odd * 1.0, "count": count}
        metrics = {"position": state.obs[0]}
        return dataclasses.replace(state, info=info, metrics=metrics)


def test_an_end_that_the_task_calls_a_truncation_keeps_its_bootstrap():
    env = Telling()
    state, bank = begin(env)
    state, outcome = advance(env, state, bank, [[1, 0], [1, 0], [0, 0], [0, 0]])
    # Positions are between 1 and 2.
    np.testing.assert_array_equal(outcome.truncated, [True, True, False, False])
    assert not outcome.terminated.any() and outcome.counted[:2].all()
    state, outcome = advance(env, state, bank, [[0, 0], [1, 0], [1, 0], [0, 0]])
    # Worlds 0 and 1 began anew; 2 is between 2 and 3.
    np.testing.assert_array_equal(outcome.truncated, [False, True, False, False])
    np.testing.assert_array_equal(outcome.terminated, [False, False, True, False])


def test_a_task_keeps_its_info_from_step_to_step_and_begins_it_anew():
    env = Telling()
    state, bank = begin(env)
    for end in (0, 0, 1, 0):
        action = [[0, 0], [end, 0], [0, 0], [0, 0]]
        state, outcome = advance(env, state, bank, action)
    np.testing.assert_array_equal(state.worlds.info["count"], [4, 1, 4, 4])
    np.testing.assert_allclose(outcome.metrics["position"], outcome.next_obs[:, 0])
