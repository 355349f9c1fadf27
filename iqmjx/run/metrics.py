"""Where a run's numbers go: metrics.jsonl always, and loggers.

A logger is a small class: see `Logger`. `--loggers` takes names of LOGGERS and
`package.module:Class`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Protocol

import tensorboardX

from iqmjx import loop, registry, strict_json
from iqmjx.config import Config

FILE = "metrics.jsonl"
BEGINNING = -1
"""What a run is resumed at that had no checkpoint yet: no row of it is kept."""

LOGGERS: dict[str, str] = {"tensorboard": "iqmjx.run.metrics:TensorBoard"}


class Logger(Protocol):
    """What the rows of a run are given to, beside metrics.jsonl."""

    def __init__(self, folder: Path, config: Config, resume_at: int | None):
        """Opens the logger.

        Args:
            folder: the run's folder.
            config: the run's settings.
            resume_at: on a resume, the env steps restored: later rows were written
                before, and will be written again.
        """
        ...

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        """Takes one row of finite numbers."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
        ...


class TensorBoard:
    """Event files in the run's folder; implements `Logger`."""

    def __init__(self, folder: Path, config: Config, resume_at: int | None):
        del config
        self._writer = tensorboardX.SummaryWriter(
            str(folder),
            purge_step=None if resume_at is None else resume_at + 1,
            write_to_disk=True,
        )

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, env_steps)

    def close(self) -> None:
        self._writer.close()


class MetricsLog:
    """Appends rows to a run folder, one JSON object per line, and to its loggers."""

    def __init__(self, folder: Path, config: Config, resume_at: int | None = None):
        """Opens the log.

        Args:
            folder: where to write.
            config: the run's settings.
            resume_at: on a resume, the env steps restored: later rows, of steps that
                will be taken again, are removed.

        Raises:
            ValueError: for an unknown logger.
        """
        kinds = find_loggers(config)
        path = folder / FILE
        if resume_at is not None:
            _drop_rows_after(path, resume_at)
        self._file = path.open("a")
        self._loggers = [kind(folder, config, resume_at) for kind in kinds]

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        """Writes one row; numbers that are not finite become null."""
        self._file.write(strict_json.dumps({"env_steps": env_steps, **row}) + "\n")
        self._file.flush()
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        for logger in self._loggers:
            logger.write(env_steps, finite)

    def close(self) -> None:
        """Closes the file and the loggers."""
        self._file.close()
        for logger in self._loggers:
            logger.close()


def find_loggers(config: Config) -> list[type[Logger]]:
    """The classes of a run's loggers.

    Raises:
        ValueError: for an unknown one.
    """
    return [registry.find("loggers", name, LOGGERS) for name in config.loggers]


def read(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file."""
    path = run_folder / FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_row(metrics: loop.StepMetrics) -> dict[str, float]:
    """Log entries of the vector steps of one seed (metrics on the host)."""
    row = {
        "training/reward": float(metrics.reward),
        "training/actions_at_bounds": float(metrics.at_bounds),
        "physics/overflow": float(metrics.overflow),
        "physics/diverged": float(metrics.diverged),
        "episode/count": float(metrics.episodes),
    }
    row |= {f"task/{name}": float(value) for name, value in metrics.task.items()}
    if metrics.episodes > 0:
        row["episode/sum_reward"] = float(metrics.return_sum / metrics.episodes)
        row["episode/length"] = float(metrics.length_sum / metrics.episodes)
    return row


def learning_row(statistics: Any) -> dict[str, float]:
    """Log entries of an agent's statistics for one seed (on the host)."""
    return {
        f"training/{field.name}": float(getattr(statistics, field.name))
        for field in dataclasses.fields(statistics)
    }


def _drop_rows_after(path: Path, env_steps: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that an interruption cut short; nothing follows it
        if row["env_steps"] <= env_steps:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))
