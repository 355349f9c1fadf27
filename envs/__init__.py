"""Tasks and the physics engines under them; imports of iqmjx only `registry`.

A task is named as one of `REGISTRY`, as `package.module:Class` (docs/own_task), or as
a task of brax or MuJoCo Playground (`brax:ant`, `playground:CheetahRun`). Errors say
what is wrong, and leave it to the caller to say where it was given.
"""

from __future__ import annotations

import difflib
import re

from iqmjx.envs import outside
from iqmjx.envs import physics as engines
from iqmjx.envs.adroit.door import Door, DoorSparse, DoorV1
from iqmjx.envs.adroit.hammer import Hammer, HammerSparse, HammerV1
from iqmjx.envs.adroit.pen import Pen, PenSparse
from iqmjx.envs.adroit.relocate import Relocate, RelocateSparse, RelocateV1
from iqmjx.envs.base import Env, Start, State, Task
from iqmjx.envs.locomotion.ant import Ant
from iqmjx.envs.locomotion.half_cheetah import HalfCheetah
from iqmjx.envs.locomotion.hopper import Hopper
from iqmjx.envs.locomotion.humanoid import Humanoid
from iqmjx.envs.locomotion.walker2d import Walker2d
from iqmjx.errors import UsageError

_LOCOMOTION = (Hopper, Walker2d, HalfCheetah, Ant, Humanoid)
_ADROIT = (Door, Hammer, Pen, Relocate)
_ADROIT_V1 = (DoorV1, HammerV1, RelocateV1)
_SPARSE = (DoorSparse, HammerSparse, PenSparse, RelocateSparse)

REGISTRY: dict[str, type[Env]] = {
    env.name: env for env in _LOCOMOTION + _ADROIT + _ADROIT_V1 + _SPARSE
}

__all__ = [
    "REGISTRY",
    "Env",
    "Start",
    "State",
    "Task",
    "episode_length",
    "make",
    "resolve",
    "resolve_physics",
    "task_class",
    "versioned",
]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("adroithand")


_SPELLINGS = {
    _plain(spelling): env.name
    for env in REGISTRY.values()
    for spelling in (env.name, str(env.gymnasium_id))
}
# Of these, version 2 is version 1.
_SPELLINGS |= {f"{env.name}v2": env.name for env in (Pen, *_SPARSE)}


def resolve(name: str) -> str:
    """Returns the one name of a task, for any spelling (`humanoid`, `Humanoid-v5`).

    A task from outside is imported, and keeps its name (`package.module:Class`).

    Raises:
        UsageError: where there is no such task, its module cannot be imported, or its
            package is not installed; the message lists close names, or says how to
            install it.
    """
    if ":" in name:
        return outside.resolve(name)
    plain = _plain(name)
    if plain in _SPELLINGS:
        return _SPELLINGS[plain]
    unversioned = _SPELLINGS.get(re.sub(r"v\d+$", "", plain))
    if unversioned:
        there_is = REGISTRY[unversioned].gymnasium_id
        raise UsageError(f"there is no such version; there is {there_is}")
    close = difflib.get_close_matches(plain, REGISTRY, n=3, cutoff=0.7)
    if close:
        raise UsageError(f"there is no such task; did you mean {' or '.join(close)}?")
    known = ", ".join(REGISTRY)
    raise UsageError(f"there is no such task; `iqmjx tasks` lists all, such as {known}")


def versioned(name: str) -> str:
    """The name of a task that never comes to mean another: Gymnasium's (`Humanoid-v5`).

    A task from outside has but its own.

    Args:
        name: any spelling that `resolve` takes.
    """
    name = resolve(name)
    return name if ":" in name else str(REGISTRY[name].gymnasium_id)


def resolve_physics(name: str, engine: str = "auto") -> str:
    """Returns the engine that a task is built on: `auto` where it brings its own.

    Args:
        name: any spelling that `resolve` takes.
        engine: `auto`, `native`, `mjx` or `warp`.

    Raises:
        UsageError: for an engine that the task or the platform cannot run on.
    """
    name = resolve(name)
    if task_class(name) is not None:
        return engines.resolve(engine)
    if engine != "auto":
        raise UsageError(f"{name} brings its own engine: give auto")
    return engine


def episode_length(name: str) -> int:
    """The task's own time limit, control steps, for any spelling of its name."""
    name = resolve(name)
    own = task_class(name)
    return outside.episode_length(name) if own is None else own.episode_length


def make(name: str, physics: str = "auto", num_worlds: int = 1) -> Task:
    """Builds a task by name on an engine.

    Args:
        name: any spelling that `resolve` takes.
        physics: `native`, `mjx`, `warp`, or `auto` by platform; `auto` where the task
            brings its own.
        num_worlds: how many worlds one vmapped call will step.

    Raises:
        UsageError: for an unknown task, one that has not a task's interface, or an
            engine that it or the platform cannot run on.
    """
    name = resolve(name)
    physics = resolve_physics(name, physics)
    own = task_class(name)
    return outside.make(name) if own is None else own(physics, num_worlds)


def task_class(name: str) -> type[Env] | None:
    """The class of a task that runs on our engines; None where it brings its own.

    Args:
        name: any spelling that `resolve` takes.
    """
    name = resolve(name)
    return outside.own_class(name) if ":" in name else REGISTRY[name]
