"""What many scores say together (Agarwal et al. 2021), and how surely.

Scores are one array [seeds] for each task; tasks may have different numbers of seeds.
Intervals are percentile bootstraps, stratified: seeds are drawn anew within each task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

Scores = Mapping[str, Sequence[float] | np.ndarray]
_DRAWS = 2000
_LEVEL = 95


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all scores."""
    return float(stats.trim_mean(_all(scores), 0.25))


def mean(scores: Scores) -> float:
    """The mean over tasks of the mean over seeds."""
    return float(np.mean([np.mean(of_task) for of_task in scores.values()]))


def median(scores: Scores) -> float:
    """The median over tasks of the mean over seeds."""
    return float(np.median([np.mean(of_task) for of_task in scores.values()]))


def optimality_gap(scores: Scores) -> float:
    """By how much scores are below 1, on average; those above count as 1."""
    return float(np.maximum(0, 1 - _all(scores)).mean())


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """How likely a score is above another's: the mean over the tasks of both.

    Ties count half.

    Raises:
        ValueError: where they have no task in common.
    """
    tasks = [task for task in scores if task in others]
    if not tasks:
        raise ValueError("they have no task in common")
    wins = []
    for task in tasks:
        ours, theirs = np.array(scores[task])[:, None], np.array(others[task])[None]
        wins.append(np.mean((ours > theirs) + 0.5 * (ours == theirs)))
    return float(np.mean(wins))


def interval(
    statistic: Callable[..., float], *scores: Scores, seed: int = 0
) -> tuple[float, float]:
    """The 95% bootstrap interval of a statistic of one or more sets of scores."""
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(
            *(
                {task: rng.choice(of, len(of)) for task, of in each.items()}
                for each in scores
            )
        )
        for _ in range(_DRAWS)
    ]
    low, high = np.percentile(drawn, [50 - _LEVEL / 2, 50 + _LEVEL / 2])
    return float(low), float(high)


def band(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """95% bootstrap interval [2, T] of the mean over seeds of values [seeds, T]."""
    drawn = np.random.default_rng(seed).integers(
        len(values), size=(_DRAWS, len(values))
    )
    means = values[drawn].mean(1)
    return np.percentile(means, [50 - _LEVEL / 2, 50 + _LEVEL / 2], axis=0)


def _all(scores: Scores) -> np.ndarray:
    return np.concatenate([np.asarray(of_task, float) for of_task in scores.values()])
