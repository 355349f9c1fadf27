"""The report of an experiment: tables and figures of its curves.

REPORT.md, REPORT-steps.png, .svg, -minutes, -scores   tables, and figures beside them
REPORT.html   all of it on one page
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from iqmjx.errors import UsageError
from iqmjx.experiments import curves as curve_files
from iqmjx.experiments import figures, page, statistics
from iqmjx.experiments.curves import Curve
from iqmjx.experiments.plan import RANDOM, Experiment

_BASELINE = "sac"  # a variant's name, in small letters
_AGGREGATES: Mapping[str, Callable[..., float]] = {
    "median": statistics.median,
    "mean": statistics.mean,
    "interquartile mean": statistics.interquartile_mean,
    "optimality gap": statistics.optimality_gap,
}
_BETTER = "better than SAC"
_SCORES = (
    "Return of the policy at the end of the run, in Gymnasium: the median over seeds, "
    "each seed's, and the minutes that training took."
)
_TOGETHER = (
    "Scores of all tasks, where uniform play is 0 and SAC's mean 1; 95% bootstrap "
    "intervals. Medians and means are over tasks; the optimality gap is by how much "
    "scores lie below 1; the last column is how likely a score is above SAC's."
)
_LINES = "Greedy evaluations: the mean over seeds, and its 95% bootstrap interval."
_Table = list[list[str]]
_Estimates = dict[str, dict[str, tuple[float, float, float]]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        text: the tables, in Markdown.
        files: where all is.
        problems: a line about each curve that could not be read.
    """

    text: str
    files: list[Path]
    problems: list[str]


def write(folder: Path, out: Path, experiment: Experiment | None = None) -> Report:
    """Writes the report of the curves in a folder, whole or not.

    Args:
        folder: where the curves are.
        out: the files to write, without their endings.
        experiment: what the curves are of; says what is missing, and in which order
            variants come.

    Raises:
        UsageError: where there is no curve.
    """
    found, problems = curve_files.load(folder)
    if not found:
        raise UsageError(
            f"--curves {folder}: no curve there; iqmjx.experiment makes them"
        )
    variants = [*experiment.variants] if experiment else []
    variants += sorted({curve.variant for curve in found} - set(variants))
    title = experiment.title if experiment else str(folder)
    problems = [f"{problem}; left out" for problem in problems]
    notes = [*problems]
    if missing := _missing(experiment, found):
        notes.append(f"Not there yet: {', '.join(missing)}.")
    together = estimates(found, variants)
    tables = [("Scores", _SCORES, scores_table(found, variants))]
    drawings = [
        ("steps", "Return by env steps", figures.BY_STEPS),
        ("minutes", "Return by time", figures.BY_TIME),
    ]
    drawn = [
        (key, name, _LINES, figures.learning(found, variants, axis))
        for key, name, axis in drawings
    ]
    if together:
        tables.append(("Together", _TOGETHER, estimates_table(together)))
        drawing = figures.estimates(together, variants)
        drawn.append(("scores", "Scores together", _TOGETHER, drawing))
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_suffix(".md"), out.with_suffix(".html")]
    parts, lines = [page.text(note) for note in notes], []
    for name, about, rows in tables:
        parts.append(page.table(name, about, rows))
        lines += [f"## {name}", "", about, "", _markdown(rows)]
    for key, name, about, drawing in drawn:
        if drawing is None:
            continue
        pixels, vectors = figures.save(drawing, out.with_name(f"{out.name}-{key}"))
        files += [pixels, vectors]
        parts.append(page.figure(name, about, vectors.read_text()))
        lines += [f"## {name}", "", f"![{name}]({pixels.name})", ""]
    text = "\n".join([f"# {title}", "", *notes, "", *lines])
    files[0].write_text(text)
    files[1].write_text(page.page(title, parts))
    return Report(text, files, problems)


def scores(curves: Iterable[Curve]) -> dict[str, dict[str, list[float]]]:
    """Final scores by task and variant, in the order of their seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in sorted(curves, key=lambda curve: curve.seed):
        found[curve.task][curve.variant].append(curve.score)
    return {task: dict(by_variant) for task, by_variant in found.items()}


def normalized(
    by_task: dict[str, dict[str, list[float]]], variant: str
) -> dict[str, list[float]]:
    """A variant's scores by task: 0 is random play's mean, 1 the baseline's.

    Tasks that lack any of the three are left out, and those where the two are equal.
    """
    found = {}
    for task, by_variant in by_task.items():
        baseline = _baseline(by_variant)
        if {variant, baseline, RANDOM} <= by_variant.keys():
            zero = float(np.mean(by_variant[RANDOM]))
            one = float(np.mean(by_variant[baseline]))
            if np.isfinite(one - zero) and one != zero:
                own = by_variant[variant]
                found[task] = [(score - zero) / (one - zero) for score in own]
    return found


def estimates(curves: list[Curve], variants: list[str]) -> _Estimates:
    """What normalized scores say together: each statistic of each variant.

    An estimate, and the ends of its interval: NaN where all of its scores are of one
    seed, which say nothing of others. Empty where no task has both random play and the
    baseline.
    """
    by_task = scores(curves)
    baseline = normalized(by_task, _baseline(variants))
    found: _Estimates = defaultdict(dict)
    for variant in variants:
        own = normalized(by_task, variant)
        if not own or variant == RANDOM:
            continue
        for name, statistic in _AGGREGATES.items():
            found[name][variant] = _estimate(statistic, own)
        better = statistics.probability_of_improvement
        found[_BETTER][variant] = _estimate(better, own, baseline)
    return dict(found)


def _estimate(
    statistic: Callable[..., float], *scores: dict[str, list[float]]
) -> tuple[float, float, float]:
    """A statistic and its interval."""
    several = any(len(of) > 1 for by_task in scores for of in by_task.values())
    ends = statistics.interval(statistic, *scores) if several else (np.nan, np.nan)
    return statistic(*scores), *ends


def scores_table(curves: list[Curve], variants: list[str]) -> _Table:
    """Scores by variant and task; variants have rows in the order given."""
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    rows = [["", *tasks]]
    for variant in variants:
        of_variant = [curve for curve in curves if curve.variant == variant]
        cells = [_cell([c for c in of_variant if c.task == task]) for task in tasks]
        rows.append([variant, *cells])
    return rows


def estimates_table(found: _Estimates) -> _Table:
    """Estimates by variant and statistic."""
    variants = next(iter(found.values()))
    rows = [["", *found]]
    for variant in variants:
        told = [by_variant[variant] for by_variant in found.values()]
        rows.append([variant, *(_told(*each) for each in told)])
    return rows


def _told(value: float, low: float, high: float) -> str:
    note = "one seed" if np.isnan(low) else f"{low:.2f} to {high:.2f}"
    return f"{value:.2f}\n{note}"


def _missing(experiment: Experiment | None, curves: list[Curve]) -> list[str]:
    """Names of the runs that an experiment lacks."""
    have = {(curve.task, curve.variant, curve.seed) for curve in curves}
    runs = experiment.runs if experiment else ()
    return [r.name for r in runs if (r.task, r.variant, r.seed) not in have]


def _baseline(variants: Iterable[str]) -> str:
    """The name of the baseline among variants; '' where it is not there."""
    return next((name for name in variants if name.lower() == _BASELINE), "")


def _cell(curves: list[Curve]) -> str:
    """Curves of one variant on one task: their median, and a note on each."""
    if not curves:
        return ""
    values = [curve.score for curve in sorted(curves, key=lambda curve: curve.seed)]
    lines = [f"{np.median(values):,.0f}"]
    if values[1:]:
        lines.append(", ".join(f"{value:,.0f}" for value in values))
    if successes := [c.success for c in curves if c.success is not None]:
        lines.append(f"success {np.mean(successes):.0%}")
    if minutes := [c.seconds[-1] / 60 for c in curves if len(c.seconds)]:
        lines.append(f"{np.median(minutes):.0f} min")
    return "\n".join(lines)


def _markdown(rows: _Table) -> str:
    """A table in Markdown, notes in brackets."""
    lines = []
    for row in rows:
        cells = []
        for cell in row:
            first, *notes = cell.replace("|", "/").split("\n")
            cells.append(f"{first} ({'; '.join(notes)})" if notes else first)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""])
