"""Registers both versions of the Adroit hand's tasks with Gymnasium.

gymnasium-robotics has one of them: -v1 in its releases, -v2 after. The other is made of
it here. They differ in the sign of one term (see `iqmjx.envs.adroit`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator, registry

with contextlib.redirect_stderr(io.StringIO()):  # it announces what is made here
    _robotics = importlib.import_module("gymnasium_robotics")

_REACHED = {"Door": ("site", "S_handle")} | dict.fromkeys(
    ("Hammer", "Relocate"), ("body", "Object")
)
"""What the palm is to reach in the tasks whose versions differ."""
_MORE = {1: 0.2, 2: -0.2}
"""What a version pays beyond the other, for each metre between the palm and that."""


def _with_other_sign(entry_point: Any, reached: tuple[str, str], more: float) -> type:
    """A class of gymnasium-robotics, whose dense reward gets `more` per metre."""
    base: Any = load_env_creator(entry_point)
    kind, name = reached

    class OtherSign(base):
        def step(self, a):
            obs, reward, terminated, truncated, info = super().step(a)
            there = getattr(self.data, kind)(name).xpos
            away = np.linalg.norm(self.data.site("S_grasp").xpos - there)
            return obs, reward + more * away, terminated, truncated, info

    return OtherSign


def _register(task: str, version: int) -> None:
    """Registers a version of a task, dense and sparse, where there is the other."""
    for reward in ("", "Sparse"):
        name = f"AdroitHand{task}{reward}"
        if f"{name}-v{version}" in registry:
            continue
        spec = registry[f"{name}-v{3 - version}"]
        entry_point = spec.entry_point
        if task in _REACHED and not reward:
            more = _MORE[version]
            entry_point = _with_other_sign(entry_point, _REACHED[task], more)
        gymnasium.register(
            f"{name}-v{version}",
            entry_point,
            kwargs=spec.kwargs,
            max_episode_steps=spec.max_episode_steps,
        )


gymnasium.register_envs(_robotics)
for _task in ("Door", "Hammer", "Pen", "Relocate"):
    for _version in _MORE:
        _register(_task, _version)
