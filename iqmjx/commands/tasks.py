"""Lists the tasks that --env takes: iqmjx tasks."""

from __future__ import annotations

import warnings
from typing import Any

from absl import flags
from rich import console, table

from iqmjx import command_line, envs, strict_json
from iqmjx.envs import outside
from iqmjx.envs import physics as engines
from iqmjx.errors import UsageError

FLAGS = flags.FlagValues()
_JSON = command_line.json(FLAGS)


def main() -> None:
    """Runs the command."""
    rows = [_row(name) for name in envs.REGISTRY]
    others = {name: _names(name) for name in outside.PACKAGES}
    if _JSON.value:
        print(strict_json.dumps({"tasks": rows, **others}))
        return
    listed = table.Table(*(name.replace("_", " ") for name in rows[0]), box=None)
    for row in rows:
        listed.add_row(*map(str, row.values()))
    out = console.Console(highlight=False, soft_wrap=True, markup=False)
    out.print(listed)
    for name, names in others.items():
        out.print(f"\n{name}: {names if isinstance(names, str) else ', '.join(names)}")
    out.print("\nYour own: package.module:Class (docs/own_task)")


def _row(name: str) -> dict[str, Any]:
    """A built-in task: names, sizes, time limit, and the engines that can step it."""
    task = envs.make(name, "native")
    return {
        "env": name,
        "gymnasium": task.gymnasium_id,
        "obs": task.observation_size,
        "act": task.action_size,
        "steps": task.episode_length,
        "engines": " ".join(e for e in engines.ENGINES if _can_step(name, e)),
    }


def _can_step(name: str, engine: str) -> bool:
    if engine != "mjx":
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it leaves out of the model
        try:
            envs.make(name, engine)
        except UsageError:
            return False
    return True


def _names(package: str) -> list[str] | str:
    """The tasks of a package, or how to install it."""
    try:
        return [f"{package}:{name}" for name in outside.PACKAGES[package]()]
    except UsageError as error:
        return str(error)
