"""Policy classes on a bandit whose dimensions must agree."""

import numpy as np
import pytest

from launch import coordination


@pytest.mark.parametrize(
    ("name", "num_bins"),
    [
        ("multicategorical", 11),
        ("gaussian", 11),
        pytest.param("autoregressive", 11, marks=pytest.mark.slow),
        pytest.param("flow", 21, marks=pytest.mark.slow),  # 11 bins: the next test
    ],
)
def test_training_meets_the_best_of_its_class(name, num_bins):
    """The flow's is that of all densities, up to its bins."""
    learned = coordination.learn(name, num_bins=num_bins)
    best = coordination.best(name)
    np.testing.assert_allclose(learned.probability.sum(), 1, atol=1e-3)
    np.testing.assert_allclose(learned.soft_value, best.soft_value, rtol=0.02)
    np.testing.assert_allclose(learned.expected_reward, best.expected_reward, rtol=0.03)


@pytest.mark.slow
def test_a_flow_of_the_usual_bins_is_near_the_best_density():
    learned, best = coordination.learn("flow"), coordination.best("flow")
    assert 0.95 * best.soft_value < learned.soft_value <= best.soft_value


def test_independent_dimensions_and_quadratics_lose_most_of_the_reward():
    rewards = {
        name: coordination.best(name).expected_reward for name in coordination.CLASSES
    }
    assert rewards["multicategorical"] < 0.3 * rewards["autoregressive"]
    assert rewards["gaussian"] < 0.3 * rewards["flow"]


def test_the_optimum_is_the_soft_maximum_of_the_reward():
    for name in ("autoregressive", "flow"):
        where = coordination.grid(name)
        weights = np.exp(coordination.reward(where.points) / coordination.TEMPERATURE)
        soft = coordination.TEMPERATURE * np.log(weights.sum() * where.area)
        np.testing.assert_allclose(coordination.best(name).soft_value, soft, rtol=1e-6)
