"""Draws and tabulates learning curves: python -m iqmjx.report --curves FOLDER.

Reads the curves of an experiment. The figure shows return against env steps and against
wall-clock time, one row per task, one line per variant: the mean over seeds, with a 95%
bootstrap interval where there are several. A table gives the final Gymnasium scores and
the wall-clock minutes that they took; another what they say together, normalized so
that random play is 0 and SAC's mean 1, with 95% bootstrap intervals.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.experiments import curves as curve_files
from iqmjx.experiments import statistics
from iqmjx.experiments.curves import Curve
from iqmjx.experiments.plan import RANDOM, Experiment

FLAGS = flags.FlagValues()
_CURVES = flags.DEFINE_string(
    "curves", None, "Where curves are: an experiment's curves/.", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Figure and table, without their endings (default: report, beside the curves).",
    flag_values=FLAGS,
)
_BASELINE = "sac"  # a variant's name, in small letters
_AGGREGATES = (
    statistics.median,
    statistics.mean,
    statistics.interquartile_mean,
    statistics.optimality_gap,
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        if _CURVES.value is None:
            raise UsageError("--curves: name a folder of curves")
        folder = Path(_CURVES.value)
        print(write(folder, Path(_OUT.value or folder.parent / "report")))


def write(folder: Path, out: Path, experiment: Experiment | None = None) -> str:
    """Writes the report of the curves in a folder, whole or not.

    Args:
        folder: where the curves are.
        out: the files to write, without their endings.
        experiment: what the curves are of; says what is missing, and in which order
            variants come.

    Returns:
        The table, and where it lies.

    Raises:
        UsageError: where there is no curve.
    """
    found, problems = curve_files.load(folder)
    for line in problems:
        print(f"warning: {line}; left out", file=sys.stderr)
    if not found:
        raise UsageError(
            f"--curves {folder}: no curve there; iqmjx.experiment makes them"
        )
    order = [*experiment.variants] if experiment else []
    order += sorted({curve.variant for curve in found} - set(order))
    text = "\n".join(filter(None, [table(found, order), aggregates(found, order)]))
    if experiment:
        text = f"# {experiment.title}\n\n{text}"
        have = {(curve.task, curve.variant, curve.seed) for curve in found}
        missing = [
            run.name
            for run in experiment.runs
            if (run.task, run.variant, run.seed) not in have
        ]
        if missing:
            text += f"\nNot there yet: {', '.join(missing)}.\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text)
    draw(found, order, out.with_suffix(".png"))
    return f"{text}\n{out.with_suffix('.md')}, {out.with_suffix('.png')}"


def scores(curves: list[Curve]) -> dict[str, dict[str, list[float]]]:
    """Final scores by task and variant, in the order of their seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in sorted(curves, key=lambda curve: curve.seed):
        found[curve.task][curve.variant].append(curve.score)
    return {task: dict(by_variant) for task, by_variant in found.items()}


def normalized(
    by_task: dict[str, dict[str, list[float]]], variant: str
) -> dict[str, list[float]]:
    """A variant's scores by task: 0 is random play's mean, 1 the baseline's.

    Tasks that lack any of the three are left out.
    """
    found = {}
    for task, by_variant in by_task.items():
        baseline = _baseline(by_variant)
        if {variant, baseline, RANDOM} <= by_variant.keys():
            zero = float(np.mean(by_variant[RANDOM]))
            one = float(np.mean(by_variant[baseline]))
            scores_of = by_variant[variant]
            found[task] = [(score - zero) / (one - zero) for score in scores_of]
    return found


def _baseline(variants: Iterable[str]) -> str:
    """The name of the baseline among variants; '' where it is not there."""
    return next((name for name in variants if name.lower() == _BASELINE), "")


def table(curves: list[Curve], variants: list[str]) -> str:
    """A Markdown table: median score (all seeds), median minutes, by variant and task.

    Variants have rows in the order given.
    """
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for variant in variants:
        cells = [
            _cell([c for c in curves if (c.task, c.variant) == (task, variant)])
            for task in tasks
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(curves: list[Curve]) -> str:
    """Curves of one variant on one task, in the order of their seeds."""
    if not curves:
        return ""
    values = [curve.score for curve in sorted(curves, key=lambda curve: curve.seed)]
    seeds = ", ".join(f"{value:.0f}" for value in values)
    parts = [f"{np.median(values):.0f}" + (f" ({seeds})" if values[1:] else "")]
    if successes := [c.success for c in curves if c.success is not None]:
        parts.append(f"success {np.mean(successes):.0%}")
    if minutes := [c.seconds[-1] / 60 for c in curves if len(c.seconds)]:
        parts.append(f"{np.median(minutes):.0f} min")
    return ", ".join(parts)


def aggregates(curves: list[Curve], variants: list[str]) -> str:
    """A Markdown table of what normalized scores say together, with intervals.

    Empty where no task has both random play and the baseline.
    """
    by_task = scores(curves)
    baseline = normalized(by_task, _baseline(variants))
    lines = [
        "| | tasks | median | mean | interquartile mean | optimality gap | "
        "probability of a better score than SAC |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in variants:
        found = normalized(by_task, variant)
        if not found or variant == RANDOM:
            continue
        cells = [str(len(found))]
        cells += [_estimate(statistic, found) for statistic in _AGGREGATES]
        better = statistics.probability_of_improvement
        cells.append(_estimate(better, found, baseline))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if lines[2:] else ""


def _estimate(statistic: Callable[..., float], *found: statistics.Scores) -> str:
    low, high = statistics.interval(statistic, *found)
    return f"{statistic(*found):.2f} ({low:.2f} to {high:.2f})"


def draw(curves: list[Curve], variants: list[str], path: Path) -> None:
    """Writes the figure; nothing where no curve has an evaluation."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = sorted({curve.task for curve in curves if len(curve.env_steps)})
    if not tasks:
        return
    figure, axes = pyplot.subplots(
        len(tasks), 2, figsize=(11, 3.2 * len(tasks)), squeeze=False
    )
    for task, (by_steps, by_time) in zip(tasks, axes, strict=True):
        for color, variant in enumerate(variants):
            runs = [c for c in curves if c.task == task and c.variant == variant]
            runs = [c for c in runs if len(c.env_steps)]
            if not runs:
                continue
            style: dict[str, Any] = dict(color=f"C{color}", label=variant)
            _band(by_steps, [(c.env_steps / 1e6, c.returns) for c in runs], style)
            _band(by_time, [(c.seconds / 60, c.returns) for c in runs], style)
        by_steps.set(title=task, xlabel="env steps, millions", ylabel="return")
        by_time.set(title=task, xlabel="minutes")
        by_steps.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _band(axis, runs: list[tuple[np.ndarray, np.ndarray]], style: dict) -> None:
    """The mean over runs on a common grid, and its interval."""
    end = min(x[-1] for x, _ in runs)
    grid = np.linspace(0, end, 100)
    values = np.stack([np.interp(grid, x, y) for x, y in runs])  # [seeds, 100]
    axis.plot(grid, values.mean(0), **style)
    if len(runs) > 1:
        low, high = statistics.band(values)
        axis.fill_between(grid, low, high, color=style["color"], alpha=0.2, lw=0)
