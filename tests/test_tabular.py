"""The paper's theorems, Sec. 3, on random MDPs, in float64."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from iqmjx import agents
from iqmjx.replay import Transition
from iqmjx.theory import tabular
from tests import toys

MUNCHAUSEN = (0.0, 0.5, 0.9, 1.0)


def random_mdps(count, **sizes):
    rng = np.random.default_rng(0)
    return [tabular.random_mdp(rng, **sizes) for _ in range(count)]


def zeros(mdp, iterations):
    return np.zeros((iterations, *mdp.reward.shape))


def probabilities(iterates):
    return np.exp(iterates.log_policies)


def test_one_iteration_golden():
    # One state, rewards 0 and 1, temperature 1, munchausen 0.5, uniform start, V = 0:
    #   Q = r + 0.5 log(1/2), V = log(e^0 + e^1) + 0.5 log(1/2) = 1.3133 - 0.3466
    #   pi = (1, e) / (1 + e)
    mdp = tabular.MDP(np.array([[0.0, 1.0]]), np.ones((1, 2, 1)), 0.9)
    iterates = tabular.iq_dp(mdp, 0.5, 1.0, zeros(mdp, 1))
    np.testing.assert_allclose(iterates.values[1], 1.31326 - 0.34657, atol=1e-5)
    expected = np.array([1, np.e]) / (1 + np.e)
    np.testing.assert_allclose(probabilities(iterates)[1, 0], expected, atol=1e-12)


@pytest.mark.parametrize("munchausen", MUNCHAUSEN)
def test_theorem_1_policies_and_values_are_those_of_mirror_descent(munchausen):
    for mdp in random_mdps(20):
        none = zeros(mdp, 200)
        implicit = tabular.iq_dp(mdp, munchausen, 0.5, none)
        explicit = tabular.md_vi(mdp, munchausen * 0.5, (1 - munchausen) * 0.5, none)
        difference = probabilities(implicit) - probabilities(explicit)
        assert np.abs(difference).max() < 1e-10
        np.testing.assert_allclose(implicit.values, explicit.values, atol=1e-10)


@pytest.mark.parametrize(("kl_weight", "entropy_weight"), [(0.3, 0.2), (0.0, 0.5)])
def test_the_mirror_descent_step_maximizes_its_objective(kl_weight, entropy_weight):
    """Against a numerical maximization over the simplex."""
    mdp = random_mdps(1)[0]
    errors = np.random.default_rng(1).normal(size=(3, *mdp.reward.shape))
    iterates = tabular.md_vi(mdp, kl_weight, entropy_weight, errors)
    before = iterates.log_policies[2, 0]
    q = (mdp.backup(iterates.values[2]) + errors[2])[0]

    def loss(logits):
        log_policy = logits - np.logaddexp.reduce(logits)
        policy = np.exp(log_policy)
        entropy, divergence = -policy @ log_policy, policy @ (log_policy - before)
        return -(policy @ q + entropy_weight * entropy - kl_weight * divergence)

    found = scipy.optimize.minimize(loss, np.zeros(4), tol=1e-12)
    np.testing.assert_allclose(iterates.values[3, 0], -found.fun, atol=1e-8)
    best = np.exp(found.x - np.logaddexp.reduce(found.x))
    np.testing.assert_allclose(probabilities(iterates)[3, 0], best, atol=1e-5)


@pytest.mark.parametrize("munchausen", MUNCHAUSEN[:3])
def test_it_converges_to_the_regularized_optimum(munchausen):
    for mdp in random_mdps(5):
        iterates = tabular.iq_dp(mdp, munchausen, 0.5, zeros(mdp, 400))
        gap = tabular.suboptimality(mdp, iterates, munchausen, 0.5)
        assert gap[1] > 1e-2 and gap[-1] < 1e-9


def test_kl_alone_converges_to_the_optimum_as_one_over_k():
    for mdp in random_mdps(5):
        none = zeros(mdp, 800)
        iterates = tabular.iq_dp(mdp, 1.0, 0.5, none)
        gap = tabular.suboptimality(mdp, iterates, 1.0, 0.5)
        bound = tabular.error_bound(mdp, iterates, 1.0, 0.5, none)
        assert (bound.errors == 0).all() and (gap[1:] <= bound.remainder).all()
        late = bound.remainder[-1] * 800
        np.testing.assert_allclose(bound.remainder[399] * 400, late, rtol=0.05)


def test_optimal_q_solves_the_regularized_bellman_equation():
    for mdp in random_mdps(5):
        for temperature in (0.0, 0.1, 2.0):
            q = tabular.optimal_q(mdp, temperature)
            backup = mdp.backup(tabular.soft_max(q, temperature))
            np.testing.assert_allclose(q, backup, atol=1e-10)


def test_policy_q_is_what_playing_the_policy_brings():
    """Against the discounted sum over 400 steps, rewards and entropies."""
    mdp = random_mdps(1)[0]
    log_policy = tabular.iq_dp(mdp, 0.5, 0.5, zeros(mdp, 3)).log_policies[-1]
    policy = np.exp(log_policy)
    bonus = 0.2 * -np.sum(policy * log_policy, -1)
    start = np.eye(10)[3]  # in state 3, action 1
    expected = mdp.reward[3, 1]
    states = start @ mdp.transition[:, 1]
    for step in range(1, 400):
        gained = states @ (np.sum(policy * mdp.reward, -1) + bonus)
        expected += mdp.discount**step * gained
        states = states @ np.einsum("sa,sap->sp", policy, mdp.transition)
    q = tabular.policy_q(mdp, log_policy, 0.2)
    np.testing.assert_allclose(q[3, 1], expected, atol=1e-10)


@pytest.mark.parametrize("munchausen", [0.5, 0.9, 1.0])
def test_theorem_2_bounds_hold(munchausen):
    """100 error sequences: of any size, drifting, correlated, or noise."""
    rng = np.random.default_rng(2)
    for trial in range(100):
        mdp = tabular.random_mdp(rng, num_states=6, num_actions=3)
        errors = rng.normal(size=(60, 6, 3)) * 10 ** rng.uniform(-2, 1)
        if trial % 3 == 0:
            errors += rng.normal(size=(6, 3))
        if trial % 3 == 1:
            errors = np.cumsum(errors, 0) / 8
        iterates = tabular.iq_dp(mdp, munchausen, 0.3, errors)
        gap = tabular.suboptimality(mdp, iterates, munchausen, 0.3)[1:]
        bound = tabular.error_bound(mdp, iterates, munchausen, 0.3, errors)
        assert (gap <= bound.errors + bound.remainder).all()


def test_the_average_of_q_values_stays_within_its_part_of_the_bound():
    """H_k of error_bound, from its policies and values, where discounting is strong.

    softmax(H / w) = pi, and V_k = (m_k - munchausen m_{k-1}) / (1 - munchausen) with
    m = w logsumexp(H / w), w log A at the start.
    """
    rng = np.random.default_rng(5)
    for munchausen in (0.5, 0.9):
        mdp = tabular.random_mdp(rng, discount=0.1)
        errors = 0.1 * rng.normal(size=(30, *mdp.reward.shape))
        iterates = tabular.iq_dp(mdp, munchausen, 0.3, errors)
        entropy_weight = (1 - munchausen) * 0.3
        optimum = tabular.optimal_q(mdp, entropy_weight)
        bound = tabular.error_bound(mdp, iterates, munchausen, 0.3, errors)
        soft_max = entropy_weight * np.log(4)
        for k in range(30):
            value = iterates.values[k + 1]
            soft_max = (1 - munchausen) * value + munchausen * soft_max
            log_policy = iterates.log_policies[k + 1]
            average = entropy_weight * log_policy + soft_max[:, None]
            distance = np.abs(optimum - average).max()
            limit = (bound.errors[k] + bound.remainder[k]) * (1 - 0.1) / 2
            assert distance <= limit


def test_the_remainder_of_theorem_2_vanishes_faster_than_one_over_k():
    mdp = random_mdps(1)[0]
    none = zeros(mdp, 400)
    iterates = tabular.iq_dp(mdp, 0.9, 0.5, none)
    remainder = tabular.error_bound(mdp, iterates, 0.9, 0.5, none).remainder
    assert remainder[-1] * 400 < 1e-10 < remainder[0]


def test_zero_mean_errors_average_out_with_kl_alone_and_not_without():
    for mdp in random_mdps(3):
        rng = np.random.default_rng(3)
        errors = rng.normal(size=(4000, *mdp.reward.shape))
        gap = {}
        for munchausen in (0.0, 1.0):
            iterates = tabular.iq_dp(mdp, munchausen, 0.5, errors)
            gap[munchausen] = tabular.suboptimality(mdp, iterates, munchausen, 0.5)
        early, late = slice(50, 100), slice(-500, None)
        assert gap[1.0][late].mean() < 0.3 * gap[1.0][early].mean()
        assert gap[1.0][late].mean() < 0.05 * gap[0.0][late].mean()
        assert gap[0.0][late].mean() > 0.8 * gap[0.0][early].mean()


def test_low_temperatures_tend_to_advantage_learning():
    """Without munchausen to value iteration."""
    for mdp in random_mdps(3):
        for munchausen in (0.0, 0.9):
            limit = tabular.advantage_learning(mdp, munchausen, 50)[1:]
            distance = []
            for temperature in (1e-2, 1e-3, 1e-4):
                near = tabular.iq_dp(mdp, munchausen, temperature, zeros(mdp, 50))
                near = tabular.implicit_q(near, temperature)[1:]
                distance.append(np.abs(near - limit).max())
            at_least_linearly = 0.12 * np.array(distance[:-1]) + 1e-12
            assert (distance[1:] < at_least_linearly).all()
            assert distance[-1] < 1e-3


def test_low_temperatures_tend_to_the_dueling_architecture():
    """temperature log softmax(F / temperature) -> F - max F, in the deep policy."""
    config = toys.config(num_bins=5, advantage_scale=1.0, zero_last_layer=False)
    agent = agents.make(config, 4, 1)
    params = agent.policy.init(jax.random.key(0), 4)
    obs = jax.random.normal(jax.random.key(1), (7, 4))
    outputs = 5 * agent.policy.log_probs(params, obs, 5.0)  # F but for a constant
    advantage = outputs - outputs.max(-1, keepdims=True)
    for temperature in (1e-2, 1e-4):
        soft = temperature * agent.policy.log_probs(params, obs, temperature)
        assert jnp.abs(soft - advantage).max() <= temperature * np.log(5) + 1e-5


@pytest.mark.parametrize("munchausen", [0.0, 0.9])
def test_the_deep_agent_learns_the_tabular_policy(munchausen):
    """One-hot states, every transition in each batch: total variation below 0.02."""
    rng = np.random.default_rng(4)
    states, actions = 5, 3
    reached = np.stack([rng.permutation(states)[:2] for _ in range(15)])
    transition = np.eye(states)[reached].mean(1).reshape(states, actions, states)
    reward = rng.uniform(-1, 1, (states, actions)).astype(np.float32)
    mdp = tabular.MDP(reward, transition, 0.9)
    exact = tabular.iq_dp(mdp, munchausen, 0.3, zeros(mdp, 400))

    agent = agents.make(
        toys.config(
            num_bins=actions,
            hidden_sizes=(64,),
            temperature=0.3,
            target_entropy=0.0,
            munchausen=munchausen,
            discounting=0.9,
            advantage_scale=1.0,
            learning_rate=3e-3,
            target_rate=0.05,
        ),
        states,
        1,
    )
    state, action = np.divmod(np.repeat(np.arange(states * actions), 2), actions)
    one_hot = jnp.eye(states)
    batch = Transition(
        obs=one_hot[state],
        action=jnp.asarray(action[:, None], jnp.int8),
        reward=jnp.asarray(reward[state, action]),
        discount=jnp.ones(len(state)),
        weight=jnp.ones(len(state)),
        next_obs=one_hot[reached.ravel()],
    )
    key = jax.random.key(0)  # the entropy is exact: no number is drawn
    step = jax.jit(lambda learner, _: (agent.update(learner, batch, key)[0], None))
    learner = agent.init(jax.random.key(0))
    learner, _ = jax.lax.scan(step, learner, length=6000)
    learned = agent.policy.log_probs(learner.params.policy, one_hot, 0.3)[:, 0]
    variation = 0.5 * np.abs(np.exp(learned) - probabilities(exact)[-1]).sum(-1)
    assert variation.max() < 0.02
    value = agent.values(learner.params.values, one_hot)[0]
    np.testing.assert_allclose(value, exact.values[-1], atol=0.05)


def test_the_command_prints_its_checks_and_draws(tmp_path):
    out = tmp_path / "new" / "figure.png"
    command = [sys.executable, "-m", "iqmjx.tabular", "--out", str(out)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0 and "munchausen 1.0: 0.0" in said.stdout
    assert out.stat().st_size > 10_000
    refused = subprocess.run([*command, "--seed", "-1"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--seed" in refused.stderr


def test_a_process_that_is_none_is_refused():
    reward, transition = np.zeros((2, 2)), np.full((2, 2, 2), 0.5)
    with pytest.raises(ValueError, match=r"transition \(2, 2, 2\): .*\(2, 3, 2\)"):
        tabular.MDP(np.zeros((2, 3)), transition, 0.9)
    with pytest.raises(ValueError, match="add up to 1"):
        tabular.MDP(reward, transition * 2, 0.9)
    with pytest.raises(ValueError, match="discount 1"):
        tabular.MDP(reward, transition, 1.0)
