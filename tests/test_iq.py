import dataclasses
import inspect
import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqmjx import acting, agents
from iqmjx.agents import iq
from iqmjx.networks import MLP
from iqmjx.policies.multicategorical import Multicategorical
from iqmjx.replay import Transition
from tests import toys

pytestmark = pytest.mark.usefixtures("no_rank_promotion")

OBS, ACTIONS = 4, 3


def make_agent(**changes):
    bins = {} if changes.get("algo") == "sac" else {"num_bins": 5}
    return agents.make(toys.config(**bins | changes), OBS, ACTIONS)


def make_batch(size=16, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return Transition(
        obs=jax.random.normal(keys[0], (size, OBS)),
        action=jax.random.randint(keys[1], (size, ACTIONS), 0, 5, jnp.int8),
        reward=jax.random.normal(keys[2], (size,)),
        discount=jnp.where(jnp.arange(size) % 3 == 0, 0.0, 1.0),
        weight=jnp.ones(size),
        next_obs=jax.random.normal(keys[3], (size, OBS)),
    )


def perturbed(learner, seed=1):
    """Both networks and their targets away from each other and from zero."""
    leaves, tree = jax.tree.flatten((learner.params, learner.target_params))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    params, target_params = jax.tree.unflatten(tree, noisy)
    return dataclasses.replace(learner, params=params, target_params=target_params)


def test_td_error_golden():
    # temperature 0.1, munchausen 0.9, discount 0.5.
    # First transition: r 1, log pi -1, V 2, target log pi -2, V'(s') 3:
    #   target = 1 + 0.9 * 0.1 * -2 + 0.5 * 3 = 1 - 0.18 + 1.5 = 2.32
    #   Q      = 0.1 * -1 + 2 = 1.9          error = 2.32 - 1.9 = 0.42
    # Second, the same but terminated: no 0.5 * 3, error = 0.82 - 1.9 = -1.08
    error, target = iq.td_error(
        jnp.full(2, -1.0),
        jnp.full(2, 2.0),
        jnp.full(2, -2.0),
        jnp.full(2, 3.0),
        jnp.full(2, 1.0),
        jnp.array([0.5, 0.0]),
        temperature=0.1,
        munchausen=0.9,
    )
    np.testing.assert_allclose(error, [0.42, -1.08], atol=1e-6)
    np.testing.assert_allclose(target, [2.32, 0.82], atol=1e-6)


def test_target_statistics_are_over_the_batch():
    agent = make_agent()
    batch = dataclasses.replace(
        make_batch(2),
        reward=jnp.asarray([1.0, 4.0]),
        discount=jnp.zeros(2),
    )
    learner = agent.init(jax.random.key(0))
    _, statistics = agent.update(learner, batch, jax.random.key(1))
    assert (statistics.target, statistics.target_std) == (2.5, 1.5)


def test_statistics_are_means_over_the_batch_and_the_value_networks():
    agent = make_agent(algo="m_iq", temperature=0.3, num_value_networks=2)
    agent = dataclasses.replace(agent, optimizer=optax.sgd(0.5))
    learner = perturbed(agent.init(jax.random.key(0)))
    batch, key = make_batch(), jax.random.key(2)
    params, targets = learner.params, learner.target_params
    log_prob, entropy = (
        np.asarray(each, float)
        for each in agent.policy.log_prob_and_entropy(
            params.policy, batch.obs, batch.action, key, 0.3
        )
    )
    again = agent.policy.log_prob(targets.policy, batch.obs, batch.action, 0.3)
    values = np.asarray(agent.values(params.values, batch.obs), float)
    bootstrap = np.asarray(agent.values(targets.values, batch.next_obs)).min(0)
    target = batch.reward + 0.9 * 0.3 * again + 0.99 * batch.discount * bootstrap
    error = np.asarray(target)[None] - 0.3 * log_prob[None] - values
    learner = dataclasses.replace(learner, opt_state=agent.optimizer.init(params))
    after, statistics = jax.jit(agent.update)(learner, batch, key)
    steps = jax.tree.map(lambda a, b: (a - b) / 0.5, params, after.params)
    for name, expected in {
        "loss": np.mean(error**2),
        "td_error": np.mean(np.abs(error)),
        "value": np.mean(values),
        "target": np.mean(target),
        "target_std": np.std(target),
        "log_prob": np.mean(log_prob),
        "entropy": np.mean(entropy) / ACTIONS,
        "grad_norm": np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(steps))),
        "temperature": 0.3,
    }.items():
        got = getattr(statistics, name)
        np.testing.assert_allclose(got, expected, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(("end", "entropy"), [(1e-6, 9.0), (10.0, -9.0)])
def test_the_temperature_stays_in_its_range(end, entropy):
    """At an end of it, with an entropy that would move it on."""
    agent = make_agent(temperature=end, target_entropy=0.5, learning_rate=0.01)
    learner = agent.init(jax.random.key(0))
    after, _ = agent._adapt(learner, jnp.float32(entropy))
    np.testing.assert_allclose(jnp.exp(after), end, rtol=1e-5)
    back, _ = agent._adapt(learner, jnp.float32(-entropy))
    np.testing.assert_allclose(abs(back - after), 0.01, rtol=1e-3)


def test_td_error_refuses_shapes_that_would_broadcast():
    """By itself: users' programs do not check annotations."""
    column = jnp.zeros((2, 1))
    with pytest.raises(AssertionError):
        inspect.unwrap(iq.td_error)(
            column,
            *[jnp.zeros(2)] * 5,
            temperature=1.0,
            munchausen=0.0,
        )


@pytest.mark.parametrize("scale", [1.0, 0.03, None])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_soft_value_identity(scale, temperature):
    """temperature * logsumexp of Q / temperature over all bins^d actions is V."""
    policy = Multicategorical(MLP((16,), ACTIONS * 5), ACTIONS, 5, scale)
    params = policy.init(jax.random.key(0), OBS)
    obs = jax.random.normal(jax.random.key(1), (7, OBS))
    value = jax.random.normal(jax.random.key(2), (7,))
    every = jnp.array(list(itertools.product(range(5), repeat=ACTIONS)), jnp.int8)

    def log_prob(action):
        actions = jnp.broadcast_to(action, (7, ACTIONS))
        return policy.log_prob(params, obs, actions, temperature)

    log_probs = jax.vmap(log_prob)(every)  # [5^3, 7]
    q = temperature * log_probs + value[None]
    soft = temperature * jax.nn.logsumexp(q / temperature, axis=0)
    np.testing.assert_allclose(soft, value, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(0), 1.0, atol=1e-5)
    by_enumeration = -(jnp.exp(log_probs) * log_probs).sum(0)
    log_prob, entropy = policy.log_prob_and_entropy(
        params, obs, every[:7], jax.random.key(3), temperature
    )
    np.testing.assert_allclose(entropy, by_enumeration, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_prob, jnp.diag(log_probs), rtol=1e-5)
    best = every[log_probs.argmax(0)]
    np.testing.assert_array_equal(policy.mode(params, obs, temperature), best)


def test_scaled_softmax_is_in_units_of_reward():
    """temperature * log pi changes by the scaled difference of the outputs."""
    policy = Multicategorical(MLP((16,), 5), 1, 5, advantage_scale=0.5)
    params = policy.init(jax.random.key(0), OBS)
    obs = jax.random.normal(jax.random.key(1), (OBS,))
    outputs = policy.network.apply(params, obs)
    log_probs = policy.log_probs(params, obs, 0.01)[0]
    np.testing.assert_allclose(
        0.01 * (log_probs[1] - log_probs[0]),
        0.5 * (outputs[1] - outputs[0]),
        rtol=1e-4,
    )


@pytest.mark.parametrize("algo", ["m_iq", "sac"])
def test_other_units_of_reward_change_nothing_that_is_learned(algo):
    """Rewards and all settings that have their unit, times 128 (but Adam's epsilon)."""
    scales = {"value_scale": 0.5, "temperature": 0.05}
    if algo != "sac":
        scales |= {"advantage_scale": 0.25}
    learners = []
    for factor in (1, 128):
        own = {name: factor * value for name, value in scales.items()}
        agent = make_agent(algo=algo, **own)
        learner = first = agent.init(jax.random.key(0))
        for seed in range(5):
            batch = make_batch(seed=seed)
            if algo == "sac":
                action = jnp.tanh(batch.action.astype(jnp.float32) - 2)
                batch = dataclasses.replace(batch, action=action)
            batch = dataclasses.replace(batch, reward=10 * factor * batch.reward)
            learner, _ = jax.jit(agent.update)(learner, batch, jax.random.key(seed))
        learners.append(learner)
    ends = [jax.flatten_util.ravel_pytree(each.average_policy)[0] for each in learners]
    begin = jax.flatten_util.ravel_pytree(first.average_policy)[0]
    moved = jnp.abs(ends[0] - begin).mean()
    assert moved > 1e-5 and jnp.abs(ends[1] - ends[0]).mean() < 0.01 * moved


def test_action_dimensions_share_the_configured_scale():
    assert make_agent(advantage_scale=0.25).policy.advantage_scale == 0.25 / ACTIONS


@pytest.mark.parametrize("policy", ["multicategorical", "flow", "gaussian"])
def test_raw_scaled_and_shared_softmax(policy):
    scales = {
        softmax: make_agent(
            policy=policy, advantage_scale=0.25, softmax=softmax
        ).policy.advantage_scale
        for softmax in ("raw", "scaled", "shared")
    }
    assert scales == {"raw": None, "scaled": 0.25, "shared": 0.25 / ACTIONS}


def test_samples_follow_the_distribution():
    """Chi-square of 20,000 samples against the probabilities (99.99% quantile)."""
    policy = Multicategorical(MLP((16,), 2 * 5), 2, 5, advantage_scale=None)
    params = policy.init(jax.random.key(0), OBS)
    obs = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (OBS,)), (20_000, OBS))
    samples = np.asarray(policy.sample(params, obs, jax.random.key(2), 1.0))
    probabilities = np.exp(policy.log_probs(params, obs[0], 1.0))
    for dimension in range(2):
        counts = np.bincount(samples[:, dimension], minlength=5)
        expected = 20_000 * probabilities[dimension]
        assert np.sum((counts - expected) ** 2 / expected) < 23.5  # 4 degrees


def test_control_spans_the_box_with_both_ends():
    policy = Multicategorical(MLP((4,), 11), 1, 11, advantage_scale=1.0)
    bins = jnp.arange(11, dtype=jnp.int8)[:, None]
    expected = np.linspace(-1, 1, 11)
    np.testing.assert_allclose(policy.control(bins)[:, 0], expected, atol=1e-6)
    random = policy.random(jax.random.key(0), 4000)
    assert random.dtype == jnp.int8 and set(np.unique(random)) == set(range(11))


@pytest.mark.parametrize("networks", [1, 2])
def test_loss_gradient_is_the_hand_derived_one(networks):
    """d loss / d theta = -2 mean(error * d(temperature log pi + V) / d theta).

    The mean is over the batch and the value networks, and V_target(s') their lowest.
    """
    agent = make_agent(algo="m_iq", temperature=0.3, num_value_networks=networks)
    learner = perturbed(agent.init(jax.random.key(0)))
    batch = make_batch()

    def q(params, index, network):
        log_prob = agent.policy.log_prob(
            params.policy, batch.obs[index], batch.action[index], 0.3
        )
        return 0.3 * log_prob + agent.values(params.values, batch.obs[index])[network]

    @jax.jit
    def by_hand(learner):
        next_values = agent.values(learner.target_params.values, batch.next_obs)
        next_value = next_values[0]
        for other in next_values[1:]:
            next_value = jnp.where(other < next_value, other, next_value)
        target_log_prob = agent.policy.log_prob(
            learner.target_params.policy, batch.obs, batch.action, 0.3
        )
        target = (
            batch.reward
            + 0.9 * 0.3 * target_log_prob
            + 0.99 * jnp.where(batch.discount == 0, 0, next_value)
        )

        def term(index, network):
            error = target[index] - q(learner.params, index, network)
            gradient = jax.grad(q)(learner.params, index, network)
            return jax.tree.map(lambda leaf: -2 * error * leaf, gradient)

        indices = jnp.arange(16)
        terms = [
            jax.vmap(lambda index, network=network: term(index, network))(indices)
            for network in range(networks)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves).mean((0, 1)), *terms)

    expected = by_hand(learner)
    got, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(
        learner.params,
        learner.target_params,
        jnp.asarray(0.3),
        batch,
        jax.random.key(2),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        got,
        expected,
    )


@pytest.mark.parametrize(("algo", "munchausen"), [("pcl", 0.0), ("trust_pcl", 0.9)])
def test_pcl_bootstraps_from_the_value_it_trains(algo, munchausen):
    """Both ends of the error give V its gradient: the loss written out."""
    agent = make_agent(algo=algo)
    same = make_agent(algo="iq", residual=True, munchausen=munchausen)
    assert (same.residual, same.munchausen) == (agent.residual, agent.munchausen)
    learner = perturbed(agent.init(jax.random.key(0)))
    batch = make_batch()

    def written_out(params):
        log_prob = agent.policy.log_prob(params.policy, batch.obs, batch.action, 0.3)
        target_log_prob = agent.policy.log_prob(
            learner.target_params.policy, batch.obs, batch.action, 0.3
        )
        next_value = jnp.where(
            batch.discount == 0, 0, agent.values(params.values, batch.next_obs)[0]
        )
        target = batch.reward + munchausen * 0.3 * target_log_prob + 0.99 * next_value
        value = agent.values(params.values, batch.obs)[0]
        return jnp.mean(jnp.square(target - 0.3 * log_prob - value))

    got, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(
        learner.params,
        learner.target_params,
        jnp.asarray(0.3),
        batch,
        jax.random.key(2),
    )
    expected = jax.jit(jax.grad(written_out))(learner.params)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-5)


def test_no_gradient_reaches_target_parameters():
    agent = make_agent(algo="m_iq")
    learner = perturbed(agent.init(jax.random.key(0)))
    gradient, _ = jax.grad(agent.loss, argnums=1, has_aux=True)(
        learner.params,
        learner.target_params,
        jnp.asarray(0.1),
        make_batch(),
        jax.random.key(2),
    )
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_munchausen_zero_is_iq_and_the_target_policy_matters_only_above():
    batch = make_batch()
    iq_agent, m_iq = make_agent(), make_agent(algo="m_iq")
    zero = dataclasses.replace(m_iq, munchausen=0.0)
    learner = perturbed(iq_agent.init(jax.random.key(0)))
    losses = [
        agent.loss(
            learner.params,
            learner.target_params,
            jnp.asarray(0.1),
            batch,
            jax.random.key(2),
        )[0]
        for agent in (iq_agent, zero, m_iq)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_update_moves_both_averages_by_their_rates():
    agent = make_agent(target_rate=0.25, average_rate=0.4)
    learner = perturbed(agent.init(jax.random.key(0)))
    learner = dataclasses.replace(learner, updates=jnp.asarray(1000, jnp.int32))
    after, statistics = agent.update(learner, make_batch(), jax.random.key(1))
    for rate, old, new, moved in (
        (0.25, learner.target_params, after.params, after.target_params),
        (0.4, learner.average_policy, after.params.policy, after.average_policy),
    ):
        expected = jax.tree.map(lambda a, b, r=rate: (1 - r) * a + r * b, old, new)
        chex.assert_trees_all_close(moved, expected, atol=1e-6)
    assert statistics.grad_norm > 0 and after.updates == 1001


@pytest.mark.parametrize("algo", ["iq", "sac"])
def test_training_acts_by_the_newest_policy_and_evaluations_by_the_average(algo):
    agent = make_agent(algo=algo)
    learner = agent.init(jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 1000))
    other = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(next(noise), leaf.shape),
        learner.average_policy,
    )
    newest = dataclasses.replace(
        learner, params=dataclasses.replace(learner.params, policy=other)
    )
    averaged = dataclasses.replace(learner, average_policy=other)

    def played(actor):
        obs, key = make_batch().obs, jax.random.key(2)
        sampled = acting.act(agent.policy, actor, obs, key)
        return jnp.stack([acting.act_greedily(agent.policy, actor, obs), sampled])

    for actor, follows, ignores in (
        (agent.actor, newest, averaged),
        (agent.average_actor, averaged, newest),
    ):
        before = played(actor(learner, None))
        assert (played(actor(ignores, None)) == before).all()
        assert (played(actor(follows, None)) != before).any((1, 2)).all()


def test_updates_fit_a_fixed_target():
    """On terminal transitions the TD target is the reward: the loss goes to zero."""
    agent = make_agent(learning_rate=3e-3, temperature=0.1, hidden_sizes=(64,))
    batch = make_batch(8)
    batch = dataclasses.replace(batch, discount=jnp.zeros(8))
    learner = agent.init(jax.random.key(0))
    update = jax.jit(agent.update)
    first = None
    for _ in range(500):
        learner, statistics = update(learner, batch, jax.random.key(0))
        first = statistics.loss if first is None else first
    assert statistics.loss < 1e-3 * first


def test_values_are_value_scale_times_the_network_s_output():
    obs, action = jnp.ones((3, OBS)), jnp.zeros((3, ACTIONS))
    plain, scaled = make_agent(), make_agent(value_scale=50.0)
    params = plain.init(jax.random.key(0)).params.values
    expected = 50 * plain.values(params, obs)
    np.testing.assert_allclose(scaled.values(params, obs), expected, rtol=1e-5)
    plain, scaled = make_agent(algo="sac"), make_agent(algo="sac", value_scale=50.0)
    critics = plain.init(jax.random.key(0)).params.critics
    expected = 50 * plain.q_values(critics, obs, action)
    np.testing.assert_allclose(
        scaled.q_values(critics, obs, action), expected, rtol=1e-5
    )


def test_zero_last_layer_starts_uniform():
    agent = make_agent()
    params = agent.init(jax.random.key(0)).params.policy
    log_probs = agent.policy.log_probs(params, jnp.ones((2, OBS)), 0.01)
    np.testing.assert_allclose(log_probs, -np.log(5), rtol=1e-6)
    plain = make_agent(zero_last_layer=False)
    params = plain.init(jax.random.key(0)).params.policy
    assert plain.policy.log_probs(params, jnp.ones((2, OBS)), 1.0).std() > 0.01


@pytest.mark.parametrize(("start", "sign"), [(1e-3, 1), (0.9, -1)])
def test_temperature_follows_the_target_entropy(start, sign):
    """Up while the entropy is below the target, down above, by learning_rate."""
    agent = make_agent(temperature=start, target_entropy=0.5)
    learner = perturbed(agent.init(jax.random.key(0)))
    after, statistics = agent.update(learner, make_batch(), jax.random.key(1))
    gap = 0.5 * np.log(5) - statistics.entropy
    assert np.sign(gap) == sign and abs(gap) > 0.1
    moved = after.log_temperature - learner.log_temperature
    np.testing.assert_allclose(moved, sign * 3e-4, rtol=1e-2)
    constant = make_agent(temperature=start, target_entropy=0.0)
    after, _ = constant.update(learner, make_batch(), jax.random.key(1))
    assert after.log_temperature == learner.log_temperature


def test_temperature_settles_where_the_entropy_meets_its_target():
    agent = make_agent(temperature=0.3, target_entropy=0.4, learning_rate=3e-3)
    learner = perturbed(agent.init(jax.random.key(0)))
    batch, key = make_batch(), jax.random.key(0)
    learner, statistics = jax.jit(
        lambda start: jax.lax.scan(
            lambda carry, _: agent.update(carry, batch, key), start, length=3000
        )
    )(learner)
    statistics = jax.tree.map(lambda leaf: leaf[-1], statistics)
    assert abs(statistics.entropy / np.log(5) - 0.4) < 0.05
