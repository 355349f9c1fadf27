"""The flow's spline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax.bijections import RationalQuadraticSpline

from iqmjx.policies import spline


def logits(spread=2.0):
    return spread * jax.random.normal(jax.random.key(0), (7,))


def over(points, spread=2.0):
    rows = jnp.tile(logits(spread), (len(points), 1))
    return rows, jnp.asarray(points, jnp.float32)


def test_the_map_is_flowjax_s_with_the_same_knots_and_slopes():
    import equinox as eqx

    # Mean slopes of bins, and their harmonic means where bins meet, by hand.
    slopes = np.asarray(jax.nn.softmax(logits()), float) * 7
    inner = 2 * slopes[1:] * slopes[:-1] / (slopes[1:] + slopes[:-1])
    theirs = eqx.tree_at(
        lambda s: (s.x_pos, s.y_pos, s.derivatives),
        RationalQuadraticSpline(knots=6, interval=1),
        (
            jnp.linspace(-1, 1, 8),
            jnp.asarray(np.r_[-1, -1 + np.cumsum(slopes) * 2 / 7], jnp.float32),
            jnp.asarray(np.r_[slopes[0], inner, slopes[-1]], jnp.float32),
        ),
    )
    x = np.linspace(-0.999, 0.999, 500)
    u, log_slope = spline.forward(*over(x))
    their_u, their_log_slope = jax.vmap(theirs.transform_and_log_det)(over(x)[1])
    np.testing.assert_allclose(u, their_u, atol=2e-6)
    np.testing.assert_allclose(log_slope, their_log_slope, atol=2e-5)
    assert np.std(log_slope) > 0.5


def test_the_inverse_returns_x_and_the_same_slope():
    x = np.linspace(-1, 1, 500)
    u, log_slope = spline.forward(*over(x))
    back, again = spline.inverse(over(x)[0], u)
    # What rounding u, by up to 6e-8, moves x where the map is flat.
    assert (np.abs(back - x) < 5e-7 * (1 + np.exp(-log_slope))).all()
    np.testing.assert_allclose(again, log_slope, atol=2e-4)
    np.testing.assert_array_equal(u[jnp.array([0, -1])], [-1, 1])


@pytest.mark.parametrize("spread", [2.0, 20.0])
def test_the_density_integrates_to_one_and_the_map_rises(spread):
    middle = (np.arange(70_000) + 0.5) / 35_000 - 1
    u, log_slope = spline.forward(*over(middle, spread))
    np.testing.assert_allclose(np.exp(log_slope).mean(), 1, atol=1e-4)
    assert (jnp.diff(u) >= 0).all()


def test_a_bin_with_next_to_no_mass_keeps_its_density_and_its_gradient():
    """Of mass e^-60, which u in float32 cannot resolve."""
    rows = jnp.array([[0.0, -60.0, 0.0]])
    middle = jnp.zeros(1)
    log_slope, gradient = jax.value_and_grad(
        lambda rows: spline.forward(rows, middle)[1].sum()
    )(rows)
    # Its mean slope, and of that its middle's, where the slope at both ends is twice
    # the mean: the harmonic mean of little and much.
    expected = np.log(1.5) - 60 + np.log((2 * 0.25 + 2 * 0.25 + 0.5) / 1.5**2)
    np.testing.assert_allclose(log_slope, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-0.5, 1, -0.5]], atol=1e-5)


def test_the_slope_at_the_end_of_a_bin_is_at_least_a_thousandth_of_its_mean():
    """Beside a bin of next to no mass the harmonic mean is far below that."""
    rows = jnp.array([[0.0, -60.0, 0.0]] * 2)
    ends = jnp.array([-1 / 3 - 1e-6, 1 / 3 + 1e-6])
    expected = np.log(1.5) + np.log(1e-3)
    np.testing.assert_allclose(spline.forward(rows, ends)[1], expected, atol=0.02)
