"""Tasks and the physics engines under them; imports nothing of iqmjx."""

from __future__ import annotations

import difflib
import re

from iqmjx.envs.adroit.door import Door, DoorSparse
from iqmjx.envs.adroit.hammer import Hammer, HammerSparse
from iqmjx.envs.adroit.pen import Pen, PenSparse
from iqmjx.envs.adroit.relocate import Relocate, RelocateSparse
from iqmjx.envs.base import Env, State
from iqmjx.envs.locomotion.ant import Ant
from iqmjx.envs.locomotion.half_cheetah import HalfCheetah
from iqmjx.envs.locomotion.hopper import Hopper
from iqmjx.envs.locomotion.humanoid import Humanoid
from iqmjx.envs.locomotion.walker2d import Walker2d

_LOCOMOTION = (Hopper, Walker2d, HalfCheetah, Ant, Humanoid)
_ADROIT = (Door, Hammer, Pen, Relocate)
_SPARSE = (DoorSparse, HammerSparse, PenSparse, RelocateSparse)

REGISTRY: dict[str, type[Env]] = {
    env.name: env for env in _LOCOMOTION + _ADROIT + _SPARSE
}

__all__ = ["REGISTRY", "Env", "State", "episode_length", "make", "resolve"]


def resolve(name: str) -> str:
    """Returns the registered name for any spelling (`Humanoid-v5`, `AdroitHandPen-v1`).

    Raises:
        ValueError: where no task has this name; the message lists close ones.
    """
    plain = re.sub(r"^adroit_?hand_?|-v[15]$", "", name.strip(), flags=re.IGNORECASE)
    plain = re.sub(r"[^a-z0-9]", "", plain.lower())
    if plain in REGISTRY:
        return plain
    close = difflib.get_close_matches(plain, REGISTRY, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "there are"
    known = "" if close else f" {', '.join(REGISTRY)}"
    raise ValueError(f"--env {name}: no such task; {hint}{known}")


def episode_length(name: str) -> int:
    """A task's own time limit, in control steps.

    Raises:
        ValueError: for an unknown task.
    """
    return REGISTRY[resolve(name)].episode_length


def make(name: str, physics: str = "auto", num_worlds: int = 1) -> Env:
    """Builds a task by name on an engine (`auto`, `native`, `mjx`, `warp`).

    Args:
        name: any spelling that `resolve` takes.
        physics: the engine; `auto` picks by platform.
        num_worlds: how many worlds one vmapped call will step.

    Raises:
        ValueError: for an unknown task, or an engine the platform cannot run.
    """
    return REGISTRY[resolve(name)](physics, num_worlds)
