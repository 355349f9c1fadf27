"""Makes a shipped policy of a run: the policy, and a card that says what it is.

    python launch/ship_policy.py --run RUN --out checkpoints/humanoid

Plays the policy's mode in Gymnasium's own environment, writes

    OUT/policy/<env steps>/   the policy as it was saved
    OUT/card.json             the run's command, commit, env steps and minutes, and what
                              the episodes gave

and then the table of all cards into the README.md beside OUT.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from absl import flags

from iqmjx import command_line
from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.experiments import runner
from iqmjx.run import gymnasium_play, metrics, run_folder, saved_policy

FLAGS = flags.FlagValues()
_RUN = command_line.path(FLAGS, "run", None, "As evaluate's --checkpoint.")
_OUT = command_line.path(FLAGS, "out", None, "A folder; a policy in it is replaced.")
_EPISODES = command_line.integer(FLAGS, "episodes", 100, "Episodes to play.")
CARD = "card.json"
_TABLE = (
    "| policy | task | return | success | env steps | minutes | command |\n"
    "|---|---|---|---|---|---|---|\n"
)
_TOLD = ("env", "episodes", "mean", "std", "success")


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        if not (_RUN.value and _OUT.value):
            raise UsageError("--run, --out: give a run, and a folder for its policy")
        with cli.of_flag("run"):
            found = saved_policy.locate(Path(_RUN.value))
            saved = saved_policy.load(found)
            if gymnasium_play.twin(saved.config.env) is None:
                raise UsageError(f"{saved.config.env} is not in Gymnasium")
            card = _card(found, saved)
    kept = found if found.name.isdecimal() else found / str(saved.env_steps)
    out = Path(_OUT.value)
    shutil.rmtree(out / saved_policy.NEWEST, ignore_errors=True)
    shutil.copytree(kept, out / saved_policy.NEWEST / str(saved.env_steps))
    with cli.run_errors():
        card |= {"evaluation": scores(out, _EPISODES.value)}
    (out / CARD).write_text(json.dumps(card, indent=2) + "\n")
    write_table(out.parent)
    print((out / CARD).read_text(), end="")


def scores(policy: Path, episodes: int) -> dict[str, Any]:
    """What a policy's mode reaches in Gymnasium's own environment.

    Args:
        policy: as `saved_policy.locate` takes it.
        episodes: how many to play.
    """
    told = runner.play(policy, episodes)
    return {name: told[name] for name in _TOLD if name in told}


def write_table(folder: Path) -> None:
    """Puts a row for each card in a folder at the end of its README.md."""
    readme = folder / "README.md"
    before = readme.read_text().partition(_TABLE)[0] if readme.exists() else ""
    rows = (_row(path) for path in sorted(folder.glob(f"*/{CARD}")))
    readme.write_text(before + _TABLE + "".join(rows))


def _card(found: Path, saved: saved_policy.SavedPolicy) -> dict[str, Any]:
    """What is known of a policy's run."""
    run = saved_policy.run_of(found)
    walltimes = [
        row.get("training/walltime", 0.0)
        for row in metrics.read(run)
        if row["env_steps"] <= saved.env_steps
    ]
    return {
        "command": _command(run),
        "commit": run_folder.made_by(run)["commit"],
        "env_steps": saved.env_steps,
        "minutes": round(max(walltimes) / 60, 1),
    }


def _command(run: Path) -> str:
    """The command that began a run: its preset, and the flags that were given."""
    resolved = run_folder.load(run)
    given = {
        name: value
        for name, value in resolved.config.flat().items()
        if resolved.sources[name].startswith("flag")
    }
    words = ["iqmjx train", "--preset", resolved.preset]
    return " ".join(words + command_line.arguments(given))


def _row(path: Path) -> str:
    """A card's row of the table."""
    card = json.loads(path.read_text())
    played = card["evaluation"]
    success = f"{played['success']:.0%}" if "success" in played else ""
    cells = (
        f"`checkpoints/{path.parent.name}`",
        played["env"],
        f"{played['mean']:,.0f} +- {played['std']:,.0f}",
        success,
        f"{card['env_steps']:,}",
        f"{card['minutes']:.0f}",
        f"`{card['command']}`",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
