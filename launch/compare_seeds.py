"""Seeds side by side against one seed of the same size: env steps per second.

    python launch/compare_seeds.py --env halfcheetah --num_seeds 4

Trains S seeds in one program, and a solo run with as many worlds and replay rows in all
and as many samples trained per env step: once with S times the updates of the same
batch, once with the same updates of an S times larger one. The three take turns, so
that a slow spell of the machine falls on all; rates are medians over the rounds. Prints
one JSON object.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from iqmjx import command_line, loop, presets, strict_json
from iqmjx.commands import cli
from iqmjx.config import Config
from iqmjx.run import throughput

FLAGS = flags.FlagValues()
_ROUNDS = flags.DEFINE_integer(
    "rounds", 9, "Turns; rates are medians.", lower_bound=1, flag_values=FLAGS
)
_CHUNKS = flags.DEFINE_integer(
    "chunks", 4, "Chunks in a turn.", lower_bound=1, flag_values=FLAGS
)
command_line.settings(FLAGS)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        given = command_line.given_settings(FLAGS)
        given.setdefault("num_seeds", 4)
        seeds = presets.resolve(given).config
        configs = {"seeds": seeds} | _solo(given, seeds)
    turns = {name: _turn(config) for name, config in configs.items()}
    seen: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(_ROUNDS.value):
        for name, turn in turns.items():
            seen[name].append(turn())
    rates = {name: statistics.median(each) for name, each in seen.items()}
    report = throughput.machine() | {
        "env": seeds.env,
        "num_seeds": seeds.num_seeds,
        "env_steps_per_second": rates,
        "ratio": {
            name: statistics.median(
                ours / other for ours, other in zip(seen["seeds"], each, strict=True)
            )
            for name, each in seen.items()
            if name != "seeds"
        },
    }
    print(strict_json.dumps(report))


def _solo(given: dict[str, Any], seeds: Config) -> dict[str, Config]:
    """Solo runs of the size of all seeds together."""
    count = seeds.num_seeds
    size = {
        "num_seeds": 1,
        "num_envs": count * seeds.num_envs,
        "max_replay_size": count * seeds.max_replay_size,
        "min_replay_size": count * seeds.min_replay_size,
    }
    more = {"grad_updates_per_step": count * seeds.grad_updates_per_step}
    larger = {"batch_size": count * seeds.batch_size}
    return {
        "solo, more updates": presets.resolve(given | size | more).config,
        "solo, larger batches": presets.resolve(given | size | larger).config,
    }


def _turn(config: Config) -> Callable[[], float]:
    """A function that trains for a few chunks and returns env steps per second."""
    setup = loop.make_setup(config)
    state, _ = loop.warm_up(setup, loop.init(setup))
    state, _ = loop.train_chunk(setup, state)
    worlds = config.num_envs * config.num_seeds

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(_CHUNKS.value):
            state, _ = loop.train_chunk(setup, state)
        jax.block_until_ready(state)
        taken = _CHUNKS.value * config.chunk_steps * worlds
        return taken / (time.perf_counter() - start)

    return turn


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
