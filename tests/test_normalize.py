import jax
import numpy as np

from iqmjx import normalize


def test_statistics_are_those_of_all_observations():
    data = np.random.default_rng(0).normal(3.0, [0.1, 1.0, 50.0], (40, 8, 3))
    state = normalize.init(3)
    for batch in data.astype(np.float32):
        state = jax.jit(normalize.update)(state, batch)
    flat = data.reshape(-1, 3)
    np.testing.assert_allclose(state.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state.variance, flat.var(0), rtol=1e-3)
    assert state.count == 320
    seen = normalize.normalize(state, flat.astype(np.float32))
    np.testing.assert_allclose(np.mean(seen, 0), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(seen, 0), 1, rtol=1e-2)


def test_constant_entries_stay_small_and_outliers_are_clipped():
    state = normalize.update(normalize.init(2), np.full((64, 2), 7.0, np.float32))
    noise = np.array([7.0 * (1 + 1e-7), 1e9], np.float32)
    seen = normalize.normalize(state, noise)
    assert abs(seen[0]) < 1e-3 and seen[1] == normalize.CLIP
