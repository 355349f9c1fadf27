"""Where a run's numbers go: metrics.jsonl always, and loggers.

A logger is a small class: see `Logger`. `--loggers` takes names of LOGGERS and
`package.module:Class`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from iqmjx import loop, registry, strict_json
from iqmjx.config import Config
from iqmjx.errors import RunError, described
from iqmjx.run import run_folder

_event: Any = event_pb2  # protobuf makes their classes when they are imported
_summary: Any = summary_pb2
FILE = "metrics.jsonl"
_CALLS = {
    "__init__": "folder, config, resume_at",
    "write": "env_steps, row",
    "close": "",
}
BEGINNING = -1
"""What a run is resumed at that had no checkpoint yet: no row of it is kept."""

LOGGERS: dict[str, str] = {
    "tensorboard": "iqmjx.run.metrics:TensorBoard",
    "wandb": "iqmjx.run.trackers.wandb_run:WeightsAndBiases",
    "trackio": "iqmjx.run.trackers.trackio_run:Trackio",
}


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
    """Event files in the run's folder; implements `Logger`.

    Written in the caller's thread: tensorboardX's own SummaryWriter hands rows to a
    thread, and waits forever once that has met a full disk.
    """

    def __init__(self, folder: Path, config: Config, resume_at: int | None):
        del config
        self._writer = event_file_writer.EventsWriter(
            str(folder / "events"), f".{os.getpid()}"
        )
        if resume_at is not None:  # readers drop what has this step or a later one
            start = _event.SessionLog(status=_event.SessionLog.START)
            self._add(resume_at + 1, session_log=start)

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        values = [_summary.Summary.Value(tag=t, simple_value=v) for t, v in row.items()]
        self._add(env_steps, summary=_summary.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _add(self, env_steps: int, **content: Any) -> None:
        event = _event.Event(step=env_steps, wall_time=time.time(), **content)
        self._writer.write_event(event)
        self._writer.flush()


class MetricsLog:
    """Appends rows to a run folder, one JSON object per line, and to its loggers.

    What cannot be written, or a logger does not take, is said once, and lost; a run
    does not end for it.

    Attributes:
        before: on a resume, the rows that are kept.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        resume_at: int | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ):
        """Opens the log.

        Args:
            folder: where to write.
            config: the run's settings.
            resume_at: on a resume, the env steps restored: later rows, of steps that
                will be taken again, are removed.
            warn: told in a line what could not be read or written.

        Raises:
            RunError: where a logger cannot be opened; the message names it.
        """
        path = folder / FILE
        self.before: list[dict[str, Any]] = []
        if resume_at is not None and path.exists():
            self.before = _drop_rows_after(path, resume_at, warn)
        self._warn = warn
        self._lines = _Lines(path)
        self._loggers = _open_loggers(folder, config, resume_at)
        self._failing: set[str] = set()

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        """Writes one row; numbers that are not finite become null."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        line = strict_json.dumps({"env_steps": env_steps, **row})
        self._guarded(FILE, lambda: self._lines.write(line))
        for name, logger in self._loggers.items():
            self._guarded(name, lambda to=logger: to.write(env_steps, finite))

    def close(self) -> None:
        """Closes the file and the loggers."""
        self._lines.close()
        for name, logger in self._loggers.items():
            self._guarded(name, logger.close)

    def _guarded(self, name: str, write: Callable[[], None]) -> None:
        """Writes, and says so where that begins to fail."""
        try:
            write()
            self._failing.discard(name)
        except Exception as error:  # whatever a logger's is: training continues
            if name not in self._failing:
                self._warn(f"warning: {name} cannot be written: {_reason(error)}")
            self._failing.add(name)


class _Lines:
    """A file that lines are appended to, whole: after a failure it begins a new one."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._torn = False

    def write(self, line: str) -> None:
        data = ("\n" * self._torn + line + "\n").encode()
        self._torn = True
        while data:
            data = data[os.write(self._file, data) :]
        self._torn = False

    def close(self) -> None:
        os.close(self._file)


def find_loggers(config: Config) -> dict[str, type[Logger]]:
    """The classes of a run's loggers, by the names they were given by.

    Raises:
        UsageError: for an unknown one, or a class that is none.
    """
    found = {name: registry.find("loggers", name, LOGGERS) for name in config.loggers}
    for name, kind in found.items():
        registry.check("loggers", name, kind, _CALLS)
    return found


def _open_loggers(
    folder: Path, config: Config, resume_at: int | None
) -> dict[str, Logger]:
    opened = {}
    for name, kind in find_loggers(config).items():
        try:
            opened[name] = kind(folder, config, resume_at)
        except Exception as error:
            raise RunError(
                f"--loggers {name}: it cannot be opened: {_reason(error)}"
            ) from error
    return opened


def _reason(error: Exception) -> str:
    """An error in one line, and where it comes from if it is no file's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{described(error)} ({place.filename}, line {place.lineno})"


def read(
    folder: Path, warn: Callable[[str], None] = warnings.warn
) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file.

    Args:
        folder: a seed's.
        warn: told in a line about each row that is damaged, and left out.
    """
    path = folder / FILE
    return [row for _, row in _rows(path, warn)] if path.exists() else []


def steps_row(metrics: loop.StepMetrics) -> dict[str, float]:
    """Log entries of the vector steps of one seed (metrics on the host)."""
    row = {
        "training/reward": float(metrics.reward),
        "training/reward_scale": float(metrics.reward_scale),
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


def _drop_rows_after(
    path: Path, env_steps: int, warn: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Returns the rows that are left."""
    kept = [each for each in _rows(path, warn) if each[1]["env_steps"] <= env_steps]
    run_folder.write_whole(path, b"".join(line + b"\n" for line, _ in kept))
    return [row for _, row in kept]


def _rows(
    path: Path, warn: Callable[[str], None]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file and what they say, but for damaged ones."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = strict_json.loads(line)
            if not isinstance(row["env_steps"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            warn(f"warning: {path}: line {number} is damaged, and left out")
        else:
            yield line, row
