import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from iqmjx import agents, loop
from iqmjx.agents import sac
from iqmjx.networks import MLP
from iqmjx.policies.tanh_gaussian import TanhGaussian
from iqmjx.replay import Transition
from tests import toys


class LinearCritic:
    """Q_c(s, a) = c * (s + a)."""

    def apply(self, c, inputs):
        return c * inputs.sum(-1, keepdims=True)


class KnownPolicy:
    """Always the action p, whose log-density it says is 2 p."""

    action_size = 1

    def sample_with_log_prob(self, p, obs, key):
        del key
        return jnp.full(obs.shape, p), jnp.full(obs.shape[:-1], 2 * p)


def known_agent():
    return sac.SoftActorCritic(
        policy=KnownPolicy(),
        critic=LinearCritic(),
        optimizer=optax.sgd(0.1),
        observation_size=1,
        temperature=0.1,
        discount=0.9,
        target_rate=0.25,
        average_rate=0.4,
    )


PARAMS = sac.Params(
    policy=jnp.asarray(0.25),
    critics=(jnp.asarray(1.0), jnp.asarray(2.0)),
    log_temperature=jnp.log(0.1),
)
TARGET_CRITICS = (jnp.asarray(0.5), jnp.asarray(3.0))


def transition(terminated, rows=1):
    one = Transition(
        obs=jnp.asarray([[1.0]]),
        action=jnp.asarray([[0.5]]),
        reward=jnp.asarray([1.0]),
        discount=jnp.asarray([0.0 if terminated else 1.0]),
        weight=jnp.ones(1),
        next_obs=jnp.asarray([[2.0]]),
    )
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, 0), one)


@pytest.mark.usefixtures("no_rank_promotion")
@pytest.mark.parametrize("rows", [1, 3])
def test_losses_golden(rows):
    # a' = 0.25, log pi(a'|s') = 0.5; target Q: 0.5 * 2.25 = 1.125 and 3 * 2.25 = 6.75.
    #   target = 1 + 0.9 * (1.125 - 0.1 * 0.5) = 1.9675
    #   Q(s, a) = 1 * 1.5 and 2 * 1.5, so errors 0.4675 and -1.0325
    #   critic = 0.5 * (0.4675^2 + 1.0325^2) = 0.64230625
    # a~ = 0.25, log pi = 0.5; Q(s, a~) = 1 * 1.25 and 2 * 1.25.
    #   actor = 0.1 * 0.5 - 1.25 = -1.2
    #   entropy = -0.1 * (0.5 + target), target = -1, so 0.05
    loss, statistics = known_agent().loss(
        PARAMS, TARGET_CRITICS, transition(False, rows), jax.random.key(0)
    )
    np.testing.assert_allclose(statistics.target, 1.9675, rtol=1e-6)
    np.testing.assert_allclose(statistics.loss, 0.64230625, rtol=1e-6)
    np.testing.assert_allclose(statistics.policy_loss, -1.2, rtol=1e-6)
    np.testing.assert_allclose(loss, 0.64230625 - 1.2 + 0.05, rtol=1e-5)
    np.testing.assert_allclose(statistics.td_error, 0.75, rtol=1e-6)
    np.testing.assert_allclose(statistics.value, 1.5, rtol=1e-6)
    np.testing.assert_allclose(statistics.entropy, -0.5, rtol=1e-6)
    np.testing.assert_allclose(statistics.log_prob, 0.5, rtol=1e-6)
    np.testing.assert_allclose(statistics.temperature, 0.1, rtol=1e-6)
    assert statistics.target_std < 1e-6


def test_no_bootstrap_after_a_termination():
    _, statistics = known_agent().loss(
        PARAMS, TARGET_CRITICS, transition(True), jax.random.key(0)
    )
    assert statistics.target == 1


def test_target_statistics_are_over_the_batch():
    batch = transition(True, rows=2)
    batch = dataclasses.replace(batch, reward=jnp.asarray([1.0, 4.0]))
    _, statistics = known_agent().loss(PARAMS, TARGET_CRITICS, batch, jax.random.key(0))
    assert (statistics.target, statistics.target_std) == (2.5, 1.5)


@pytest.mark.parametrize("rows", [1, 3])
def test_each_loss_trains_its_own_parameters(rows):
    # critics: -0.4675 * 1.5 and 1.0325 * 1.5
    # policy: 0.1 * d(2 p)/dp - d(1 * (s + p))/dp = 0.2 - 1
    # temperature: the entropy -0.5 is above its target -1 by 0.5, so it must fall:
    #   d/d log = 0.1 * 0.5
    gradient = jax.grad(known_agent().loss, has_aux=True)(
        PARAMS, TARGET_CRITICS, transition(False, rows), jax.random.key(0)
    )[0]
    np.testing.assert_allclose(gradient.critics, [-0.70125, 1.54875], rtol=1e-5)
    np.testing.assert_allclose(gradient.policy, -0.8, rtol=1e-5)
    np.testing.assert_allclose(gradient.log_temperature, 0.05, rtol=1e-5)


def test_update_descends_and_averages():
    agent = known_agent()
    learner = sac.LearnerState(
        params=PARAMS,
        target_critics=TARGET_CRITICS,
        average_policy=jnp.asarray(0.5),
        updates=jnp.asarray(10, jnp.int32),
        opt_state=agent.optimizer.init(PARAMS),
    )
    after, statistics = agent.update(learner, transition(False), jax.random.key(0))
    critics = np.array([1.0 + 0.070125, 2.0 - 0.154875])
    np.testing.assert_allclose(after.params.critics, critics, rtol=1e-5)
    np.testing.assert_allclose(after.params.policy, 0.25 + 0.08, rtol=1e-5)
    np.testing.assert_allclose(
        after.target_critics,
        0.75 * np.array(TARGET_CRITICS) + 0.25 * critics,
        rtol=1e-5,
    )
    np.testing.assert_allclose(after.average_policy, 0.6 * 0.5 + 0.4 * 0.33, rtol=1e-5)
    assert after.updates == 11
    norm = np.linalg.norm([-0.70125, 1.54875, -0.8, 0.05])
    np.testing.assert_allclose(statistics.grad_norm, norm, rtol=1e-5)


def test_log_prob_is_the_density_of_a_squashed_gaussian():
    policy = TanhGaussian(MLP((8,), 4), action_size=2)
    params = policy.init(jax.random.key(0), 3)
    obs = jax.random.normal(jax.random.key(1), (500, 3))
    action, log_prob = policy.sample_with_log_prob(params, obs, jax.random.key(2))
    mean, log_std = np.split(np.asarray(policy.network.apply(params, obs)), 2, axis=-1)
    inner = np.all(np.abs(action) < 0.99, axis=-1)  # where arctanh is well conditioned
    assert inner.sum() > 300
    action = np.asarray(action, np.float64)[inner]
    normal = scipy.stats.norm(mean[inner], np.exp(log_std[inner]))
    expected = normal.logpdf(np.arctanh(action)) - np.log(1 - action**2)
    np.testing.assert_allclose(log_prob[inner], expected.sum(-1), rtol=1e-3, atol=1e-3)


def test_actions_stay_inside_and_the_mode_is_the_squashed_mean():
    policy = TanhGaussian(MLP((8,), 2), action_size=1)
    params = policy.init(jax.random.key(0), 3)
    obs = 30 * jax.random.normal(jax.random.key(1), (500, 3))
    action, log_prob = policy.sample_with_log_prob(params, obs, jax.random.key(2))
    assert (jnp.abs(action) <= 1).all() and jnp.isfinite(log_prob).all()
    mean = policy.network.apply(params, obs)[..., :1]
    np.testing.assert_allclose(policy.mode(params, obs), jnp.tanh(mean), rtol=1e-6)
    random = policy.random(jax.random.key(0), 2000)
    assert random.min() < -0.99 and random.max() > 0.99 and abs(random.mean()) < 0.05


def test_critics_differ_at_the_start_and_equal_their_targets():
    agent = agents.make(toys.config(algo="sac"), 3, 2)
    learner = agent.init(jax.random.key(0))
    q = agent.q_values(learner.params.critics, jnp.ones((4, 3)), jnp.ones((4, 2)))
    assert q.shape == (2, 4) and not np.allclose(q[0], q[1])
    jax.tree.map(
        np.testing.assert_array_equal, learner.params.critics, learner.target_critics
    )


def test_it_trains_in_the_same_loop():
    setup = loop.make_setup(toys.config(algo="sac"))
    state, _ = loop.warm_up(setup, loop.init(setup))
    before = jax.tree.map(jnp.copy, state.learner.params)
    for _ in range(2):
        state, (_, learning) = loop.train_chunk(setup, state)
    assert state.replay.data.action.dtype == jnp.float32
    assert state.learner.params.log_temperature != before.log_temperature
    for field in dataclasses.fields(learning):
        (value,) = getattr(learning, field.name)
        assert jnp.isfinite(value), field.name
