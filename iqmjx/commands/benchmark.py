"""Measures throughput: python -m iqmjx.benchmark --env humanoid --json.

The parts of a training step are measured alone (stepping worlds, acting, updates) and
then together, in rounds that take turns, so that a slow spell of the machine falls on
all of them; each figure is the median over the rounds.
"""

from __future__ import annotations

from typing import Any

from absl import flags
from rich import console, table

from iqmjx import command_line, loop, presets, strict_json
from iqmjx.commands import cli
from iqmjx.config import Config
from iqmjx.errors import UsageError
from iqmjx.run import memory, throughput

FLAGS = flags.FlagValues()
_PRESET, _JSON = command_line.preset(FLAGS), command_line.json(FLAGS)
_SWEEP = flags.DEFINE_list(
    "sweep",
    None,
    "Numbers of worlds to measure one after another: 256,1024,4096.",
    flag_values=FLAGS,
)
_ROUNDS = command_line.integer(
    FLAGS, "rounds", 5, "Rounds; figures are medians over them."
)
command_line.settings(FLAGS)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        given = command_line.given_settings(FLAGS)
        if _ROUNDS.value < 1:
            raise UsageError(f"--rounds {_ROUNDS.value}: give 1 or more")
        if _SWEEP.value:
            configs = [_swept(given, count) for count in _SWEEP.value]
        else:
            configs = [presets.resolve(given, _PRESET.value).config]
        for config in configs:
            setup = loop.make_setup(config)
            memory.check(memory.footprint(setup), setup.config)
    results = [throughput.measure(config, _ROUNDS.value) for config in configs]
    report = throughput.machine() | (
        {"sweep": results} if _SWEEP.value is not None else results[0]
    )
    if _JSON.value:
        print(strict_json.dumps(report))
    else:
        _print(results)


def _swept(given: dict[str, Any], num_envs: str) -> Config:
    try:
        count = int(num_envs)
    except ValueError as error:
        fix = "give whole numbers, such as 256,1024"
        raise UsageError(f"--sweep {num_envs}: {fix}") from error
    try:
        return presets.resolve(given | {"num_envs": count}, _PRESET.value).config
    except UsageError as error:
        raise UsageError(f"--sweep {num_envs}: {error}") from error


def _print(results: list[dict[str, Any]]) -> None:
    out = table.Table("", *(f"{r['num_envs']} worlds" for r in results), box=None)
    for name in dict.fromkeys(name for result in results for name in result):
        values = [result[name] for result in results]
        cells = [f"{v:,.4g}" if isinstance(v, float) else str(v) for v in values]
        out.add_row(name.replace("_", " "), *cells)
    console.Console(highlight=False, soft_wrap=True).print(out)
