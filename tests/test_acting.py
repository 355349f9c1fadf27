"""What acts, sees and is learned from: in training, in evaluations, in Gymnasium.

The policy here says what it sees: its mode is the observation, its samples lie beyond.
"""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import acting, evaluation, loop, normalize
from iqmjx.acting import Actor
from iqmjx.replay import Transition
from iqmjx.run import gymnasium_play
from iqmjx.run.saved_policy import SavedPolicy
from iqmjx.run.trained_policy import TrainedPolicy
from tests import toys

SEEN, ABOVE = (
    1.0,
    0.5,
)  # what the policy sees of an observation of 7, and a sample's more
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Echo:
    """Acts by the first entry of what it sees."""

    action_shape, action_dtype = (1,), jnp.float32

    def mode(self, params, obs, temperature):
        return obs[..., :1]

    def sample(self, params, obs, key, temperature):
        return obs[..., :1] + ABOVE

    def control(self, action):
        return action


class Paying(toys.Toy):
    """Shows 7 and pays the control."""

    observation_size, action_size = 1, 1

    def reset(self, key):
        return self._state(jnp.zeros(()))

    def step(self, state, control):
        return self._state(control[0])

    def _state(self, reward):
        return self.state(jnp.full(1, 7.0), reward, jnp.zeros(()), jnp.zeros(()))


class PayingInGymnasium(gymnasium.Env):
    """The same, with actions in [-10, 30]."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-10, 30, (1,))

    def reset(self, seed=None, options=None):
        self._steps = 0
        return np.full(1, 7.0), {}

    def step(self, action):
        self._steps += 1
        return np.full(1, 7.0), float(action[0]), False, self._steps == STEPS, {}


@pytest.fixture
def actor():
    """Sees an observation of 7 as SEEN: (7 - 4) / 3."""
    variance = jnp.full(1, 9.0 - normalize.VARIANCE_FLOOR)
    statistics = normalize.Normalizer(jnp.full(1, 4.0), variance, jnp.ones(()))
    return Actor(None, jnp.ones(()), statistics)


def test_a_policy_sees_normalized_observations(actor):
    obs, key = jnp.full((2, 1), 7.0), jax.random.key(0)
    np.testing.assert_allclose(acting.act_greedily(Echo(), actor, obs), SEEN)
    np.testing.assert_allclose(acting.act(Echo(), actor, obs, key), SEEN + ABOVE)
    raw = dataclasses.replace(actor, normalizer=None)
    np.testing.assert_allclose(acting.act_greedily(Echo(), raw, obs), 7)


def test_an_evaluation_acts_greedily_where_it_is_told_to(actor):
    greedy = np.array([True, False, False, True, False])
    game = evaluation.Game(Paying(), Echo(), STEPS)
    keys = jax.random.split(jax.random.key(0), 5)
    played = evaluation.play(game, actor, greedy, keys)
    np.testing.assert_allclose(
        played.returns, STEPS * np.where(greedy, SEEN, SEEN + ABOVE), rtol=1e-6
    )
    rows = evaluation.summarize(played, greedy)
    assert rows["eval/episode_reward"] == pytest.approx(STEPS * SEEN)
    assert rows["eval/sampled_episode_reward"] == pytest.approx(STEPS * (SEEN + ABOVE))


@pytest.mark.parametrize("deterministic", [True, False])
def test_gymnasium_is_played_as_it_is_told_in_its_own_units(actor, deterministic):
    saved = SavedPolicy(toys.config(), Echo(), actor, 1, 1, 0, [])
    policy = TrainedPolicy(saved, np.full(1, -10.0), np.full(1, 30.0))
    played = gymnasium_play.play(
        PayingInGymnasium(),
        policy,
        episodes=2,
        deterministic=deterministic,
        seed=0,
    )
    control = SEEN if deterministic else SEEN + ABOVE
    np.testing.assert_allclose(played.returns, STEPS * (10 + 20 * control), rtol=1e-6)
    np.testing.assert_array_equal(played.lengths, STEPS)


@pytest.mark.parametrize("normalized", [True, False])
def test_training_acts_through_its_statistics_where_it_normalizes(normalized):
    setup = loop.make_setup(toys.config(normalize_observations=normalized))
    state = loop.init(setup)
    learner, statistics = jax.tree.map(
        lambda leaf: leaf[0], (state.learner, state.normalizer)
    )
    found = loop.actor(setup, learner, statistics).normalizer
    assert (found is statistics) if normalized else (found is None)
    saved = loop.average_actors(setup, state).normalizer
    assert (saved is not None) == normalized


@pytest.fixture(scope="module")
def trained():
    """A setup, and the transitions [vector steps, worlds] of two chunks of it."""
    setup = loop.make_setup(toys.config(exploration_steps=0, noise_hold_steps=1))
    state, _ = loop.warm_up(setup, loop.init(setup))
    for _ in range(2):
        state, _ = loop.train_chunk(setup, state)
    config = setup.config
    first = config.warm_up_steps
    steps = first + 2 * config.chunk_steps
    rows = jax.tree.map(
        lambda leaf: np.asarray(leaf[0, 0, : steps * config.num_envs]).reshape(
            steps, config.num_envs, *leaf.shape[3:]
        ),
        state.replay.data,
    )
    return setup, state, jax.tree.map(lambda leaf: leaf[first:], rows)


def test_each_world_and_each_step_draws_an_action_of_its_own(trained):
    """Near uniform over 11^3 actions: hardly two of the 64 are the same."""
    _, _, rows = trained
    drawn = rows.action.reshape(-1, rows.action.shape[-1])
    assert len(np.unique(drawn, axis=0)) > 0.8 * len(drawn)
    for step in rows.action:
        assert len(np.unique(step, axis=0)) > 1


def test_each_of_k_updates_has_a_batch_of_its_own(trained):
    setup, state, _ = trained
    keys = jax.random.split(jax.random.key(3), 1)
    first, others = loop._draw_batches(setup, state.replay, keys)
    config = setup.config
    assert first.obs.shape[2] == config.batch_size
    assert others.obs.shape[2:4] == (
        config.grad_updates_per_step - 1,
        config.batch_size,
    )
    all_rows = np.concatenate([first.obs[0, 0], *others.obs[0, 0]])
    known = np.asarray(state.replay.data.obs[0, 0, : int(state.replay.size)])
    # Of 96 rows 32 draws with replacement meet 27 different ones on average.
    assert len(np.unique(all_rows, axis=0)) > 20
    assert all((row == known).all(-1).any() for row in all_rows)
    again = loop._draw_batches(setup, state.replay, jax.random.split(keys[0], 1))[0]
    assert (np.asarray(again.obs) != np.asarray(first.obs)).any()


def test_k_updates_learn_from_their_own_batches(trained):
    """Of K batches, each changes what is learned: none is left out, or taken twice."""
    setup, state, _ = trained
    learner = jax.tree.map(lambda leaf: leaf[0], state.learner)
    keys = jax.random.split(jax.random.key(3), 1)
    first, others = jax.tree.map(
        lambda leaf: leaf[0, 0], loop._draw_batches(setup, state.replay, keys)
    )

    def learned(first: Transition, others: Transition):
        after, _ = loop.update(setup, learner, first, others, jax.random.key(5))
        return np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(after.params)]
        )

    def paid(batch):
        return dataclasses.replace(batch, reward=batch.reward + 1.0)

    plain = learned(first, others)
    assert (learned(paid(first), others) != plain).any()
    assert (learned(first, paid(others)) != plain).any()


def test_each_of_k_updates_has_a_key_of_its_own():
    class Noting:
        """Learns what it is given: a draw by each key, and each batch's reward."""

        def update(self, learner, batch, key, shards):
            count, noted = learner
            row = jnp.stack([jax.random.uniform(key), batch.reward[0]])
            return (count + 1, noted.at[count].set(row)), count

    setup = toys.toy_setup(Paying(), grad_updates_per_step=4)
    setup = dataclasses.replace(setup, agent=Noting())
    obs, reward = jnp.zeros((4, 1, 1)), jnp.arange(4.0)[:, None]
    batches = Transition(obs, obs, reward, reward, reward, obs)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    others = jax.tree.map(lambda leaf: leaf[1:], batches)
    begun = jnp.zeros((), jnp.int32), jnp.zeros((4, 2))
    learner, count = loop.update(setup, begun, first, others, jax.random.key(0))
    assert learner[0] == 4 and count == 0
    draws, met = learner[1].T
    np.testing.assert_array_equal(met, [0, 1, 2, 3])
    assert len(np.unique(draws)) == 4
