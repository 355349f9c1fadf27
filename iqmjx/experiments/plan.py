"""Experiments as data: the runs that a TOML file asks for.

    title = "Figure 2: IQ and what it is held against"
    tasks = ["hopper", "ant"]
    random = true                          # uniform play too: the zero of scores

    [variants]                             # what is compared: flags of iqmjx.train
    IQ = "--algo iq"
    SAC = "--algo sac"

    [scales.cpu]                           # how large: --scale cpu
    seeds = [0, 1, 2]
    episodes = 10                          # of a run's score
    flags = "--preset cpu --num_evals 21"  # of every run
    tasks = { hopper = "--num_timesteps 1000000" }  # of a task's; not needed
    variants = ["IQ"]                      # some of them; not needed
    pack_seeds = false                     # several seeds in one process; not needed

Later flags win: the scale's, the task's, the variant's. A file may also have the tables
`search` and `normalize`, of a study: see `iqmjx.experiments.search`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from iqmjx import command_line, envs, presets
from iqmjx.errors import UsageError
from iqmjx.settings import LARGEST_INT

RANDOM = "random"
"""The variant that plays uniformly random actions, and is not trained."""
_FILE = {
    "title": str,
    "tasks": list,
    "random": bool,
    "variants": dict,
    "scales": dict,
    "search": dict,
    "normalize": dict,
}
_SCALE = {
    "seeds": list,
    "episodes": int,
    "flags": str,
    "tasks": dict,
    "variants": list,
    "pack_seeds": bool,
}
_OPTIONAL = ("random", "search", "normalize") + tuple(
    f"scales.{name}" for name in ("tasks", "variants", "flags", "pack_seeds")
)
_NOUNS = {
    str: "a text",
    list: "a list",
    bool: "true or false",
    dict: "a table",
    int: "a whole number",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        task: its name.
        variant: the name of what is compared.
        seed: its seed.
        arguments: flags of iqmjx.train, but for --logdir.
        env_steps: how many it takes; 0 for RANDOM.
        episodes: how many its score is over.
    """

    task: str
    variant: str
    seed: int
    arguments: tuple[str, ...]
    env_steps: int
    episodes: int

    @property
    def stem(self) -> str:
        """What the files of all its seeds begin with."""
        variant = re.sub(r"[^a-z0-9.]+", "-", self.variant.lower()).strip("-")
        return f"{self.task}-{variant}"

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.stem}-seed{self.seed}"

    def varied(self, variant: str, more: Sequence[str]) -> Run:
        """The run with more flags, under another name.

        Raises:
            UsageError: where iqmjx.train refuses them.
        """
        arguments = (*self.arguments, *more)
        env_steps = settings(arguments).config.total_env_steps
        return dataclasses.replace(
            self, variant=variant, arguments=arguments, env_steps=env_steps
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """What one process trains: a run, or a pack of seeds of one task and variant.

    Attributes:
        runs: those of its seeds whose curves are wanted.
        seeds: all that it trains.
    """

    runs: tuple[Run, ...]
    seeds: range

    @property
    def name(self) -> str:
        """What its folder is called."""
        if len(self.seeds) == 1:
            return self.runs[0].name
        return f"{self.runs[0].stem}-seeds{self.seeds[0]}-{self.seeds[-1]}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Flags of iqmjx.train, but for --logdir."""
        arguments = self.runs[0].arguments
        if len(self.seeds) == 1:
            return arguments
        pack = ("--seed", str(self.seeds[0]), "--num_seeds", str(len(self.seeds)))
        return (*arguments, *pack)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A file's runs at one scale.

    Attributes:
        title: what the report is called.
        variants: their names, in the file's order.
        runs: seeds first vary last: what is half done compares all variants.
        pack_seeds: whether seeds are trained in packs: see `trainings`.
        search: the ranges of a study, as the file has them.
        normalize: a study's scores by task that count as 0 and 1, as the file has them.
    """

    title: str
    variants: tuple[str, ...]
    runs: tuple[Run, ...]
    pack_seeds: bool
    search: dict[str, Any]
    normalize: dict[str, Any]


def trainings(runs: Iterable[Run], pack_seeds: bool) -> list[Training]:
    """Divides runs among processes.

    Args:
        runs: the runs.
        pack_seeds: whether one process trains all consecutive seeds of a task and
            variant (`--num_seeds`): for a GPU or TPU, which small batches leave idle;
            a CPU trains them no faster than one after the other.
    """
    if not pack_seeds:
        return [Training((run,), range(run.seed, run.seed + 1)) for run in runs]
    by_stem: dict[str, list[Run]] = {}
    for run in runs:
        by_stem.setdefault(run.stem, []).append(run)
    found = []
    for own in by_stem.values():
        packs: list[list[Run]] = []
        for run in sorted(own, key=lambda run: run.seed):
            if packs and run.seed == packs[-1][-1].seed + 1:
                packs[-1].append(run)
            else:
                packs.append([run])
        for pack in packs:
            seeds = range(pack[0].seed, pack[-1].seed + 1)
            found.append(Training(tuple(pack), seeds))
    return found


def load(path: Path, scale: str, pack_seeds: bool | None = None) -> Experiment:
    """Reads an experiment, and checks the settings of every run.

    Args:
        path: the file.
        scale: the name of one of its scales.
        pack_seeds: in place of the scale's.

    Raises:
        UsageError: naming the file, what is wrong in it, and the fix.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a .toml file") from error
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise UsageError(f"{path}: cannot be read ({error})") from error
    try:
        return _experiment(content, scale, pack_seeds)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _experiment(
    content: dict[str, Any], scale: str, pack_seeds: bool | None
) -> Experiment:
    _check(content, _FILE, "")
    if scale not in content["scales"]:
        known = ", ".join(content["scales"])
        raise UsageError(f"--scale {scale}: choose one of {known}")
    chosen = content["scales"][scale]
    if not isinstance(chosen, dict):
        raise UsageError(f"scales.{scale}: give a table")
    _check(chosen, _SCALE, "scales.")
    variants = dict(content["variants"])
    for name in chosen.get("variants", ()):
        if name not in variants:
            known = ", ".join(variants)
            raise UsageError(f"scales.{scale}.variants {name}: choose from {known}")
    names = tuple(chosen.get("variants", variants))
    if content.get("random", False):
        names = (*names, RANDOM)
    runs = tuple(
        _run(task, variant, seed, variants.get(variant, ""), chosen)
        for seed in chosen["seeds"]
        for task in content["tasks"]
        for variant in names
        if variant != RANDOM or seed == chosen["seeds"][0]
    )
    by_name = {run.name: run for run in runs}
    if len(by_name) < len(runs):
        raise UsageError("variants or seeds: two runs would have the same name")
    if pack_seeds is None:
        pack_seeds = bool(chosen.get("pack_seeds", False))
    for training in trainings(runs, pack_seeds) if pack_seeds else ():
        settings(training.arguments)
    tables = (content.get(name, {}) for name in ("search", "normalize"))
    return Experiment(content["title"], names, runs, pack_seeds, *tables)


def _check(table: dict[str, Any], kinds: dict[str, type], where: str) -> None:
    """Raises UsageError where a table has other keys or kinds than it should."""
    for name in table.keys() - kinds.keys():
        raise UsageError(f"{where}{name}: it can have {', '.join(kinds)}")
    for name, kind in kinds.items():
        if name not in table and f"{where}{name}" in _OPTIONAL:
            continue
        if not isinstance(table.get(name), kind) or table[name] in ([], {}):
            raise UsageError(f"{where}{name}: give {_NOUNS[kind]}")


def _run(
    task: Any, variant: str, seed: Any, own_flags: Any, scale: dict[str, Any]
) -> Run:
    if not (isinstance(seed, int) and 0 <= seed <= LARGEST_INT):
        raise UsageError(f"seeds {seed}: give whole numbers from 0 to {LARGEST_INT}")
    if scale["episodes"] < 1:
        raise UsageError(f"episodes {scale['episodes']}: give at least 1")
    try:
        name = envs.resolve(str(task))
    except UsageError as error:
        raise UsageError(f"tasks {task}: {error}") from error
    if envs.task_class(name) is None:
        raise UsageError(f"tasks {task}: Gymnasium has none to play it in")
    texts = scale.get("flags", ""), scale.get("tasks", {}).get(task, ""), own_flags
    arguments = [part for text in texts for part in shlex.split(str(text))]
    arguments = ["--env", name, "--seed", str(seed), *arguments]
    try:
        env_steps = _env_steps(arguments) if variant != RANDOM else 0
    except UsageError as error:
        raise UsageError(f"{variant} on {task}: {error}") from error
    return Run(name, variant, seed, tuple(arguments), env_steps, scale["episodes"])


def settings(arguments: Sequence[str]) -> presets.Resolved:
    """The settings that iqmjx.train has with these flags.

    Raises:
        UsageError: where they cannot be parsed, or used; the message names the flag.
    """
    own = flags.FlagValues()
    preset = command_line.preset(own)
    command_line.settings(own, arguments)
    command_line.parse(own, arguments)
    return presets.resolve(command_line.given_settings(own), preset.value)


def _env_steps(arguments: Sequence[str]) -> int:
    """How many env steps iqmjx.train takes with these flags."""
    config = settings(arguments).config
    if config.num_seeds > 1:
        raise UsageError("--num_seeds: seeds are named in the file")
    return config.total_env_steps
