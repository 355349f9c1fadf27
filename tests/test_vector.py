import jax
import jax.numpy as jnp
import numpy as np

from iqmjx.envs import vector
from tests.toys import Commanded

LIMIT = 5


def begin(env, num_worlds=4, seed=0):
    state = vector.init(env, jax.random.key(seed), num_worlds, LIMIT)
    bank = vector.make_bank(env, jax.random.key(seed + 1), 64)
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
    np.testing.assert_allclose(after.physics.qpos[:, 0], after.obs[:, 0])
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
    assert len(np.unique(np.concatenate(starts[1:]))) > 40  # of a bank of 64
    other = vector.make_bank(env, jax.random.key(99), 64)
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


def test_a_diverged_world_is_reset_and_teaches_nothing():
    env = Commanded()
    state, bank = begin(env)
    after, outcome = advance(env, state, bank, [[0, 1], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(outcome.diverged, [True, False, False, False])
    assert outcome.terminated[0] and outcome.reward[0] == 0
    np.testing.assert_array_equal(outcome.next_obs[0], state.obs[0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
