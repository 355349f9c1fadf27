"""The replay ring: seconds for an insert and a sample, and copies of it: none.

The ring is the largest thing on the card. Training writes it in place and reads it with
one gather; should a compiler ever copy it instead, every vector step would pay for all
of it. So the compiled chunk's text is searched for copies as large as the ring, and a
full ring's insert and sample are timed alone.
"""

from __future__ import annotations

import re

import jax

from iqmjx import loop, replay
from iqmjx.run import memory

from . import common
from .scales import Check, Results

_INSERTS = 8
"""In one timed call: one alone takes less than a clock can tell."""


def measure(check: Check) -> Results:
    """Yields what a vector step's insert and sample take, and the copies found."""
    rounds = check.scale.rounds
    setup = common.setup(check)
    config = setup.config
    state = common.begin(setup)
    compiled = common.compile_chunk(setup, state)
    ring = common.full_ring(state)

    count = common.rows_sampled(config)
    keys = jax.random.split(jax.random.key(0), ring.data.reward.shape[:2])
    own_count = count // setup.layout.num_shards
    sample = jax.jit(common.sampled, static_argnums=2)
    sampling = common.seconds(sample, ring, keys, own_count, rounds=rounds)

    new = jax.tree.map(lambda leaf: leaf[:, :, : setup.worlds_per_shard], ring.data)
    insert = jax.jit(replay.add, donate_argnums=0)

    def inserts():
        nonlocal ring
        for _ in range(_INSERTS):
            ring = insert(ring, new)
        return ring

    inserting = common.seconds(inserts, rounds=rounds) / _INSERTS
    memory_used = compiled.memory_analysis()
    yield {
        "ring_bytes": memory.tree_bytes(ring),
        "rows_inserted": config.num_envs,
        "insert_seconds": inserting,
        "rows_sampled": count,
        "sample_seconds": sampling,
        "ring_copies_in_the_chunk": _copies(
            compiled.as_text() or "", _ring_rows(setup)
        ),
        "chunk_temporary_bytes": getattr(memory_used, "temp_size_in_bytes", None),
    }


def _ring_rows(setup: loop.Setup) -> set[int]:
    """Rows of a ring, and of all that a device owns, end to end."""
    layout = setup.layout
    rows = setup.config.max_replay_size // layout.num_shards
    return {rows, rows * layout.own_seeds * layout.own_shards}


def _copies(text: str, rows: set[int]) -> list[str]:
    """Copies of arrays that have as many rows as a ring, in a program's text."""
    found = []
    for line in text.splitlines():
        result = re.match(r"(.*?) copy(-start)?\(", line)
        if result is None:
            continue
        shapes = re.findall(r"\[([\d,]+)\]", result[1])
        sizes = {int(size) for shape in shapes for size in shape.split(",")}
        if sizes & rows:
            found.append(line.strip()[:200])
    return found
