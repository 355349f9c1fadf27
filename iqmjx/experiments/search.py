"""What a study searches: the ranges that an experiment's file gives to settings.

    [search]
    learning_rate = { low = 3e-4, high = 3e-3, log = true }  # log: by ratio
    grad_updates_per_step = { low = 8, high = 32 }           # whole numbers, as it is
    batch_size = [64, 128, 256]                              # one of these
    hidden_sizes = [[256, 256], [512, 512]]

    [normalize]               # of each task, where there are several:
    hopper = [18, 2400]       # the scores that count as 0 and as 1
    ant = [-60, 4100]

A trial is the variant of the file with other values of these settings, on all tasks and
seeds of a scale. What is maximized is its score: the mean return of greedy episodes in
Gymnasium with the policy at the end of training, over episodes, seeds and tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from iqmjx import envs
from iqmjx.config import SCHEDULE, setting_fields
from iqmjx.errors import UsageError
from iqmjx.experiments import plan
from iqmjx.experiments.plan import RANDOM, Experiment, Run
from iqmjx.settings import kind, shown

_NAMED_ELSEWHERE = ("env", "algo", "seed", "num_seeds", *SCHEDULE)
_SWITCH = CategoricalDistribution(["false", "true"])
"""Of a setting that is true or false."""
_DIGITS = 4
"""Of a number that a run is given: enough to tell trials apart, and short to read."""


@dataclasses.dataclass(frozen=True)
class Search:
    """What a study searches.

    Attributes:
        runs: of the variant as it is, in the order in which a trial makes its own.
        space: what each setting may be, by name; of choices, as given on a command
            line.
        present: the values that the variant has on the first task, where the space
            holds them.
        units: the scores of each task that count as 0 and 1.
    """

    runs: tuple[Run, ...]
    space: Mapping[str, BaseDistribution]
    present: Mapping[str, Any]
    units: Mapping[str, tuple[float, float]]

    def trial(self, number: int, values: Mapping[str, Any]) -> tuple[Run, ...]:
        """The runs of a trial.

        Args:
            number: the trial's.
            values: of each setting, in `space`.

        Raises:
            UsageError: where iqmjx.train refuses these values together.
        """
        more = self.arguments(values)
        return tuple(run.varied(f"trial {number}", more) for run in self.runs)

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """Values as flags of iqmjx.train."""
        words = []
        for name, value in values.items():
            if self.space[name] == _SWITCH:
                words.append(f"--{'no' * (value == 'false')}{name}")
            else:
                words += [f"--{name}", self.shown(name, value)]
        return words

    def shown(self, name: str, value: Any) -> str:
        """A value as it is given: a number in few digits, within its range."""
        within = self.space[name]
        if not isinstance(within, FloatDistribution):
            return str(value)
        near = float(f"{value:.{_DIGITS}g}")
        return repr(min(max(near, within.low), within.high))

    def normalized(self, task: str, score: float) -> float:
        """A score in the task's unit."""
        zero, one = self.units[task]
        return (score - zero) / (one - zero)

    def layer(self, values: Mapping[str, Any]) -> str:
        """Values as an entry of `presets.LAYERS`, for these tasks."""
        arguments = [*self.runs[0].arguments, *self.arguments(values)]
        resolved = plan.settings(arguments)
        settings = resolved.config.flat()
        return "\n".join(
            [
                "Layer(",
                f"    preset=({resolved.preset!r},),",
                f"    task={tuple(dict.fromkeys(run.task for run in self.runs))!r},",
                f"    algo=({resolved.config.algo!r},),",
                "    settings={",
                *(f"        {name!r}: {settings[name]!r}," for name in values),
                "    },",
                "),",
            ]
        ).replace("'", '"')


def of(experiment: Experiment) -> Search:
    """What an experiment's study searches, held to the settings' own ranges.

    Raises:
        UsageError: naming the key, what is wrong with it, and the fix.
    """
    variants = [name for name in experiment.variants if name != RANDOM]
    if len(variants) > 1:
        names = ", ".join(variants)
        raise UsageError(f"variants {names}: a study is of one; leave one at the scale")
    if not experiment.search:
        raise UsageError("search: give a table with the settings to search")
    runs = tuple(run for run in experiment.runs if run.variant == variants[0])
    runs = tuple(sorted(runs, key=lambda run: [r.task for r in runs].index(run.task)))
    config = plan.settings(runs[0].arguments).config
    settings, fields = config.flat(), setting_fields(config.algo)
    space, present = {}, {}
    for name, asked in experiment.search.items():
        if name in _NAMED_ELSEWHERE:
            raise UsageError(f"search.{name}: all trials have the same; leave it out")
        if name not in fields:
            known = ", ".join(each for each in fields if each not in _NAMED_ELSEWHERE)
            raise UsageError(f"search.{name}: no such setting; there are {known}")
        space[name] = _distribution(name, asked, kind(fields[name]))
        here = settings[name]
        value = here if isinstance(asked, dict) else _text(here)
        if _holds(space[name], value):
            present[name] = value
    search = Search(runs, space, present, _units(runs, experiment.normalize))
    for name, distribution in space.items():
        for value in _extremes(distribution):
            try:
                search.trial(0, {name: value})
            except UsageError as error:
                raise UsageError(f"search.{name}: {error}") from error
    return search


def _distribution(name: str, asked: Any, of_kind: str) -> BaseDistribution:
    """What a file says that a setting may be."""
    if of_kind == "bool" and isinstance(asked, list) and sorted(asked) == [False, True]:
        return _SWITCH
    if isinstance(asked, list):
        texts = [_text(value) for value in asked]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise UsageError(f"search.{name}: give two or more values, none twice")
        return CategoricalDistribution(texts)
    if of_kind not in ("int", "float"):
        raise UsageError(f"search.{name}: give a list of values")
    whole = of_kind == "int"
    noun = "whole numbers" if whole else "numbers"
    form = f"{{ low = L, high = H }} of {noun}, with log = true for ratios"
    if not isinstance(asked, dict) or not asked.keys() <= {"low", "high", "log"}:
        raise UsageError(f"search.{name}: give {form}, or a list of values")
    ends = asked.get("low"), asked.get("high")
    low, high = _numbers(ends, (int,) if whole else (int, float)) or (0, 0)
    log = asked.get("log", False)
    if not low < high or not isinstance(log, bool):
        raise UsageError(f"search.{name}: give {form}; L is less than H")
    if log and low <= 0:
        raise UsageError(f"search.{name}: low {low} must be above 0 with log = true")
    if whole:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _numbers(
    pair: Any, kinds: tuple[type, ...] = (int, float)
) -> tuple[float, float] | None:
    """Two finite numbers of these types, if they are."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    finite = all(type(each) in kinds and math.isfinite(each) for each in pair)
    return (pair[0], pair[1]) if finite else None


def _units(
    runs: Sequence[Run], asked: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """The scores that count as 0 and 1; a single task's own unit, if none is given."""
    given = {}
    for task, pair in asked.items():
        try:
            given[envs.resolve(task)] = pair
        except UsageError as error:
            raise UsageError(f"normalize.{task}: {error}") from error
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) == 1:
        given.setdefault(tasks[0], (0.0, 1.0))
    found = {}
    for task in tasks:
        zero, one = _numbers(given.get(task)) or (0.0, 0.0)
        if zero == one:
            raise UsageError(
                f"normalize.{task}: give the two scores that count as 0 and as 1, such "
                f"as those of random play and of SAC"
            )
        found[task] = (zero, one)
    return found


def _holds(distribution: Any, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high


def _extremes(distribution: Any) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return distribution.low, distribution.high


def _text(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return shown(tuple(value) if isinstance(value, list) else value)
