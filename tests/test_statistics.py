"""Statistics of many scores: by hand, and against rliable."""

import numpy as np
import pytest

from iqmjx.experiments import statistics

SCORES = {"a": [0.0, 1.0, 2.0, 3.0], "b": [0.5, 0.5, 4.0, 100.0]}


def test_statistics_by_hand():
    # In order: 0, .5, .5, 1, 2, 3, 4, 100; the middle half is .5, 1, 2, 3.
    assert statistics.interquartile_mean(SCORES) == pytest.approx(6.5 / 4)
    # Of a 1.5, of b 26.25.
    assert statistics.mean(SCORES) == statistics.median(SCORES) == 27.75 / 2
    # 1, .5 and .5 below 1.
    assert statistics.optimality_gap(SCORES) == pytest.approx(2 / 8)


def test_seeds_may_differ_in_number():
    uneven = {"a": [1.0], "b": [2.0, 3.0, 4.0]}
    assert statistics.mean(uneven) == 2 and statistics.optimality_gap(uneven) == 0
    assert statistics.interquartile_mean(uneven) == 2.5


def test_probability_of_improvement_by_hand():
    # On a: 2 beats both, 0 ties one and loses one: 2.5 of 4. On b: never. c: not both.
    ours = {"a": [2.0, 0.0], "b": [1.0], "c": [9.0]}
    theirs = {"a": [0.0, 1.0], "b": [5.0, 6.0]}
    got = statistics.probability_of_improvement(ours, theirs)
    assert got == pytest.approx((2.5 / 4 + 0) / 2)
    with pytest.raises(ValueError, match="in common"):
        statistics.probability_of_improvement({"a": [1.0]}, {"b": [1.0]})


def test_an_interval_by_hand():
    """Of a mean of n numbers 0 and 1: that of a binomial, 50 +- 9.8 of 100."""
    low, high = statistics.interval(statistics.mean, {"a": [0.0, 1.0] * 50})
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.015)
    assert statistics.interval(statistics.mean, {"a": [3.0], "b": [5.0]}) == (4, 4)


def test_intervals_are_stratified():
    """Tasks far apart do not widen it: seeds are drawn within each."""
    low, high = statistics.interval(
        statistics.mean, {"a": [0.0, 0.1], "b": [1000.0, 1000.1]}
    )
    assert 500 <= low < high <= 500.11


def test_statistics_and_intervals_are_rliable_s():
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    matrix = rng.lognormal(0, 1, (5, 4))  # [seeds, tasks]
    scores = {str(task): matrix[:, task] for task in range(4)}
    pairs = (
        (statistics.interquartile_mean, metrics.aggregate_iqm),
        (statistics.mean, metrics.aggregate_mean),
        (statistics.median, metrics.aggregate_median),
        (statistics.optimality_gap, metrics.aggregate_optimality_gap),
    )
    for ours, theirs in pairs:
        assert ours(scores) == pytest.approx(theirs(matrix))
        _, found = library.get_interval_estimates({"": matrix}, theirs, reps=2000)
        got = statistics.interval(ours, scores)
        np.testing.assert_allclose(got, found[""].ravel(), rtol=0.08, atol=0.02)
    other = rng.lognormal(0.2, 1, (3, 4))
    assert statistics.probability_of_improvement(
        scores, {str(task): other[:, task] for task in range(4)}
    ) == pytest.approx(metrics.probability_of_improvement(matrix, other))


def test_a_band_is_the_interval_at_each_point():
    values = np.array([[0.0, 5.0, 1.0], [1.0, 5.0, 3.0]] * 50)
    low, high = statistics.band(values)
    np.testing.assert_allclose(low, [0.402, 5, 1.804], atol=0.03)
    np.testing.assert_allclose(high, [0.598, 5, 2.196], atol=0.03)
