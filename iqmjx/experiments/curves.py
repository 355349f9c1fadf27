"""Curve files: what is kept of a run, one JSON object per line.

a head        the task, the variant, the seed, the command, the commit, all settings
evaluations   env steps, seconds, returns, and what training said last before
an end        the score: returns of episodes in Gymnasium
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from iqmjx import evaluation, strict_json
from iqmjx.run import run_folder

_SAID = (
    "entropy",
    "value",
    "target",
    "target_std",
    "td_error",
    "temperature",
    "reward_scale",
    "actions_at_bounds",
)
"""Of training's last row before an evaluation."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run: its evaluations [E] and its score."""

    task: str
    variant: str
    seed: int
    env_steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    score: float
    success: float | None  # where the task says what that is


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a curve's lines, all at once."""
    text = "".join(strict_json.dumps(row) + "\n" for row in rows)
    run_folder.write_whole(path, text.encode())


def read(path: Path) -> Curve:
    """Reads a curve.

    Raises:
        ValueError: where it is damaged, or no curve; the message says how.
        OSError: where it cannot be read.
    """
    lines = [strict_json.loads(line) for line in path.read_text().splitlines()]
    if len(lines) < 2 or not all(isinstance(line, dict) for line in lines):
        raise ValueError("it is no curve")
    head, *rows, end = lines
    try:
        # What no episode was left for in the numbers is null, and becomes NaN.
        found = {
            name: np.array([row[key] for row in rows], float)
            for name, key in (
                ("env_steps", "env_steps"),
                ("seconds", "seconds"),
                ("returns", "return"),
            )
        }
        return Curve(
            task=str(head["task"]),
            variant=variant_of(head),
            seed=int(head["seed"]),
            score=float(np.array(end["score"], float)),
            success=end.get("success"),
            **found,
        )
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except TypeError as error:
        raise ValueError(f"it is no curve ({error})") from error


def variant_of(head: dict[str, Any]) -> str:
    """What a run is called among others.

    Files of before there were experiments have the algorithm, and the name of its
    settings if it had any.
    """
    if "variant" in head:
        return str(head["variant"])
    return "-".join(filter(None, [head["algo"], head["name"]]))


def load(folder: Path) -> tuple[list[Curve], list[str]]:
    """All curves in a folder, and a line about each file that cannot be read."""
    curves, problems = [], []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            curves.append(read(path))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    return curves, problems


def evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a run's metrics, with what training said before each."""
    curve: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for row in rows:
        if "eval/episode_reward" not in row:
            last = row
            continue
        told = {
            "env_steps": row["env_steps"],
            "return": row["eval/episode_reward"],
            "std": row["eval/episode_reward_std"],
            "sampled": row["eval/sampled_episode_reward"],
            "seconds": row["eval/walltime"],
        }
        told |= {name: last.get(f"training/{name}") for name in _SAID}
        if "eval/success" in row:
            told["success"] = row["eval/success"]
        curve.append(told)
    return curve


def end(returns: np.ndarray, success: float | None) -> dict[str, Any]:
    """A curve's last line.

    Args:
        returns: of each episode [M]; NaN where it diverged.
        success: the share of episodes with success; None where there is no such thing.
    """
    score = evaluation.over(np.mean, returns[np.isfinite(returns)])
    told = {"score": score, "returns": returns.tolist()}
    return told if success is None else told | {"success": success}
