"""Where a run's numbers go: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX

from iqmjx import loop

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends rows to a run folder, one JSON object per line."""

    def __init__(self, run_folder: Path, resume_at: int | None = None):
        """Opens the log.

        Args:
            run_folder: where to write.
            resume_at: on a resume, the env steps restored: later rows, of steps that
                will be taken again, are removed.
        """
        path = run_folder / FILE
        if resume_at is not None:
            _drop_rows_after(path, resume_at)
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(run_folder), purge_step=resume_at, write_to_disk=True
        )

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        """Writes one row; numbers that are not finite become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps({"env_steps": env_steps, **clean}) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if value is not None:
                self._board.add_scalar(name, value, env_steps)

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._board.close()


def read(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file."""
    path = run_folder / FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def chunk_row(metrics: loop.StepMetrics, replay_size: int) -> dict[str, float]:
    """Log entries of one chunk of training."""
    metrics = _to_host(metrics)
    row = {
        f"training/{field.name}": float(getattr(metrics.learning, field.name))
        for field in dataclasses.fields(metrics.learning)
    }
    row |= {
        "training/updates": float(metrics.updates),
        "training/reward": float(metrics.reward),
        "training/actions_at_bounds": float(metrics.at_bounds),
        "training/buffer_current_size": float(replay_size),
        "physics/overflow": float(metrics.overflow),
        "physics/diverged": float(metrics.diverged),
        "episode/count": float(metrics.episodes),
    }
    if metrics.episodes > 0:
        row["episode/sum_reward"] = float(metrics.return_sum / metrics.episodes)
        row["episode/length"] = float(metrics.length_sum / metrics.episodes)
    return row


def _to_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, jax.device_get(tree))


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
