"""Loggers that are services: each seed's run is kept under a name of its own.

The name is made when a run begins and lies in its folder, so that a resume continues
the same tracked run.
"""

from __future__ import annotations

import abc
import json
import uuid
from pathlib import Path
from typing import Any

from iqmjx import strict_json
from iqmjx.config import Config
from iqmjx.run import run_folder

PROJECT = "iqmjx"


class Tracker(abc.ABC):
    """A logger (`iqmjx.run.metrics.Logger`) that a service stands behind.

    Services keep every row that they are given, so one that comes again after a resume
    is left out: the file `FOLDER/<service>.json` says how far they were told.
    """

    service: str

    def __init__(self, folder: Path, config: Config, resume_at: int | None):
        del resume_at
        self._path = folder / f"{self.service}.json"
        self._told: dict[str, Any] = {"name": _new_name(config), "env_steps": 0}
        if self._path.exists():
            self._told = strict_json.loads(self._path.read_text())
        self._first = self._told["env_steps"]  # whose rows may have come but in part
        self._begin(self._told["name"], folder, config.flat())
        self._save()

    def write(self, env_steps: int, row: dict[str, float]) -> None:
        if env_steps < self._first:
            return
        self._send(env_steps, row)
        self._told["env_steps"] = env_steps
        self._save()

    @abc.abstractmethod
    def close(self) -> None:
        """Waits until the service has all rows."""

    @abc.abstractmethod
    def _begin(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        """Begins the tracked run of this name, or resumes it."""

    @abc.abstractmethod
    def _send(self, env_steps: int, row: dict[str, float]) -> None:
        """Gives the service a row."""

    def _save(self) -> None:
        run_folder.write_whole(self._path, json.dumps(self._told).encode())


def _new_name(config: Config) -> str:
    task = config.env.replace(":", ".")
    return f"{task}-{config.algo}-{config.seed}-{uuid.uuid4().hex[:8]}"
