"""What a run will take of memory, known before anything is compiled."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import psutil

from iqmjx import envs, evaluation, loop
from iqmjx.config import Config
from iqmjx.envs import vector
from iqmjx.envs.physics import PhysicsState
from iqmjx.errors import UsageError
from iqmjx.settings import shown

_HEADROOM = 0.9
"""Share of the free memory that the buffers may take; programs need the rest."""
_ADVISED = 0.9
"""Share of that which advice takes: what is free changes from moment to moment."""
_ACTIVATIONS = 1.5
"""Numbers that an update holds of each sample for each entry of a vector (a bias) in
the learner, its averages and Adam's moments among them: measured, 1.2 to 2."""
_STATISTICS = 16
"""Numbers that an agent tells of a vector step, or some more."""


def footprint(setup: loop.Setup) -> dict[str, int]:
    """Bytes by part of the run on one device, from shapes alone."""
    state: loop.TrainState = jax.eval_shape(lambda: loop.init(setup))
    config, layout = setup.config, setup.layout
    seeds, rings = layout.own_seeds, layout.own_seeds * layout.own_shards
    share = rings / (config.num_seeds * layout.num_shards)  # of all, a device's
    samples = seeds * config.batch_size // layout.devices_per_seed  # of one update
    row = tree_bytes(state.replay.data) // state.replay.data.reward.size
    learner = tree_bytes(state.learner) // config.num_seeds
    vectors = sum(x.size for x in jax.tree.leaves(state.learner) if x.ndim == 2)
    starts = vector.bank_size(setup.worlds_per_shard) / setup.worlds_per_shard
    scratch = setup.env.physics.scratch_bytes
    told = len(dataclasses.fields(loop.StepMetrics))
    told += len(jax.tree.leaves(state.envs.worlds.metrics))
    world = state.envs.worlds.pipeline_state
    if isinstance(world, PhysicsState):  # of which one is told, as an `Offender`
        all_worlds = jax.tree.leaves((world.qpos, world.qvel, world.model_fields))
        told += sum(x.size for x in all_worlds) // (config.num_envs * config.num_seeds)
        told += setup.env.action_size
    of_steps = told * max(config.chunk_steps, config.warm_up_steps) * rings
    of_updates = _STATISTICS * config.chunk_steps * seeds
    played = evaluation.worlds_on_a_device(layout, 2 * config.num_eval_envs)
    played_share = played / (config.num_envs * config.num_seeds)  # of all worlds
    playing = 2 * played_share * tree_bytes(state.envs)  # a step's own beside them
    playing += scratch(played)
    return {
        "replay": int(share * tree_bytes(state.replay)),
        "worlds": int(share * (1 + starts) * tree_bytes(state.envs)),  # and the bank
        "contacts": scratch(rings * setup.worlds_per_shard),
        "networks": seeds * learner,
        "gradients": seeds * learner,  # and what Adam makes of them
        "batches": 2 * samples * config.grad_updates_per_step * row,  # normalized too
        "activations": int(4 * _ACTIVATIONS * samples * vectors / config.num_seeds),
        "evaluation": int(playing) if config.num_evals else 0,
        "metrics": 4 * (of_steps + of_updates),
    }


def peak() -> int:
    """The most memory held so far, bytes: a device's, or this process's on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    kibibytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes_or_bytes * (1 if sys.platform == "darwin" else 1024)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available() -> int:
    """Bytes free for a device's buffers: its own, or its share of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return psutil.virtual_memory().available // jax.local_device_count()


def check(parts: dict[str, int], config: Config) -> None:
    """Refuses a run that cannot fit.

    Raises:
        UsageError: naming the flag that most of the memory is due to, and values for
            it, and for others where it is not all, with which the run fits.
    """
    room, total = _room(), sum(parts.values())
    if total <= room:
        return
    blamed, _ = _largest(parts, config.flat())
    changes = _fitting(parts, config)
    fix = " ".join(f"--{name} {shown(value)}" for name, value in changes.items())
    sizes = ", ".join(f"{name} {describe(size)}" for name, size in parts.items())
    raise UsageError(
        f"--{blamed} {shown(config.flat()[blamed])}: the run needs {describe(total)} "
        f"({sizes}) and {describe(room)} are free; "
        f"{f'give less, such as {fix}' if fix else 'it takes a larger machine'}"
    )


def check_episodes(env: envs.Task, episodes: int) -> None:
    """Refuses episodes that cannot be played all at once.

    Raises:
        UsageError: naming the flag and how many can.
    """
    each = 2 * tree_bytes(jax.eval_shape(env.reset, jax.random.key(0)))
    room = _room()
    if episodes * each > room:
        raise UsageError(
            f"--episodes {episodes}: played all at once they need "
            f"{describe(episodes * each)} and {describe(room)} are free; give at "
            f"most {max(int(_ADVISED * room) // each, 1)}"
        )


def _room() -> int:
    return int(_HEADROOM * available())


def _fitting(parts: Mapping[str, float], config: Config) -> dict[str, Any]:
    """The settings that must change for a run to fit, and the values to give.

    Time and again the setting that takes most is given what the rest leaves, or its
    equal share if that is more. Parts grow in proportion to their settings, or faster.
    """
    flat = config.flat()
    room = int(_ADVISED * _room())
    while (total := sum(parts.values())) > room:
        flag, taken = _largest(parts, flat)
        share = max(room - (total - taken), room // len(parts)) / taken
        parts = {
            name: size * share if _flag(name, flat) == flag else size
            for name, size in parts.items()
        }
        flat = _smaller(flat, flag, share)
    before = config.flat()
    return {name: flat[name] for name in flat if flat[name] != before[name]}


def _largest(parts: Mapping[str, float], flat: dict[str, Any]) -> tuple[str, float]:
    """The setting that most of the memory is due to, and the bytes."""
    by_flag: dict[str, float] = defaultdict(float)
    for name, size in parts.items():
        by_flag[_flag(name, flat)] += size
    return max(by_flag.items(), key=lambda item: item[1])


def _flag(part: str, flat: dict[str, Any]) -> str:
    """The setting that a part of the footprint grows with."""
    by_shape = "hidden_sizes" if "hidden_sizes" in flat else "num_seeds"
    by_update = flat["batch_size"] >= flat["grad_updates_per_step"]
    by_chunk = flat["chunk_steps"] * flat["num_envs"] >= flat["min_replay_size"]
    return {
        "replay": "max_replay_size",
        "worlds": "num_envs",
        "contacts": "num_envs",
        "networks": by_shape,
        "gradients": by_shape,
        "batches": "batch_size" if by_update else "grad_updates_per_step",
        "activations": "batch_size",
        "evaluation": "num_eval_envs",
        "metrics": "chunk_steps" if by_chunk else "min_replay_size",
    }[part]


def _smaller(flat: dict[str, Any], flag: str, share: float) -> dict[str, Any]:
    """Settings with a share of one, and what depends on it made to fit it."""
    shards = max(flat["num_shards"], 1)
    unit = {"max_replay_size": flat["num_envs"], "num_envs": shards}
    step = (unit | {"batch_size": shards}).get(flag, 1)
    if flag == "hidden_sizes":
        value: Any = tuple(min(size, max(int(share * size), 2)) for size in flat[flag])
    else:
        value = max(int(share * flat[flag]) // step, 1) * step
    flat = flat | {flag: value}
    rows = flat["max_replay_size"] // flat["num_envs"] * flat["num_envs"]
    least = min(flat["min_replay_size"], rows)
    return flat | {"max_replay_size": rows, "min_replay_size": least}


def describe(num_bytes: float) -> str:
    """Bytes for people: 2.9 GB."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
