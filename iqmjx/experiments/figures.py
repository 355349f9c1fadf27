"""Figures of curves: what a report shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iqmjx.experiments import statistics
from iqmjx.experiments.curves import Curve

# Okabe and Ito's colors, which tell apart for the color-blind as well; then grey.
_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8C564B", "#7F7F7F", "#BCBD22"),
)
_MARKS = ("-", "--", ":")  # of the lines, once all colors are taken
_COLUMNS = 3
_POINTS = 100
_Axis = tuple[str, Callable[[Curve], np.ndarray]]
BY_STEPS: _Axis = ("env steps, millions", lambda curve: curve.env_steps / 1e6)
BY_TIME: _Axis = ("minutes", lambda curve: curve.seconds / 60)


def style(variants: list[str], variant: str) -> dict[str, Any]:
    """How a variant is drawn, in every figure of a report."""
    index = variants.index(variant)
    mark = _MARKS[index // len(_COLORS) % len(_MARKS)]
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": mark}


def learning(curves: list[Curve], variants: list[str], axis: _Axis) -> Any:
    """Return against env steps or time: a panel for each task, a line for each variant.

    A line is the mean over seeds; its band the 95% bootstrap interval of that.

    Returns:
        The figure; None where no curve has an evaluation.
    """
    drawn = [curve for curve in curves if len(curve.env_steps)]
    tasks = list(dict.fromkeys(curve.task for curve in drawn))
    if not tasks:
        return None
    columns = min(_COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, panels = _panels(rows, columns)
    label, along = axis
    for task, panel in zip(tasks, panels.flat, strict=False):
        for variant in variants:
            runs = [c for c in drawn if (c.task, c.variant) == (task, variant)]
            if runs:
                lines = [(along(curve), curve.returns) for curve in runs]
                _line(panel, lines, style(variants, variant) | {"label": variant})
        panel.set_title(task, loc="left", fontsize=10, fontweight="bold")
        panel.set_xlabel(label)
    for panel in panels.flat[len(tasks) :]:
        panel.set_visible(False)
    panels[0, 0].set_ylabel("return")
    _legend(figure, panels.flat[: len(tasks)])
    return figure


def estimates(
    found: dict[str, dict[str, tuple[float, float, float]]], variants: list[str]
) -> Any:
    """Estimates and intervals: a panel for each statistic, a row for each variant.

    Args:
        found: for each statistic, for each variant: the estimate and its interval.
        variants: all of the report's, for their colors.
    """
    shown = list(next(iter(found.values())))
    figure, panels = _panels(1, len(found), height=1.0 + 0.28 * len(shown), width=2.5)
    for (name, by_variant), panel in zip(found.items(), panels.flat, strict=True):
        for row, (variant, (value, low, high)) in enumerate(by_variant.items()):
            color = style(variants, variant)["color"]
            panel.plot([low, high], [row, row], color=color, lw=6, alpha=0.35)
            panel.plot([value], [row], "o", color=color, ms=5)
        panel.set_yticks(range(len(shown)), shown if panel is panels[0, 0] else [])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_title(name, loc="left", fontsize=10, fontweight="bold")
    figure.tight_layout()
    return figure


def save(figure: Any, path: Path) -> tuple[Path, Path]:
    """Writes a figure, the same for the same curves, and frees it.

    Returns:
        The PNG file and the SVG file: the path with their endings.
    """
    pixels, vectors = (path.with_name(path.name + end) for end in (".png", ".svg"))
    figure.savefig(pixels, dpi=120)
    figure.savefig(vectors, metadata={"Date": None})
    _pyplot().close(figure)
    return pixels, vectors


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "iqmjx"  # the same figure, the same file
    from matplotlib import pyplot

    return pyplot


def _panels(
    rows: int, columns: int, height: float | None = None, width: float = 3.6
) -> tuple[Any, Any]:
    size = (width * columns + 0.4, height or 2.7 * rows + 0.6)
    figure, panels = _pyplot().subplots(rows, columns, figsize=size, squeeze=False)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#dddddd", lw=0.5)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    return figure, panels


def _legend(figure: Any, panels: Any) -> None:
    """One legend for all panels, below them."""
    named = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    rows = math.ceil(len(named) / 4)
    height = figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, 0.25 * rows / height, 1, 1))
    figure.legend(
        [*named.values()],
        [*named],
        loc="lower center",
        ncols=min(4, len(named)),
        frameon=False,
        fontsize=8,
    )


def _line(panel: Any, runs: list[tuple[np.ndarray, np.ndarray]], style: dict) -> None:
    """The mean over runs on a common grid, and its interval."""
    end = min(x[-1] for x, _ in runs)
    grid = np.linspace(0, end, _POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in runs])  # [seeds, points]
    panel.plot(grid, values.mean(0), lw=1.5, **style)
    if len(runs) > 1:
        low, high = statistics.band(values)
        panel.fill_between(grid, low, high, color=style["color"], alpha=0.18, lw=0)
