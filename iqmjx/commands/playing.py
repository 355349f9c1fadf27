"""What the commands that take saved policies share: flags, and what these name."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from iqmjx import command_line, envs
from iqmjx.commands import cli
from iqmjx.envs import physics as engines
from iqmjx.errors import UsageError
from iqmjx.run import gymnasium_play, saved_policy
from iqmjx.run.saved_policy import SavedPolicy


def checkpoint_flag(own: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Defines --checkpoint."""
    told = "A run folder, its policy/ or best/, or one step in them."
    return command_line.path(own, "checkpoint", None, told)


def sim_flag(own: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Defines --sim."""
    return flags.DEFINE_enum(
        "sim",
        None,
        ["gymnasium", "auto", *engines.ENGINES],
        "Where to play: Gymnasium's own environment (the default where there is one) "
        "or an engine (else the run's).",
        flag_values=own,
    )


def deterministic_flag(own: flags.FlagValues) -> flags.FlagHolder[bool]:
    """Defines --deterministic."""
    return flags.DEFINE_bool(
        "deterministic",
        True,
        "Act by the policy's mode; --nodeterministic samples.",
        flag_values=own,
    )


def seed_flag(own: flags.FlagValues) -> flags.FlagHolder[int]:
    """Defines --seed."""
    told = "Seed of resets and of sampled actions."
    return command_line.integer(own, "seed", 0, told)


def load(given: str, doing: str) -> tuple[Path, SavedPolicy]:
    """A saved policy, and where it is; warns of newer ones that cannot be read.

    Args:
        given: what --checkpoint says.
        doing: what is done with an older one then: `playing`.

    Raises:
        UsageError: naming the flag, where there is none.
    """
    with cli.of_flag("checkpoint"):
        path = saved_policy.locate(Path(given).expanduser())
        saved = saved_policy.load(path)
    for problem in saved.unreadable:
        print(f"warning: {problem}; {doing} an older one", file=sys.stderr)
    return path, saved


def choose_sim(
    sim: str | None, saved: SavedPolicy
) -> tuple[str, type[envs.Env] | None]:
    """Where a policy is played, and the class of its task if Gymnasium has it too.

    Args:
        sim: what --sim says.
        saved: the policy.

    Raises:
        UsageError: where Gymnasium is asked for, and has not.
    """
    name = saved.config.env
    twin = gymnasium_play.twin(name)
    if twin is None and sim == "gymnasium":
        raise UsageError(f"--sim gymnasium: Gymnasium has no environment for {name}")
    return sim or ("gymnasium" if twin else saved.config.physics), twin


def on_engine(name: str, sim: str, num_worlds: int) -> envs.Task:
    """A task on one of our engines, with errors that name --sim."""
    try:
        return envs.make(name, sim, num_worlds)
    except UsageError as error:
        raise UsageError(f"--sim {sim}: {error}") from error
