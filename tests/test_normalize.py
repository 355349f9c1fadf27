import jax
import jax.numpy as jnp
import numpy as np

from iqmjx import normalize, parallel
from iqmjx.parallel import BY_SEED, BY_SHARD


def test_statistics_are_those_of_all_observations():
    data = np.random.default_rng(0).normal(3.0, [0.1, 1.0, 50.0], (40, 8, 3))
    state = normalize.init(3)
    for batch in jnp.asarray(data, jnp.float32):
        state = jax.jit(normalize.update)(state, batch)
    flat = data.reshape(-1, 3)
    np.testing.assert_allclose(state.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state.variance, flat.var(0), rtol=1e-3)
    assert state.count == 320
    seen = normalize.normalize(state, jnp.asarray(flat, jnp.float32))
    np.testing.assert_allclose(np.mean(seen, 0), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(seen, 0), 1, rtol=1e-2)


def test_constant_entries_stay_small_and_outliers_are_clipped():
    state = normalize.update(normalize.init(2), jnp.full((64, 2), 7.0))
    noise = jnp.array([7.0 * (1 + 1e-7), 1e9])
    seen = normalize.normalize(state, noise)
    assert abs(seen[0]) < 1e-3 and seen[1] == normalize.CLIP


def test_statistics_over_shards_are_those_of_all_observations():
    """Two seeds in two shards: each seed's are those of its whole batches."""
    layout = parallel.make_layout(2, 2, jax.devices()[:1])
    update = layout.on_devices(
        layout.over_all(
            lambda state, obs: normalize.update(state, obs, layout.shards),
            (BY_SEED, BY_SHARD),
            BY_SEED,
        ),
        (BY_SEED, BY_SHARD),
        BY_SEED,
    )
    data = np.random.default_rng(0).normal(3.0, [1.0, 50.0], (5, 2, 2, 4, 2))
    data = jnp.asarray(data + np.arange(16).reshape(1, 2, 2, 4, 1), jnp.float32)
    state = jax.vmap(lambda _: normalize.init(2))(np.arange(2))
    for batch in data:
        state = jax.jit(update)(state, batch)
    for seed in range(2):
        whole = normalize.init(2)
        for batch in data[:, seed].reshape(5, 8, 2):
            whole = normalize.update(whole, batch)
        jax.tree.map(
            lambda a, b, k=seed: np.testing.assert_allclose(a[k], b, rtol=1e-5),
            state,
            whole,
        )


def test_rewards_are_scaled_by_the_deviation_or_a_share_of_the_largest_return():
    data = np.random.default_rng(0).normal(3.0, 2.0, (40, 8))
    state = normalize.init_rewards()
    assert normalize.reward_scale(state) == 1
    for returns in jnp.asarray(data, jnp.float32):
        state = jax.jit(normalize.update_rewards)(state, returns)
    largest = np.abs(data).max()
    assert largest < 5 * data.std()
    np.testing.assert_allclose(normalize.reward_scale(state), data.std(), rtol=1e-4)
    state = normalize.update_rewards(state, jnp.full(8, -300.0))
    np.testing.assert_allclose(normalize.reward_scale(state), 60.0)  # 300 / 5


def test_rewards_that_were_all_zero_are_divided_by_no_zero():
    state = normalize.init_rewards()
    for _ in range(3):
        state = normalize.update_rewards(state, jnp.zeros(8))
    scale = normalize.reward_scale(state)
    assert scale > 0 and jnp.float32(0) / scale == 0


def test_the_largest_return_of_all_shards_counts():
    layout = parallel.make_layout(1, 2, jax.devices()[:1])
    update = layout.on_devices(
        layout.over_all(
            lambda state, returns: normalize.update_rewards(
                state, returns, layout.shards
            ),
            (BY_SEED, BY_SHARD),
            BY_SEED,
        ),
        (BY_SEED, BY_SHARD),
        BY_SEED,
    )
    state = jax.vmap(lambda _: normalize.init_rewards())(np.arange(1))
    state = update(state, jnp.array([[[1.0, 2.0], [-50.0, 4.0]]]))
    assert state.largest == 50 and state.moments.count == 4
    np.testing.assert_allclose(
        state.moments.variance[0], np.var([1, 2, -50, 4]), rtol=1e-5
    )
