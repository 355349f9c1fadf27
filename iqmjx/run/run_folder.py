"""A run's folder.

    RUN/config.json      the settings
    RUN/checkpoints/     whole states, which --resume continues from
    RUN/.lock            held by the process that trains in it
    RUN/metrics.jsonl    and events: the numbers of a seed
    RUN/policy/, best/   policies of a seed
    RUN/diverged/        worlds of a seed that diverged
    RUN/videos/          what policies of a seed did while it trained

A run of several seeds has the last four rows in RUN/seed<k>/, one folder for each,
with a config.json of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import itertools
import json
import shlex
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iqmjx import envs, strict_json
from iqmjx.config import SCHEDULE, Config, setting_fields
from iqmjx.errors import UsageError
from iqmjx.presets import Resolved

_FILE, _LOCK = "config.json", ".lock"
_IS_FILE = "it is a file; give a folder"
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
_VERSION_1 = ("door", "hammer", "relocate")
"""Tasks that files named without a version, from when version 1 was all there was."""
_PACKAGES = ("jax", "mujoco", "mujoco-mjx", "flax", "optax", "orbax-checkpoint")


def new_default(config: Config) -> Path:
    """Makes a folder under checkpoints/ that no other run has.

    Raises:
        UsageError: where it cannot be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.env}-{config.algo}-{config.seed}-{stamp}".replace(":", ".")
    for count in itertools.count(1):
        folder = Path("checkpoints") / (name if count == 1 else f"{name}-{count}")
        with _writing(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or nothing but hidden files in it.

    Raises:
        UsageError: where it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--logdir {folder}: {_IS_FILE}")
    if not folder.exists():
        return True
    return all(path.name.startswith(".") for path in folder.iterdir())


@contextlib.contextmanager
def claimed(folder: Path, flag: str = "logdir") -> Iterator[None]:
    """Keeps other processes from working in a folder until it is left.

    The folder is made where there is none. The claim ends with the process, however
    that ends.

    Args:
        folder: the folder.
        flag: the one that names it, for messages.

    Raises:
        UsageError: where another process has claimed it, or it cannot be written.
    """
    with _writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"--{flag} {folder}: another process is training in it; wait for it, "
                f"or choose another folder"
            ) from error
        yield


def is_claimed(folder: Path) -> bool:
    """Whether a process has claimed a folder, if there is one."""
    try:
        lock = (folder / _LOCK).open("a")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def create(folder: Path, resolved: Resolved) -> None:
    """Makes the folder, and one for each of several seeds, with their config.json.

    Raises:
        UsageError: where it cannot be written.
    """
    with _writing(folder):
        save(folder, resolved)
        for config, own in seeds(resolved.config, folder):
            save(own, dataclasses.replace(resolved, config=config))


def save(folder: Path, resolved: Resolved) -> None:
    """Writes config.json: settings, where each came from, the commit, the versions.

    The folder is made where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "config": saved_form(resolved.config),
        "preset": resolved.preset,
        "sources": resolved.sources,
        "commit": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    content["digest"] = _digest(content)
    write_whole(folder / _FILE, (json.dumps(content, indent=2) + "\n").encode())


def made_by(folder: Path) -> dict[str, Any]:
    """The commit and the versions that a run was last trained with.

    The commit is null outside a checkout.
    """
    content = strict_json.loads((folder / _FILE).read_text())
    return {"commit": content.get("commit"), "versions": content["versions"]}


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that this code is from, marked where files differ.

    None where there is no checkout: a repository around installed packages is not it.
    """

    def said(*arguments: str) -> str:
        command = ["git", *arguments]
        try:
            done = subprocess.run(command, cwd=here, capture_output=True, text=True)
        except OSError:  # no git
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    here = Path(__file__).parent
    if not said("ls-files", Path(__file__).name):
        return None
    return said("describe", "--always", "--dirty", "--exclude=*") or None


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file, which at every moment is the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


def _digest(content: dict[str, Any]) -> int:
    """The CRC-32 of what config.json says, whatever its layout."""
    said = {name: content[name] for name in content if name != "digest"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


@contextlib.contextmanager
def _writing(folder: Path, flag: str = "logdir") -> Iterator[None]:
    """Says of a folder that cannot be written that it is the flag's."""
    try:
        yield
    except FileExistsError as error:
        if folder.is_dir():
            raise
        raise UsageError(f"--{flag} {folder}: {_IS_FILE}") from error
    except OSError as error:
        fix = "give a folder that can be written"
        raise UsageError(f"--{flag} {folder}: {error.strerror}; {fix}") from error


def load(folder: Path) -> Resolved:
    """Reads config.json, of this version or of one before it.

    Raises:
        UsageError: where the folder is no run folder, or of a version with settings
            that have no equal now.
    """
    path = folder / _FILE
    if not path.is_file():
        raise UsageError(f"--logdir {folder}: not a run folder (it has no {_FILE})")
    try:
        content = strict_json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    where = str(path)
    config = config_of(_part(content, "config", dict, where), where)
    preset = _part(content, "preset", str, where)
    told = _part(content, "sources", dict, where)
    sources = {name: told.get(name, _EARLIER) for name in config.flat()}
    for name, source in sources.items():
        if not isinstance(source, str):
            raise UsageError(f"{where}: sources.{name} {source}: give a text")
    if content.get("digest", _digest(content)) != _digest(content):
        raise UsageError(
            f"{where}: it was changed since it was written; put it back as it was, or "
            f"remove its digest to accept it"
        )
    return Resolved(config, preset, sources)


def saved_form(config: Config) -> dict[str, Any]:
    """What is saved of a config, for `config_of` to read: the task with its version."""
    return dataclasses.asdict(config) | {"env": envs.versioned(config.env)}


def config_of(saved: Any, where: str) -> Config:
    """The config that was saved, by this version of iqmjx or one before.

    Args:
        saved: what `saved_form` made of it.
        where: what they were read from, for messages.

    Raises:
        UsageError: where they have settings that have no equal now, or values that no
            run can have; the message names the field.
        NotFoundError: where their algorithm cannot be found.
    """
    _part(saved, "algo", str, where)
    values = _flat(saved, where)
    with read_from(where):
        fields = setting_fields(values["algo"])
        before = {
            name: fields[name].metadata.get("before", dataclasses.MISSING)
            for name in fields.keys() - values
        }
        missing = {name for name in before if before[name] is dataclasses.MISSING}
        if differing := sorted(missing | (values.keys() - fields)):
            raise UsageError(
                f"written by a version of iqmjx with other settings "
                f"({', '.join(differing)}); use that version, or train anew"
            )
        return Config.of(values | before)


@contextlib.contextmanager
def read_from(where: str) -> Iterator[None]:
    """Says of settings that cannot be used what they were read from: no flag gave them.

    A UsageError keeps its class.
    """
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{where}: {str(error).removeprefix('--')}") from error


def _part(content: Any, name: str, kind: type, where: str) -> Any:
    """What a JSON object has under a name.

    Raises:
        UsageError: naming it, where there is none of this kind.
    """
    given = content.get(name) if isinstance(content, dict) else None
    if isinstance(given, kind):
        return given
    noun = {dict: "an object", str: "a text"}[kind]
    raise UsageError(
        f"{where}: cannot be read ({name} must be {noun}, as the run wrote it)"
    )


def resume_command(folder: Path) -> str:
    """What a user types to resume the run in a folder."""
    return f"python -m iqmjx.train --resume --logdir {shlex.quote(str(folder))}"


def seeds(config: Config, folder: Path) -> list[tuple[Config, Path]]:
    """The config and the folder of each seed: the run's own, where it has one seed."""
    numbers = range(config.seed, config.seed + config.num_seeds)
    return [
        (dataclasses.replace(config, seed=seed, num_seeds=1), own)
        for seed, own in seed_folders(folder, numbers).items()
    ]


def seed_folders(folder: Path, numbers: range) -> dict[int, Path]:
    """The folder of each seed of a run with seeds of these numbers."""
    if len(numbers) == 1:
        return {numbers[0]: folder}
    return {seed: folder / f"seed{seed}" for seed in numbers}


def _flat(saved: dict[str, Any], where: str) -> dict[str, Any]:
    """The values in a config.json by flag name, as of now."""
    if "algorithm" in saved:
        own = _part(saved, "algorithm", dict, where)
        values = {name: saved[name] for name in saved if name != "algorithm"} | own
    else:
        values = _from_flat_file(saved)
    if values.get("env") in _VERSION_1:
        values["env"] += "-v1"
    if "anneal_learning_rate" in values:
        values["learning_rate_decay"] = float(values.pop("anneal_learning_rate"))
    return values


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


def merge(saved: Resolved, given: dict[str, Any], folder: Path) -> Resolved:
    """The settings to resume with: the saved ones, their schedule open to change.

    Args:
        saved: the run's settings.
        given: values that the user gave, by flag name.
        folder: the run's, for messages.

    Raises:
        UsageError: where a given value differs in what the run computes.
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
        raise UsageError(
            f"--resume with other settings than the run in {folder} began with: "
            f"{'; '.join(conflicts)}; leave these flags out, or start a new run"
        )
    sources = saved.sources | dict.fromkeys(changed, "flag, on resume")
    return Resolved(config, saved.preset, sources)
