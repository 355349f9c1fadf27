"""What every algorithm owes the loop: weights, discounts, averages, shards."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iqmjx import acting, agents, loop, normalize, parallel
from iqmjx.agents import base, sac
from iqmjx.parallel import BY_SEED, BY_SHARD
from iqmjx.replay import Transition
from tests import toys

OBS, ACTIONS, ROWS = 4, 3, 8
ALGORITHMS = ("iq", "m_iq", "trust_pcl", "sac")


def make_agent(algo, **changes):
    known = {} if algo == "sac" else {"num_bins": 5}
    settings = {"temperature": 0.3} | known | changes
    return agents.make(toys.config(algo=algo, **settings), OBS, ACTIONS)


def make_batch(agent, *leading, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    action = agent.policy.random(keys[1], int(np.prod(leading)))
    return Transition(
        obs=jax.random.normal(keys[0], (*leading, OBS)),
        action=action.reshape(*leading, ACTIONS),
        reward=jax.random.normal(keys[2], leading),
        discount=jnp.ones(leading),
        weight=jnp.ones(leading),
        next_obs=jax.random.normal(keys[3], (*leading, OBS)),
    )


def perturbed(learner, seed=1):
    """All floating numbers away from each other and from zero."""
    leaves, tree = jax.tree.flatten(learner)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def gradient_of(agent):
    """The gradient of a batch's loss, as a function of the batch and a key."""
    learner = perturbed(agent.init(jax.random.key(0)))

    @jax.jit
    def gradient(batch, key):
        if isinstance(learner, sac.LearnerState):
            fixed = (learner.target_critics,)
        else:
            fixed = learner.target_params, jnp.exp(learner.log_temperature)
        return jax.grad(agent.loss, has_aux=True)(learner.params, *fixed, batch, key)[0]

    return gradient


def weighted(batch, *weights):
    return dataclasses.replace(batch, weight=jnp.array(weights, jnp.float32))


def some_differ(a, b):
    """Every network and scalar in two trees differs somewhere."""
    parts = [
        any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), p, q)))
        for p, q in zip(vars(a).values(), vars(b).values(), strict=True)
    ]
    return all(parts)


@pytest.mark.usefixtures("no_rank_promotion")
@pytest.mark.parametrize("algo", ["iq", "sac"])
def test_a_row_of_weight_0_teaches_nothing(algo):
    agent = make_agent(algo)
    gradient, key = gradient_of(agent), jax.random.key(2)
    batch, other = make_batch(agent, ROWS), make_batch(agent, ROWS, seed=7)
    changed = jax.tree.map(lambda a, b: a.at[3].set(b[3]), batch, other)
    without = [1, 1, 1, 0, 1, 1, 1, 1]
    got = gradient(weighted(batch, *without), key)
    same = gradient(weighted(changed, *without), key)
    chex.assert_trees_all_equal(got, same)
    whole = gradient(batch, key)
    assert some_differ(whole, gradient(changed, key))
    # The other rows teach what they do beside it: 1 / B of their own gradient each.
    alone = gradient(weighted(batch, *[1 - weight for weight in without]), key)
    added = jax.tree.map(jnp.add, got, alone)
    chex.assert_trees_all_close(added, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algo", ["m_iq", "trust_pcl"])
def test_weights_are_those_of_a_mean_over_all_rows(algo):
    """Without noise: the kept rows' own mean, times their share of the batch."""
    agent = make_agent(algo)
    gradient, key = gradient_of(agent), jax.random.key(2)
    batch = make_batch(agent, ROWS)
    kept = jax.tree.map(lambda leaf: leaf[:6], batch)
    expected = jax.tree.map(lambda leaf: 6 / 8 * leaf, gradient(kept, key))
    got = gradient(weighted(batch, *[1] * 6, 0, 0), key)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_discount_of_0_stops_the_bootstrap(algo):
    agent = make_agent(algo)
    gradient, key = gradient_of(agent), jax.random.key(2)
    batch = make_batch(agent, ROWS)
    elsewhere = dataclasses.replace(batch, next_obs=batch.next_obs[::-1])
    ended = [
        dataclasses.replace(each, discount=jnp.zeros(ROWS))
        for each in (batch, elsewhere)
    ]
    first, second = (gradient(each, key) for each in ended)
    chex.assert_trees_all_equal(first, second)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        gradient(batch, key),
        gradient(elsewhere, key),
    )
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("rate", "weights"),
    [
        # Of the untrained parameters, and of those after each update.
        (0.25, [0]),
        (0.25, [0, 1]),
        (0.25, [0, 1 / 2, 1 / 2]),
        (0.25, [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        (0.25, [0, *[0.75 / 4] * 4, 0.25]),
        (0.25, [0, *[0.75**2 / 4] * 4, 0.75 * 0.25, 0.25]),
        (1.0, [0, 0, 0, 1]),
        (0.0, [0, 1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_the_average_is_plain_first_and_exponential_later(rate, weights):
    versions = jnp.eye(len(weights))
    average = versions[0]
    for update, version in enumerate(versions[1:]):
        average = base.average(average, version, rate, jnp.asarray(update))
    expected = weights if len(weights) > 1 else [1]  # nothing else to average
    np.testing.assert_allclose(average, expected, atol=1e-6)


@pytest.mark.parametrize("algo", ["iq", "sac"])
def test_updates_average_the_policies_that_they_make(algo):
    agent = make_agent(algo, average_rate=0.25, learning_rate=1e-2)
    learner, batch = agent.init(jax.random.key(0)), make_batch(agent, ROWS)
    update, policies = jax.jit(agent.update), []
    for key in jax.random.split(jax.random.key(1), 6):
        learner, _ = update(learner, batch, key)
        policies.append(learner.params.policy)
    assert learner.updates == 6
    weights = [0.75**2 / 4] * 4 + [0.75 * 0.25, 0.25]
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)),
        *policies,
    )
    chex.assert_trees_all_close(learner.average_policy, expected, atol=1e-6)
    actor = agent.average_actor(learner, None)
    chex.assert_trees_all_equal(actor.params, learner.average_policy)


@pytest.mark.parametrize("algo", ["iq", "sac"])
def test_actors_have_the_newest_temperature_and_see_normalized_observations(algo):
    agent = make_agent(algo, temperature=0.25, zero_last_layer=False)
    learner = agent.init(jax.random.key(0))
    obs, key = make_batch(agent, ROWS).obs, jax.random.key(1)
    normalizer = normalize.update(normalize.init(OBS), 3 * obs + 1)
    seen = normalize.normalize(normalizer, obs)
    for make_actor in (agent.actor, agent.average_actor):
        raw, normalized = make_actor(learner, None), make_actor(learner, normalizer)
        np.testing.assert_allclose(raw.temperature, 0.25, rtol=1e-6)
        for act in (
            acting.act_greedily,
            lambda policy, actor, obs: acting.act(policy, actor, obs, key),
        ):
            expected = act(agent.policy, raw, seen)
            np.testing.assert_array_equal(act(agent.policy, normalized, obs), expected)
            assert (act(agent.policy, raw, obs) != expected).any()


def two_shards(agent):
    """The update of two seeds in two shards, on one device."""
    layout = parallel.make_layout(2, 2, jax.devices()[:1])

    def update(learner, batch, key):
        own_key = layout.shards.own_key(key)
        return agent.update(learner, batch, own_key, layout.shards)

    specs = (BY_SEED, BY_SHARD, BY_SEED), (BY_SEED, BY_SEED)
    return jax.jit(layout.on_devices(layout.over_all(update, *specs), *specs))


def two_seeds(agent):
    """Learners [2], batches [2, 2, ROWS] and keys [2]."""
    keys = jax.random.split(jax.random.key(3), 2)
    learners = [perturbed(agent.init(key), seed) for seed, key in enumerate(keys)]
    learners = jax.tree.map(lambda *leaves: jnp.stack(leaves), *learners)
    return learners, make_batch(agent, 2, 2, ROWS), keys


def pick(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def whole(batches, seed):
    """A seed's batch, the shards' one after the other."""
    return jax.tree.map(lambda leaf: leaf[seed].reshape(-1, *leaf.shape[3:]), batches)


def with_sgd(agent):
    """Steps as large as gradients, where Adam's hide their size."""
    return dataclasses.replace(agent, optimizer=optax.sgd(0.1))


def test_iq_s_update_in_shards_is_that_on_the_whole_batch():
    agent = with_sgd(make_agent("m_iq", learning_rate=1.0, num_value_networks=2))
    learners, batches, keys = two_seeds(agent)
    # The temperature follows the entropy: within reach of its target, in steps as
    # large as the distance.
    told = jax.jit(agent.update)(pick(learners, 0), whole(batches, 0), keys[0])[1]
    agent = dataclasses.replace(agent, target_entropy=float(told.entropy) + 0.02)
    after, statistics = two_shards(agent)(learners, batches, keys)
    update = jax.jit(agent.update)
    for seed in range(2):
        expected, told = update(pick(learners, seed), whole(batches, seed), keys[seed])
        close = dict(rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(pick(after, seed), expected, **close)
        # Over the batch, of which a shard sees its part: a mean of two.
        said = dataclasses.replace(pick(statistics, seed), target_std=told.target_std)
        chex.assert_trees_all_close(said, told, **close)
    moved = after.log_temperature - learners.log_temperature
    np.testing.assert_allclose(moved[0], 0.2, atol=0.01)


@pytest.mark.slow
def test_sac_s_update_in_shards_is_by_the_mean_of_their_gradients():
    """Each shard draws its own noise, by its own key."""
    agent = with_sgd(make_agent("sac"))
    learners, batches, keys = two_seeds(agent)
    after, statistics = two_shards(agent)(learners, batches, keys)
    gradient_of = jax.jit(jax.grad(agent.loss, has_aux=True))
    for seed in range(2):
        learner, batch = pick(learners, seed), pick(batches, seed)
        found = [
            gradient_of(
                learner.params,
                learner.target_critics,
                pick(batch, shard),
                jax.random.fold_in(keys[seed], shard),
            )
            for shard in range(2)
        ]
        gradient, told = jax.tree.map(lambda a, b: (a + b) / 2, *found)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, learner.params, gradient)
        close = dict(rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(pick(after.params, seed), expected, **close)
        norm = optax.tree.norm(gradient)
        told = dataclasses.replace(told, grad_norm=norm)
        chex.assert_trees_all_close(pick(statistics, seed), told, **close)


def operations(updates):
    """How often some operations are in the compiled chunk with K updates."""
    setup = toys.toy_setup(toys.Commanded(), grad_updates_per_step=updates)
    state = jax.eval_shape(lambda: loop.init(setup))
    text = loop.train_chunk.lower(setup, state).compile().as_text()
    return {name: len(re.findall(rf" {name}\(", text)) for name in ("abs", "dot")}


def test_only_the_last_update_of_a_vector_step_computes_what_logs_need():
    """`abs` is in IQ's update for the logged TD error alone."""
    one, many = operations(1), operations(4)
    assert many["dot"] > one["dot"] > 0  # the earlier updates are in the program
    assert many["abs"] == one["abs"] > 0
