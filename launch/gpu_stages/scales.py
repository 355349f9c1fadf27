"""How large the stages are: `full` for a GPU, `smoke` for a test on any machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Results = Iterator[dict[str, Any]]
"""A stage's result again and again as it grows, whole at last."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of every stage."""

    copy_bytes: int
    matrix: int
    worlds: dict[str, tuple[int, ...]]  # by engine
    vector_steps: int  # in one timed call
    batches: tuple[int, ...]
    updates: int  # in one timed call
    rounds: int
    settings: dict[str, Any]  # of training and run, over the preset


@dataclasses.dataclass(frozen=True)
class Check:
    """What a stage is given."""

    env: str
    scale: Scale
    out: Path  # where results go
    code: str = ""  # a checksum of what the stage's result depends on


SCALES = {
    "full": Scale(
        copy_bytes=2**30,
        matrix=8192,
        worlds={"warp": (1024, 4096, 16384), "mjx": (4096,), "native": (4096,)},
        vector_steps=16,
        batches=(256, 1024, 8192, 32768),
        updates=32,
        rounds=3,
        settings={"num_evals": 3, "num_checkpoints": 1},
    ),
    "smoke": Scale(
        copy_bytes=2**22,
        matrix=128,
        worlds={"warp": (4, 8), "mjx": (4,), "native": (4, 8)},
        vector_steps=2,
        batches=(32, 64),
        updates=2,
        rounds=1,
        settings={
            "num_envs": 8,
            "chunk_steps": 8,
            "batch_size": 32,
            "grad_updates_per_step": 2,
            "min_replay_size": 64,
            "exploration_steps": 64,
            "max_replay_size": 1024,
            "hidden_sizes": (32, 32),
            "num_timesteps": 512,
            "num_evals": 2,
            "num_eval_envs": 2,
            "num_checkpoints": 1,
            "episode_length": 50,
        },
    ),
}
