"""A run's folder: config.json, metrics.jsonl, events, checkpoints/ and best/."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from iqmjx.config import SCHEDULE, Config
from iqmjx.presets import Resolved

_FILE = "config.json"
_PACKAGES = ("jax", "mujoco", "mujoco-mjx", "flax", "optax", "orbax-checkpoint")


def refuse_existing(folder: Path) -> None:
    """Raises ValueError where the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--logdir {folder}: exists and is not empty; choose another, or add "
            f"--resume to go on with the run in it"
        )


def create(folder: Path, resolved: Resolved) -> None:
    """Makes the folder and writes config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, resolved)


def save(folder: Path, resolved: Resolved) -> None:
    """Writes config.json: each setting, where it came from, and the versions."""
    content = {
        "config": dataclasses.asdict(resolved.config),
        "preset": resolved.preset,
        "sources": resolved.sources,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    (folder / _FILE).write_text(json.dumps(content, indent=2) + "\n")


def load(folder: Path) -> Resolved:
    """Reads config.json.

    Raises:
        ValueError: where the folder is no run folder, or of an incompatible version.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ValueError(f"--logdir {folder}: not a run folder (it has no {_FILE})")
    try:
        content = json.loads(path.read_text())
        settings = content["config"]
        names = {field.name for field in dataclasses.fields(Config)}
        if differing := sorted(names ^ set(settings)):
            raise ValueError(
                f"{path}: written by a version of iqmjx with other settings "
                f"({', '.join(differing)}); use that version, or train anew"
            )
        return Resolved(Config(**settings), content["preset"], content["sources"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def merge(saved: Resolved, given: dict[str, Any], folder: Path) -> Resolved:
    """The settings to resume with: the saved ones, their schedule open to change.

    Raises:
        ValueError: where a given value differs in what the run computes.
    """
    config = dataclasses.replace(saved.config, **given)  # normalizes and validates
    changed = {
        name: (getattr(saved.config, name), getattr(config, name))
        for name in given
        if getattr(saved.config, name) != getattr(config, name)
    }
    conflicts = [
        f"{name} was {was}, given {now}"
        for name, (was, now) in changed.items()
        if name not in SCHEDULE
    ]
    if conflicts:
        raise ValueError(
            f"--resume with other settings than the run in {folder} began with: "
            f"{'; '.join(conflicts)}; leave these flags out, or start a new run"
        )
    sources = saved.sources | dict.fromkeys(changed, "flag, on resume")
    return Resolved(config, saved.preset, sources)
