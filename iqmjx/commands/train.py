"""Trains an agent: python -m iqmjx.train --env humanoid."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from absl import flags
from rich import console, table

from iqmjx import loop, presets
from iqmjx.commands import cli
from iqmjx.presets import Resolved
from iqmjx.run import memory, run_folder, trainer

_PRESET = flags.DEFINE_string(
    "preset", "auto", f"auto (by platform), {', '.join(presets.PRESETS)}."
)
_LOGDIR = flags.DEFINE_string(
    "logdir", None, "The run's folder (default: a new one under checkpoints/)."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --logdir, with the flags it began with."
)
cli.define_config_flags()


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        given = cli.given_settings()
        if _RESUME.value:
            resolved, folder = _resumed(given)
        else:
            resolved = presets.resolve(given, _PRESET.value)
            folder = _new_folder(resolved)
            run_folder.refuse_existing(folder)
        setup = loop.make_setup(trainer.fit_devices(resolved.config, _RESUME.value))
        parts = memory.footprint(setup)
        memory.check(parts, setup.config)
    _print_settings(resolved, parts, folder)
    if not _RESUME.value:
        resolved = dataclasses.replace(resolved, config=setup.config)
        run_folder.create(folder, resolved)
    with cli.user_errors():
        try:
            finished = trainer.train(resolved.config, folder, resume=_RESUME.value)
        except trainer.DivergedError as error:
            cli.fail(str(error), cli.EXIT_FAILURE)
    if finished:
        print(f"done; python -m iqmjx.evaluate --checkpoint {folder} plays the policy")
    sys.exit(0)


def _resumed(given: dict) -> tuple[Resolved, Path]:
    if _LOGDIR.value is None:
        raise ValueError("--resume: name the run's folder with --logdir")
    folder = Path(_LOGDIR.value)
    saved = run_folder.load(folder)
    if flags.FLAGS["preset"].present and _PRESET.value not in ("auto", saved.preset):
        raise ValueError(
            f"--preset {_PRESET.value}: the run in {folder} has preset {saved.preset}; "
            f"leave the flag out, or start a new run without --resume"
        )
    return run_folder.merge(saved, given, folder), folder


def _new_folder(resolved: Resolved) -> Path:
    if _LOGDIR.value is not None:
        return Path(_LOGDIR.value)
    config = resolved.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.env}-{config.algo}-{config.seed}-{stamp}".replace(":", ".")
    return Path("checkpoints") / name


def _print_settings(resolved: Resolved, parts: dict[str, int], folder: Path) -> None:
    settings = table.Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in resolved.config.flat().items():
        settings.add_row(name, str(value), resolved.sources[name])
    out = console.Console(highlight=False, soft_wrap=True)
    out.print(settings)
    sizes = ", ".join(f"{k} {memory.describe(v)}" for k, v in parts.items())
    out.print(f"memory: {sizes}", markup=False)
    out.print(f"run folder: {folder}", markup=False)
