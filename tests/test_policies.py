"""Each policy class against enumeration, quadrature and its own samples."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from iqmjx import agents, policies
from iqmjx.replay import Transition
from tests import toys

pytestmark = pytest.mark.usefixtures("no_rank_promotion")

OBS = 4
CLASSES = ("multicategorical", "autoregressive", "gaussian", "flow")


def make(name, action_size=2, **changes):
    settings = {"num_bins": 5, "hidden_sizes": (16,), "zero_last_layer": False}
    config = toys.config(policy=name, **settings | changes)
    return policies.make(config.algorithm, action_size)


def trained(policy, spread=0.15):
    """Parameters away from where they begin."""
    leaves, tree = jax.tree.flatten(policy.init(jax.random.key(0), OBS))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + spread * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def every_action(action_size, num_bins):
    rows = list(itertools.product(range(num_bins), repeat=action_size))
    return jnp.asarray(rows, jnp.int8)


def repeated(obs, count):
    return jnp.tile(obs, (count, 1))


@pytest.mark.parametrize("name", CLASSES[:2])
@pytest.mark.parametrize("softmax", ["raw", "scaled", "shared"])
def test_probabilities_add_up_and_the_soft_value_identity_holds(name, softmax):
    """sum pi = 1, and temperature logsumexp(Q / temperature) = V, over 5^3 actions."""
    policy = make(name, 3, softmax=softmax, advantage_scale=3.0)
    params, temperature = trained(policy), 0.3
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    every = every_action(3, 5)
    log_prob = policy.log_prob(params, repeated(obs, 125), every, temperature)
    assert np.std(log_prob) > 0.1
    np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1, atol=1e-6)
    value = 1.7
    q = temperature * log_prob + value
    soft = temperature * jax.nn.logsumexp(q / temperature)
    np.testing.assert_allclose(soft, value, atol=1e-6)


def test_autoregressive_log_prob_is_the_product_of_its_conditionals():
    policy = make("autoregressive", 3)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    every = every_action(3, 5)
    joint = np.exp(policy.log_prob(params, repeated(obs, 125), every, 0.1))
    joint = joint.reshape(5, 5, 5)
    conditionals = np.exp(policy.log_probs(params, repeated(obs, 125), every, 0.1))
    conditionals = conditionals.reshape(5, 5, 5, 3, 5)
    first, pair = joint.sum((1, 2)), joint.sum(2)
    for a, b, c in itertools.product(range(5), repeat=3):
        found = conditionals[a, b, c]
        np.testing.assert_allclose(found[0], first, atol=1e-5)
        np.testing.assert_allclose(found[1], pair[a] / first[a], atol=1e-5)
        np.testing.assert_allclose(found[2], joint[a, b] / pair[a, b], atol=1e-5)
    assert np.abs(pair / first[:, None] - pair.sum(0)).max() > 0.05  # dependent


@pytest.mark.parametrize("layer_norm", [True, False])
def test_conditionals_are_those_of_the_formula(layer_norm):
    """F_j = W_j relu(LayerNorm(c(s) + sum_{i<j} E_i[a_i])) + b_j, in NumPy."""
    policy = make("autoregressive", 3, softmax="raw", layer_norm=layer_norm)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (6, OBS))
    action = policy.random(jax.random.key(6), 6)
    found = policy.log_probs(params, obs, action, 0.1)
    context = np.asarray(policy.network.network.apply(params.network, obs), float)
    for row, dimension in itertools.product(range(6), range(3)):
        hidden = context[row]
        for before in range(dimension):
            hidden = hidden + np.asarray(params.embedding)[before, action[row, before]]
        if layer_norm:
            hidden = (hidden - hidden.mean()) / hidden.std()
        outputs = np.maximum(hidden, 0) @ np.asarray(params.weight[dimension], float)
        outputs = outputs + params.bias[dimension]
        expected = outputs - np.log(np.exp(outputs).sum())
        np.testing.assert_allclose(found[row, dimension], expected, atol=1e-4)


def test_conditionals_begin_with_lecun_s_weights():
    """Of variance 1 / C for C inputs, apart for each dimension; embeddings of 1."""
    policy = make("autoregressive", 20)
    params = policy.init(jax.random.key(0), OBS)
    width = params.weight.shape[1]
    assert params.weight.shape == (20, width, 5)
    assert params.embedding.shape == (20, 5, width)
    np.testing.assert_allclose(params.weight.std(), width**-0.5, rtol=0.05)
    np.testing.assert_allclose(params.embedding.std(), 1, rtol=0.05)
    assert not params.bias.any()


@pytest.mark.parametrize(
    ("name", "low", "high"), [("gaussian", -10, 2), ("tanh_gaussian", -20, 2)]
)
def test_deviations_stay_in_their_range(name, low, high):
    """Whatever the network says: by log pi of the mode, -log std - log(2 pi) / 2."""
    policy = make(name, 1, softmax="raw")
    params = policy.init(jax.random.key(0), OBS)
    obs = jnp.zeros((1, OBS))
    outputs = policy.network.apply(params, obs)[0]
    for said in (-30, low - 0.5, low + 0.5, 0, high - 0.5, high + 0.5, 30):
        moved = jnp.array([0.0, said]) - outputs
        last = max(params["params"])
        shifted = jax.tree.map(jnp.copy, params)
        shifted["params"][last]["bias"] += moved
        log_prob = policy.log_prob(shifted, obs, jnp.zeros((1, 1)), 1.0)
        expected = -np.clip(said, low, high) - np.log(2 * np.pi) / 2
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_a_gaussian_action_is_controlled_by_the_nearest_point_of_the_box():
    action = jnp.array([[-3.0, -1.0, 0.25, 1.0, 1.5]])
    control = make("gaussian", 5).control(action)
    np.testing.assert_array_equal(control, [[-1.0, -1.0, 0.25, 1.0, 1.0]])


@pytest.mark.slow  # a quiet machine's time
def test_autoregressive_log_prob_costs_at_most_three_times_the_independent_one():
    """A Humanoid's: 348 observations, 17 dimensions of 11 bins, 4096 actions."""
    obs = jax.random.normal(jax.random.key(5), (4096, 348))
    calls = []
    for name in CLASSES[:2]:
        policy = make(name, 17, num_bins=11, hidden_sizes=(256, 256))
        params = policy.init(jax.random.key(0), 348)
        action = policy.random(jax.random.key(6), 4096)
        log_prob = jax.jit(policy.log_prob)
        calls.append(functools.partial(log_prob, params, obs, action, 0.1))
    seconds = [[], []]
    for _ in range(15):  # in turns: a slow spell of the machine falls on both
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
    assert min(seconds[1]) <= 3 * min(seconds[0])


@pytest.mark.parametrize("name", CLASSES[:2])
def test_discrete_samples_follow_the_joint_distribution(name):
    """Chi-square over all 25 actions; 24 degrees, 99.99%."""
    policy = make(name)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    many = repeated(obs, 40_000)
    samples = np.asarray(policy.sample(params, many, jax.random.key(6), 0.1), int)
    counts = np.bincount(samples @ [5, 1], minlength=25)
    log_prob = policy.log_prob(params, many[:25], every_action(2, 5), 0.1)
    expected = 40_000 * np.exp(log_prob)
    assert np.sum((counts - expected) ** 2 / expected) < 60.4
    assert expected.min() > 5


def test_gaussian_samples_follow_the_normal_distribution():
    """Their probability integral transform is uniform: chi-square over 10 cells."""
    policy = make("gaussian")
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    many = repeated(obs, 20_000)
    action = np.asarray(policy.sample(params, many, jax.random.key(6), 0.1))
    mean = np.asarray(policy.mode(params, obs, 0.1))
    # The deviation from the density at the mean: log pi = -sum(log std) - log(2 pi).
    at_mean = [
        policy.log_prob(params, obs, jnp.asarray(mean + shift), 0.1)
        for shift in np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    ]
    std = np.sqrt(0.01 / (2 * (at_mean[0] - np.array(at_mean[1:]))))
    np.testing.assert_allclose(at_mean[0], -np.log(std).sum() - np.log(2 * np.pi), 1e-3)
    uniform = scipy.stats.norm.cdf(action, mean, std)
    for dimension in range(2):
        counts = np.histogram(uniform[:, dimension], 10, (0, 1))[0]
        assert np.sum((counts - 2000) ** 2 / 2000) < 33.7  # 9 degrees, 99.99%


def test_flow_samples_follow_its_density():
    """Chi-square over a 6 x 6 grid, each cell's mass by quadrature."""
    policy = make("flow")
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    fine = (np.arange(240) + 0.5) / 120 - 1
    points = jnp.asarray(list(itertools.product(fine, fine)), jnp.float32)
    density = jax.jit(policy.log_prob)(params, repeated(obs, len(points)), points, 0.1)
    mass = np.exp(density).reshape(6, 40, 6, 40).sum((1, 3)) / 120**2
    many = repeated(obs, 20_000)
    action = np.asarray(jax.jit(policy.sample)(params, many, jax.random.key(6), 0.1))
    counts = np.histogram2d(*action.T, bins=6, range=[[-1, 1]] * 2)[0]
    assert np.sum((counts - 20_000 * mass) ** 2 / (20_000 * mass)) < 77  # 35 degrees
    assert mass.max() > 2 * mass.min() > 0


@pytest.mark.parametrize("action_size", [1, 2])
def test_flow_density_integrates_to_one(action_size):
    policy = make("flow", action_size)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    half = {1: 20_000, 2: 200}[action_size]
    fine = (np.arange(2 * half) + 0.5) / half - 1
    points = jnp.asarray(list(itertools.product(fine, repeat=action_size)), jnp.float32)
    density = jax.jit(policy.log_prob)(params, repeated(obs, len(points)), points, 0.1)
    total = np.exp(np.asarray(density, float)).sum() / half**action_size
    np.testing.assert_allclose(total, 1, atol=1e-3)
    assert np.std(density) > 0.1


def test_the_flow_s_logits_follow_the_temperature():
    """scale / temperature times the logits, as if the last layer were that larger."""
    scaled = make("flow", advantage_scale=1.0)
    plain = make("flow", softmax="raw")
    params = trained(scaled)
    obs = jax.random.normal(jax.random.key(5), (50, OBS))
    action = scaled.random(jax.random.key(6), 50)
    unscaled = plain.log_prob(params, obs, action, 0.1)
    np.testing.assert_array_equal(plain.log_prob(params, obs, action, 1.0), unscaled)
    # 1 / 2 for each of two dimensions.
    np.testing.assert_allclose(
        scaled.log_prob(params, obs, action, 0.5), unscaled, atol=1e-5
    )
    entropies = [
        scaled.log_prob_and_entropy(params, obs, action, jax.random.key(7), t)[1].mean()
        for t in (1.0, 0.3, 0.1)
    ]
    assert entropies[0] > entropies[1] > entropies[2]


def test_the_flow_s_log_density_is_finite_wherever_its_parameters_are():
    """With a gradient, so that a fit can come back from there."""
    policy = make("flow")
    params = trained(policy, spread=100.0)
    obs = jax.random.normal(jax.random.key(5), (500, OBS))
    action = policy.random(jax.random.key(6), 500)
    sample = policy.sample(params, obs, jax.random.key(7), 1e-4)
    assert jnp.isfinite(sample).all() and (jnp.abs(sample) <= 1).all()
    for where in (action, sample, jnp.ones_like(action), -jnp.ones_like(action)):
        log_prob = policy.log_prob(params, obs, where, 1e-4)
        assert jnp.isfinite(log_prob).all()

    def total(params):
        return policy.log_prob(params, obs, action, 1e-4).sum()

    gradient = jax.grad(total)(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert jnp.abs(gradient.bias).max() > 0
    assert total(params) < -1e4


def test_flow_inverse_returns_its_input_and_the_same_density():
    policy = make("flow", 3)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (200, OBS))
    context = policy.network.context(params, obs)
    latent = policy.random(jax.random.key(6), 200)
    action, density = policy.from_latent(params, context, latent, 0.1)
    back, again = policy.to_latent(params, context, action, 0.1)
    assert (jnp.abs(action) <= 1).all() and jnp.abs(action - latent).max() > 0.1
    np.testing.assert_allclose(back, latent, atol=2e-5)
    np.testing.assert_allclose(again, density, atol=2e-4)


def test_tanh_gaussian_density_integrates_to_one():
    """In one dimension, where the atanh of the edge is far out."""
    policy = make("tanh_gaussian", 1)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (3, OBS))
    fine = (np.arange(20_000) + 0.5) / 10_000 - 1
    points = jnp.asarray(fine[:, None], jnp.float32)
    for each in obs:
        density = policy.log_prob(params, repeated(each, 20_000), points, 0.1)
        total = np.exp(np.asarray(density, float)).sum() / 10_000
        np.testing.assert_allclose(total, 1, atol=1e-3)
        assert np.std(density) > 0.1


def test_tanh_gaussian_log_prob_is_that_of_its_samples_at_any_temperature():
    policy = make("tanh_gaussian", 3)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (500, OBS))
    action, log_prob = policy.sample_with_log_prob(params, obs, jax.random.key(6))
    inner = np.abs(action).max(-1) < 0.999
    assert inner.mean() > 0.8
    for temperature in (0.1, 1.0):
        again = policy.log_prob(params, obs, action, temperature)
        np.testing.assert_allclose(again[inner], log_prob[inner], rtol=0, atol=2e-3)
        sample = policy.sample(params, obs, jax.random.key(6), temperature)
        np.testing.assert_array_equal(sample, action)
    edge = policy.log_prob(params, obs, jnp.sign(action), 0.1)
    assert np.isfinite(edge).all()
    # As those just inside, and no further in.
    for inside, same in ((1e-6, True), (2e-6, False)):
        other = policy.log_prob(params, obs, (1 - inside) * jnp.sign(action), 0.1)
        assert np.allclose(other, edge, atol=1e-3) == same


def test_the_gaussian_s_implied_advantage_is_quadratic():
    """temperature log pi fitted by 1, a_i, a_i^2: the residual is rounding."""
    policy = make("gaussian", 3)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    actions = policy.random(jax.random.key(6), 500)
    advantage = 0.1 * policy.log_prob(params, repeated(obs, 500), actions, 0.1)
    features = np.column_stack([np.ones(500), actions, np.square(actions)])
    _, residual, rank, _ = np.linalg.lstsq(features, np.asarray(advantage, float))
    assert rank == 7 and np.sqrt(residual / 500) < 1e-4 < np.std(advantage)


@pytest.mark.parametrize(
    ("softmax", "scaled"), [("scaled", True), ("shared", True), ("raw", False)]
)
def test_scaled_gaussian_advantages_do_not_change_with_the_temperature(softmax, scaled):
    """temperature log pi(a) - temperature log pi(mean) is the same at 0.1 and 1."""
    policy = make("gaussian", 3, softmax=softmax, advantage_scale=3.0)
    params = trained(policy)
    obs = repeated(jax.random.normal(jax.random.key(5), (OBS,)), 20)
    actions = policy.random(jax.random.key(6), 20)

    def advantage(temperature):
        at_mode = policy.log_prob(
            params, obs, policy.mode(params, obs, temperature), temperature
        )
        return temperature * (
            policy.log_prob(params, obs, actions, temperature) - at_mode
        )

    assert np.allclose(advantage(0.1), advantage(1.0), rtol=1e-3) == scaled


@pytest.mark.parametrize("name", (*CLASSES, "tanh_gaussian"))
def test_entropy_is_the_mean_of_minus_log_pi(name):
    policy = make(name)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    many = repeated(obs, 20_000)
    action = policy.sample(params, many, jax.random.key(6), 0.1)
    log_prob, entropy = jax.jit(policy.log_prob_and_entropy)(
        params, many, action, jax.random.key(7), 0.1
    )
    np.testing.assert_allclose(
        log_prob, policy.log_prob(params, many, action, 0.1), rtol=0, atol=1e-5
    )
    error = np.std(log_prob) / 20_000**0.5
    np.testing.assert_allclose(entropy.mean(), -log_prob.mean(), atol=6 * error)


@pytest.mark.parametrize("name", ["autoregressive", "flow", "tanh_gaussian"])
def test_an_estimate_of_the_entropy_passes_no_gradient_on(name):
    policy = make(name)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (3, OBS))
    action, key = policy.random(jax.random.key(6), 3), jax.random.key(7)

    @jax.jit
    @jax.grad
    def gradient(params):
        found = policy.log_prob_and_entropy(params, obs, action, key, 0.1)
        return found[1].sum()

    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient(params)))


def test_the_flow_s_next_dimension_sees_an_action_as_shares_of_two_points():
    """Of -1, -0.5, 0, 0.5 and 1."""
    weights = make("flow")._weights(jnp.array([[-1.0, 0.125], [0.75, 1.0]]))
    expected = [
        [[1, 0, 0, 0, 0], [0, 0, 0.75, 0.25, 0]],
        [[0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, 1]],
    ]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("name", (*CLASSES, "tanh_gaussian"))
def test_leading_axes_are_rows(name):
    policy = make(name, 3)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (6, OBS))
    action = policy.random(jax.random.key(6), 6)

    @jax.jit
    def found(obs, action):
        key = jax.random.key(7)
        both = policy.log_prob_and_entropy(params, obs, action, key, 0.1)
        sample = policy.sample(params, obs, key, 0.1)
        return *both, sample, policy.mode(params, obs, 0.1), policy.control(action)

    def folded(leaf):
        return leaf.reshape(2, 3, *leaf.shape[1:])

    for one, other in zip(
        found(obs, action), found(folded(obs), folded(action)), strict=True
    ):
        np.testing.assert_allclose(other, folded(one), atol=1e-4)


@pytest.mark.parametrize("name", CLASSES[:3])
def test_the_mode_is_denser_than_samples(name):
    policy = make(name)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (300, OBS))
    mode = policy.log_prob(params, obs, policy.mode(params, obs, 0.1), 0.1)
    sample = policy.sample(params, obs, jax.random.key(6), 0.1)
    sampled = policy.log_prob(params, obs, sample, 0.1)
    assert (mode >= sampled - 1e-4).mean() > 0.9  # the autoregressive one's is greedy


def test_the_flow_s_mode_is_the_median_in_one_dimension():
    policy = make("flow", 1)
    params = trained(policy)
    obs = jax.random.normal(jax.random.key(5), (OBS,))
    many = repeated(obs, 20_000)
    samples = policy.sample(params, many, jax.random.key(6), 0.1)
    middle = np.asarray(policy.mode(params, obs, 0.1))
    below = (np.asarray(samples) < middle).mean()
    np.testing.assert_allclose(below, 0.5, atol=0.02)  # 5.6 standard errors
    assert abs(middle[0]) > 0.01


@pytest.mark.parametrize("name", CLASSES)
def test_zero_last_layer_starts_as_uniform_play(name):
    """The Gaussian has none: it starts centred, whatever the observation."""
    policy = make(name, zero_last_layer=True)
    params = policy.init(jax.random.key(0), OBS)
    obs = jax.random.normal(jax.random.key(5), (50, OBS))
    action = policy.random(jax.random.key(6), 50)
    log_prob = policy.log_prob(params, obs, action, 0.1)
    if name == "gaussian":
        assert (policy.mode(params, obs, 0.1) == 0).all()
    else:
        uniform = -2 * np.log(5 if name in CLASSES[:2] else 2)
        np.testing.assert_allclose(log_prob, uniform, atol=1e-5)


def test_entropy_targets_mean_the_same_for_bins_and_densities():
    """n bins of width 2 / n: a density's entropy is the bins' plus log(2 / n)."""
    bins, density = make("autoregressive"), make("flow")
    for share in (0.0, 0.3, 1.0):
        shift = bins.entropy_at(share) - density.entropy_at(share)
        np.testing.assert_allclose(shift, np.log(5 / 2))
    assert bins.entropy_at(1.0) == make("multicategorical").entropy_at(1.0) == np.log(5)
    for name in ("gaussian", "tanh_gaussian"):
        expected = 0.3 * np.log(5) - np.log(5 / 2)
        np.testing.assert_allclose(make(name).entropy_at(0.3), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algo": "sac", "policy": "flow"}, "--policy flow: --algo sac does not have"),
        ({"policy": "normal"}, "--policy normal: choose one of multicategorical, auto"),
        ({"policy": "gausian"}, "--policy gausian: did you mean gaussian"),
        ({"policy": "math:pi"}, "--policy math:pi: pi of math is no class"),
        ({"policy": "math:sin"}, "--policy math:sin: .*from_settings"),
    ],
)
def test_policies_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        toys.config(**given)


def test_iq_learns_with_sac_s_policy():
    """Its actions at the edge of the box included, which only rounding makes."""
    agent = agents.make(toys.config(policy="tanh_gaussian", target_entropy=0.3), OBS, 2)
    keys = jax.random.split(jax.random.key(0), 4)
    action = jnp.clip(2 * agent.policy.random(keys[0], 64), -1, 1)
    assert (jnp.abs(action) == 1).any()
    batch = Transition(
        obs=jax.random.normal(keys[1], (64, OBS)),
        action=action,
        reward=-jnp.square(action).sum(-1),
        discount=jnp.zeros(64),
        weight=jnp.ones(64),
        next_obs=jnp.zeros((64, OBS)),
    )
    learner, losses = agent.init(keys[2]), []
    update = jax.jit(agent.update)
    for key in jax.random.split(keys[3], 300):
        learner, statistics = update(learner, batch, key)
        losses.append(statistics.loss)
    assert np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0]
    assert learner.log_temperature != np.log(np.float32(0.1))
