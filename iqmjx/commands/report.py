"""Draws and tabulates learning curves: python -m iqmjx.report.

Reads the files that launch/learning_curves.py writes. The figure shows return against
env steps and against wall-clock time, one row per task, one line per algorithm: the
mean over seeds, with a 95% bootstrap interval where there are several. The table gives
the final Gymnasium scores and the wall-clock minutes that they took, and the median of
the scores over tasks, normalized so that random play is 0 and SAC's median seed 1.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from iqmjx.commands import cli
from iqmjx.errors import UsageError

FLAGS = flags.FlagValues()
_CURVES = flags.DEFINE_string(
    "curves", "launch/results/curves", "Where curves are.", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out",
    "launch/results/report",
    "Figure and table, without their endings.",
    flag_values=FLAGS,
)
_BASELINE, _RANDOM = "sac", "random"
_BOOTSTRAPS = 2000


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run: its evaluations [E] and its Gymnasium score."""

    task: str
    label: str  # the algorithm, and the name of its settings if any
    seed: int
    env_steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    score: float


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        curves = load(Path(_CURVES.value))
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = table(curves)
    out.with_suffix(".md").write_text(text)
    draw(curves, out.with_suffix(".png"))
    print(text)
    print(f"{out.with_suffix('.md')}, {out.with_suffix('.png')}")


def load(folder: Path) -> list[Curve]:
    """Reads all finished curves in a folder.

    Raises:
        UsageError: where there is none.
    """
    curves = []
    for path in sorted(folder.glob("*.jsonl")):
        head, *rows, end = (json.loads(line) for line in path.read_text().splitlines())
        curves.append(
            Curve(
                task=head["task"],
                label="-".join(filter(None, [head["algo"], head["name"]])),
                seed=head["seed"],
                env_steps=np.array([row["env_steps"] for row in rows]),
                seconds=np.array([row["seconds"] for row in rows]),
                # Where no episode stayed in the numbers: null, which becomes NaN.
                returns=np.array([row["return"] for row in rows], float),
                score=float(np.array(end["score"], float)),
            )
        )
    if not curves:
        raise UsageError(
            f"--curves {folder}: no curve there; launch/learning_curves.py writes them"
        )
    return curves


def scores(curves: list[Curve]) -> dict[str, dict[str, list[float]]]:
    """Final scores by task and label, in the order of their seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in sorted(curves, key=lambda curve: curve.seed):
        found[curve.task][curve.label].append(curve.score)
    return {task: dict(by_label) for task, by_label in found.items()}


def normalized(
    by_task: dict[str, dict[str, list[float]]], label: str
) -> dict[str, list[float]]:
    """A label's scores by task: 0 is random play's mean, 1 the baseline's median.

    Tasks that lack any of the three are left out.
    """
    found = {}
    for task, by_label in by_task.items():
        if {label, _BASELINE, _RANDOM} <= by_label.keys():
            zero = float(np.mean(by_label[_RANDOM]))
            one = float(np.median(by_label[_BASELINE]))
            found[task] = [(score - zero) / (one - zero) for score in by_label[label]]
    return found


def table(curves: list[Curve]) -> str:
    """A Markdown table: median score (all seeds), median minutes, by label and task."""
    by_task = scores(curves)
    lines = [
        "| | " + " | ".join(by_task) + " | median normalized score |",
        "|---|" + "---|" * (len(by_task) + 1),
    ]
    for label in sorted({curve.label for curve in curves}):
        cells = []
        for task, by_label in by_task.items():
            values = by_label.get(label, [])
            seeds = ", ".join(f"{value:.0f}" for value in values)
            several = f" ({seeds})" if len(values) > 1 else ""
            minutes = [
                curve.seconds[-1] / 60
                for curve in curves
                if (curve.task, curve.label) == (task, label) and len(curve.seconds)
            ]
            took = f", {np.median(minutes):.0f} min" if minutes else ""
            cells.append(f"{np.median(values):.0f}{several}{took}" if values else "")
        medians = [np.median(values) for values in normalized(by_task, label).values()]
        cells.append(f"{np.median(medians):.2f}" if medians else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(curves: list[Curve], path: Path) -> None:
    """Writes the figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = sorted({curve.task for curve in curves if len(curve.env_steps)})
    labels = sorted({curve.label for curve in curves if len(curve.env_steps)})
    figure, axes = pyplot.subplots(
        len(tasks), 2, figsize=(11, 3.2 * len(tasks)), squeeze=False
    )
    for task, (by_steps, by_time) in zip(tasks, axes, strict=True):
        for color, label in enumerate(labels):
            runs = [c for c in curves if c.task == task and c.label == label]
            if not runs:
                continue
            style: dict[str, Any] = dict(color=f"C{color}", label=label)
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
        low, high = interval(values)
        axis.fill_between(grid, low, high, color=style["color"], alpha=0.2, lw=0)


def interval(values: np.ndarray) -> np.ndarray:
    """95% bootstrap interval [2, T] of the mean over seeds of values [seeds, T]."""
    from rliable import library

    estimates = library.get_interval_estimates(
        {"": values}, lambda sample: sample.mean(0), reps=_BOOTSTRAPS
    )
    return estimates[1][""]
