"""A run's folder: config.json, metrics.jsonl, events, checkpoints/ and best/."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from iqmjx.config import SCHEDULE, Config, setting_fields
from iqmjx.presets import Resolved

_FILE = "config.json"
_EARLIER = "earlier version"
"""The source of a value that stands for what runs did before there was its setting."""
_UNREAD_BY_SAC = (
    "target_entropy",
    "munchausen",
    "policy",
    "num_bins",
    "scaled_softmax",
    "advantage_scale",
    "num_value_networks",
)
"""Settings of IQ's in SAC's files, from when all algorithms had the same."""
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
    """Reads config.json, of this version or of one before it.

    Raises:
        ValueError: where the folder is no run folder, or of a version with settings
            that have no equal now.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ValueError(f"--logdir {folder}: not a run folder (it has no {_FILE})")
    try:
        content = json.loads(path.read_text())
        values = _completed(_flat(content["config"]), path)
        sources = {name: content["sources"].get(name, _EARLIER) for name in values}
        return Resolved(Config.of(values), content["preset"], sources)
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _flat(saved: dict[str, Any]) -> dict[str, Any]:
    """The values in a config.json by flag name, as of now."""
    if "algorithm" in saved:
        own = saved["algorithm"]
        return {name: saved[name] for name in saved if name != "algorithm"} | own
    return _from_flat_file(saved)


def _from_flat_file(saved: dict[str, Any]) -> dict[str, Any]:
    """The values of a file from when all algorithms shared one flat list of settings.

    Residual methods went by their names then.
    """
    if saved["algo"] == "sac":
        return {name: saved[name] for name in saved if name not in _UNREAD_BY_SAC}
    values = saved | {"residual": saved["algo"] in ("pcl", "trust_pcl")}
    if "scaled_softmax" in values:
        values["softmax"] = "shared" if values.pop("scaled_softmax") else "raw"
    return values


def _completed(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Adds what stands for the settings that there were not when values were saved.

    Raises:
        ValueError: naming settings for which nothing does, and unknown ones.
    """
    fields = setting_fields(values["algo"])
    before = {
        name: fields[name].metadata.get("before", dataclasses.MISSING)
        for name in fields.keys() - values
    }
    missing = {name for name in before if before[name] is dataclasses.MISSING}
    if differing := sorted(missing | (values.keys() - fields)):
        raise ValueError(
            f"{path}: written by a version of iqmjx with other settings "
            f"({', '.join(differing)}); use that version, or train anew"
        )
    return values | before


def merge(saved: Resolved, given: dict[str, Any], folder: Path) -> Resolved:
    """The settings to resume with: the saved ones, their schedule open to change.

    Args:
        saved: the run's settings.
        given: values that the user gave, by flag name.
        folder: the run's, for messages.

    Raises:
        ValueError: where a given value differs in what the run computes.
    """
    before = saved.config.flat()
    # Another algorithm has other settings; that it is another is said below.
    rest = {name: given[name] for name in given if name != "algo"}
    config = Config.of(before | rest)  # normalizes and validates
    after = config.flat() | {"algo": given.get("algo", before["algo"])}
    changed = {
        name: (before[name], after[name])
        for name in given
        if before[name] != after[name]
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
