"""What a run will take of memory, known before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import psutil

from iqmjx import loop
from iqmjx.envs import vector

_HEADROOM = 0.9
"""Share of the free memory that the buffers may take; programs need the rest."""


def footprint(setup: loop.Setup) -> dict[str, int]:
    """Bytes by part of the run on one device, from shapes alone."""
    state: loop.TrainState = jax.eval_shape(lambda: loop.init(setup))
    config, layout = setup.config, setup.layout
    rows = config.grad_updates_per_step * config.batch_size * config.num_seeds
    row_bytes = tree_bytes(state.replay.data) // state.replay.data.reward.size
    own = layout.own_seeds * layout.own_shards  # shards on a device
    share = own / (config.num_seeds * layout.num_shards)  # of all shards
    starts = vector.bank_size(setup.worlds_per_shard) / setup.worlds_per_shard
    return {
        "replay": int(share * tree_bytes(state.replay)),
        "worlds": int(share * (1 + starts) * tree_bytes(state.envs)),  # and the bank
        "contacts": setup.env.physics.scratch_bytes(),
        "networks": layout.own_seeds * tree_bytes(state.learner) // config.num_seeds,
        "batches": int(share * 2 * rows * row_bytes),  # as gathered and normalized
    }


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available() -> int:
    """Bytes free for a device's buffers: its own, or its share of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return psutil.virtual_memory().available // jax.local_device_count()


def check(parts: dict[str, int], config) -> None:
    """Refuses a run that cannot fit.

    Raises:
        ValueError: naming the flag to change and a value that fits.
    """
    room = int(_HEADROOM * available())
    total = sum(parts.values())
    if total <= room:
        return
    per_row = parts["replay"] // config.max_replay_size  # what is left: its counters
    rows = config.max_replay_size - -(-(total - room) // per_row)
    rows = rows // config.num_envs * config.num_envs
    if rows >= max(config.min_replay_size, config.num_envs):
        fix = f"--max_replay_size {rows} would fit"
    else:
        fix = f"lower --num_envs {config.num_envs} as well"
    sizes = ", ".join(f"{name} {describe(size)}" for name, size in parts.items())
    raise ValueError(
        f"--max_replay_size {config.max_replay_size}: the run needs "
        f"{describe(total)} ({sizes}) and {describe(room)} are free; {fix}"
    )


def describe(num_bytes: float) -> str:
    """Bytes for people: 2.9 GB."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
