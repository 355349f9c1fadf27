"""Env steps per second of iqmjx beside those of other trainers, in one run.

    python launch/compare_peers.py --env halfcheetah --out checkpoints/peers

Makes a virtual environment for the peer under OUT the first time, from PyPI. All train
with the worlds, the batch, the updates for each step of all worlds and the replay of
iqmjx's cpu preset for the task, and with two hidden layers of 256. The trainers take
turns, each in a process of its own (`launch/peer_rates.py`), so that a slow spell of
the machine falls on all; a ratio is the median of those within the rounds. Run it where
nothing else runs.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from iqmjx import command_line, envs, presets
from iqmjx.commands import cli
from iqmjx.errors import RunError, UsageError
from iqmjx.run import throughput

FLAGS = flags.FlagValues()
_ENV = flags.DEFINE_string(
    "env",
    "halfcheetah",
    "A task of Gymnasium's, to hold against sbx; brax:NAME or playground:NAME, against "
    "brax's SAC.",
    flag_values=FLAGS,
)
_STEPS = command_line.integer(
    FLAGS, "num_timesteps", 100_000, "Env steps of iqmjx's runs."
)
_SHARE = flags.DEFINE_float(
    "peer_share", 0.5, "Of these, env steps of a peer's run.", flag_values=FLAGS
)
_ROUNDS = command_line.integer(FLAGS, "rounds", 3, "Times that each trains.")
_OUT = command_line.path(
    FLAGS, "out", "checkpoints/peers", "The environment and the results."
)
_GYMNASIUM = ("hopper", "walker2d", "halfcheetah", "ant", "humanoid")
_ROOT = Path(__file__).parents[1]
_SETTINGS = (
    "num_envs",
    "batch_size",
    "grad_updates_per_step",
    "min_replay_size",
    "max_replay_size",
)
_TOLD = ("sbx-rl", "stable-baselines3", "brax", "playground", "gymnasium", "jax")
"""Packages of a peer whose versions are told."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One that is timed: what `peer_rates` calls it, and what is different about it."""

    name: str
    trainer: str
    algo: str
    differs: str
    packages: tuple[str, ...] = ()  # of a peer, from PyPI


_OURS = (
    Trainer("iqmjx IQ", "iqmjx", "iq", "one policy network, value networks of states"),
    Trainer("iqmjx SAC", "iqmjx", "sac", "LayerNorm; products as the preset has them"),
)
_SBX = Trainer(
    "sbx SAC",
    "sbx",
    "sac",
    "Gymnasium's own environments one after another, replay in NumPy; no LayerNorm, "
    "float32",
    ("sbx-rl", "gymnasium[mujoco]"),
)
_BRAX = Trainer(
    "brax SAC",
    "brax",
    "sac",
    "the same task and engine, all in one program; no LayerNorm, float32",
    ("brax", "playground", "jax<0.8"),  # newer ones lack what its SAC calls
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        _check_flags()
        flat = presets.resolve({"env": _ENV.value}, "cpu").config.flat()
    settings = {name: flat[name] for name in _SETTINGS} | {"env": _ENV.value}
    peer = _BRAX if ":" in _ENV.value else _SBX
    if peer is _SBX:
        settings["gymnasium_id"] = envs.REGISTRY[flat["env"]].gymnasium_id
    trainers = (*_OURS, peer)
    out = Path(_OUT.value)
    with cli.run_errors():
        python = _environment(out, peer)
        rates: dict[str, list[float]] = {each.name: [] for each in trainers}
        for number in range(_ROUNDS.value):
            for each in trainers:
                where = python if each is peer else Path(sys.executable)
                rate = _time(where, each, settings | {"seed": number})
                rates[each.name].append(rate)
                print(f"round {number}: {each.name}: {rate:,.0f} env steps/s")
    report = {
        "command": " ".join(["python", "launch/compare_peers.py", *sys.argv[1:]]),
        "settings": settings,
        "machine": throughput.machine(),
        "peer_versions": _versions(python),
        "trainers": {
            each.name: {
                "env_steps_per_second": rates[each.name],
                "ratio": statistics.median(
                    own / its
                    for own, its in zip(rates[each.name], rates[peer.name], strict=True)
                ),
                "differs": each.differs,
            }
            for each in trainers
        },
    }
    path = out / f"{_ENV.value.replace(':', '-')}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    _print(report, peer)
    print(f"written: {path}")


def _check_flags() -> None:
    source = _ENV.value.partition(":")[0]
    if not (source in ("brax", "playground") or _ENV.value in _GYMNASIUM):
        fix = f"give {', '.join(_GYMNASIUM)}, brax:NAME or playground:NAME"
        raise UsageError(f"--env {_ENV.value}: {fix}")
    if _ROUNDS.value < 1:
        raise UsageError(f"--rounds {_ROUNDS.value}: give 1 or more")
    if not 0 < _SHARE.value <= 1:
        fix = "give a number above 0 and of at most 1"
        raise UsageError(f"--peer_share {_SHARE.value}: {fix}")


def _environment(out: Path, peer: Trainer) -> Path:
    """The Python of an environment that has a peer; made where there is none.

    Raises:
        RunError: where it cannot be made.
    """
    folder = out / f"{peer.trainer}-venv"
    python = folder / "bin" / "python"
    whole = folder / "whole"
    if whole.exists():
        return python
    print(f"installing {', '.join(peer.packages)} into {folder} ...", flush=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "-q", *peer.packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{folder}: {done.stderr.strip()}")
    whole.touch()
    return python


def _time(python: Path, trainer: Trainer, settings: dict[str, Any]) -> float:
    """Env steps per second of one training.

    Raises:
        RunError: where it fails, with its own last line.
    """
    share = _SHARE.value if trainer.packages else 1
    settings |= {"algo": trainer.algo, "num_timesteps": int(_STEPS.value * share)}
    script = _ROOT / "launch" / "peer_rates.py"
    command = [python, script, trainer.trainer, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RunError(f"{trainer.name}: {' '.join(last)}")
    return json.loads(done.stdout.splitlines()[-1])["env_steps_per_second"]


def _versions(python: Path) -> dict[str, str]:
    """The versions of the peers, and of what they run on."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = json.loads(listed.stdout)
    return {p["name"]: p["version"] for p in packages if p["name"] in _TOLD}


def _print(report: dict[str, Any], peer: Trainer) -> None:
    """The ratios as a table of Markdown."""
    shared = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    print(f"\n{shared}\n\n| | env steps/s | against {peer.name} | |")
    print("|---|---|---|---|")
    for name, told in report["trainers"].items():
        rate = statistics.median(told["env_steps_per_second"])
        print(f"| {name} | {rate:,.0f} | {told['ratio']:.2f} | {told['differs']} |")


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
