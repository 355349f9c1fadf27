"""The stages of launch/gpu_check.py, each in a file that says what it measures and why.

A stage is a function of a `Check` that yields its result again and again as it grows,
with the seconds that it may take, and the code that its result depends on. Besides the
stages: `scales` has their sizes, `common` all that they know of a training run,
`without_jax` the simulator beside the `warp` engine, `profile` reads a profile, and
`summary` writes the results in Markdown.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import ceilings, physics, replay, training, updates, whole_run, whole_steps
from .scales import Check, Results

_ROOT = Path(__file__).parents[2]
_PHYSICS = ("envs/**/*.py",)
_LEARNING = (
    "iqmjx/agents/*.py",
    "iqmjx/policies/*.py",
    *(
        f"iqmjx/{name}.py"
        for name in ("acting", "networks", "normalize", "presets", "replay")
    ),
)
_ALL = (
    *_PHYSICS,
    *_LEARNING,
    "iqmjx/evaluation.py",
    "iqmjx/loop.py",
    "iqmjx/parallel.py",
)
_TIMED = ("iqmjx/run/throughput.py",)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: what it measures, within how long, and what its result depends on.

    Attributes:
        measure: yields its result as it grows.
        seconds: after these it is asked to stop, and is resumed by the next command.
        depends: patterns of files, from the repository's root; where one has changed,
            it is measured again.
    """

    measure: Callable[[Check], Results]
    seconds: int
    depends: tuple[str, ...]

    def code(self) -> str:
        """A checksum of the code that the result depends on."""
        files = sorted(path for each in self.depends for path in _ROOT.glob(each))
        return f"{zlib.crc32(b''.join(path.read_bytes() for path in files)):08x}"


def _stage(
    measure: Callable[..., Results],
    *given: Any,
    seconds: int,
    depends: tuple[str, ...],
) -> Stage:
    bound = functools.partial(measure, *given) if given else measure
    return Stage(bound, seconds, (_file(measure.__module__), _file("common"), *depends))


def _file(module: str) -> str:
    return f"launch/gpu_stages/{module.rpartition('.')[2]}.py"


def _run(name: str, seconds: int, **changes: Any) -> Stage:
    return _stage(whole_run.measure, name, changes, seconds=seconds, depends=_ALL)


def _steps(*changes: dict[str, Any], seconds: int) -> Stage:
    return _stage(whole_steps.measure, changes, seconds=seconds, depends=_ALL + _TIMED)


STAGES: dict[str, Stage] = {
    "run": _run("run", 520),
    "training": _stage(
        training.measure, seconds=240, depends=(*_ALL, *_TIMED, _file("profile"))
    ),
    "updates": _stage(updates.measure, seconds=300, depends=_LEARNING + _TIMED),
    "worlds": _steps({"worlds": 2}, {"worlds": 4}, seconds=300),
    "run_twice_the_worlds": _run("run_twice_the_worlds", 520, worlds=2),
    "run_four_times_the_worlds": _run("run_four_times_the_worlds", 520, worlds=4),
    "seeds": _steps(
        {"num_seeds": 4, "worlds": 0.25}, {"num_seeds": 16, "worlds": 0.25}, seconds=300
    ),
    "warp": _stage(
        physics.measure,
        "warp",
        seconds=300,
        depends=(*_PHYSICS, *_TIMED, _file("without_jax")),
    ),
    "run_door": _run("run_door", 520, env="door"),
    "run_pen": _run("run_pen", 520, env="pen"),
    "tasks": _steps(
        *({"env": name} for name in ("halfcheetah", "ant", "door", "pen")), seconds=420
    ),
    "replay": _stage(replay.measure, seconds=120, depends=_LEARNING),
    "ceilings": _stage(ceilings.measure, seconds=120, depends=()),
    "native": _stage(physics.measure, "native", seconds=120, depends=_PHYSICS + _TIMED),
    "mjx": _stage(physics.measure, "mjx", seconds=400, depends=_PHYSICS + _TIMED),
}
"""By name, in the order in which they run: what matters most comes first."""
