"""The replay ring: a first-in-first-out buffer on the device, written in place.

Inserting is one `dynamic_update_slice` per field, whatever the capacity: the capacity
is a multiple of the insert, so a slice never wraps. Callers donate the state (inside a
scan the carry is), and the ring exists once.

Any leading axes L (seeds, shards) are rings side by side. They are filled in step, so
that they share one cursor: with a cursor each, a write would be a scatter.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key


@struct.dataclass
class Transition:
    """Transitions; observations raw, actions as the policy class stores them."""

    obs: Float[Array, "*B O"]
    action: Any  # [*B, ...], dtype of the policy class
    reward: Float[Array, "*B"]
    discount: Float[Array, "*B"]  # of next_obs's value: 0 where the task terminated
    weight: Float[Array, "*B"]  # of this row in every loss: 0 teaches nothing
    next_obs: Float[Array, "*B O"]  # before any reset


@struct.dataclass
class ReplayState:
    """The content of the rings."""

    data: Transition  # [*L, C, ...]
    insert_index: Int[Array, ""]  # row that the next insert begins at
    size: Int[Array, ""]  # rows written so far, at most C


def init(example: Transition, capacity: int) -> ReplayState:
    """Empty rings for transitions like `example` [*L] (arrays or shapes)."""
    axis = example.reward.ndim

    def empty(leaf):
        shape = (*leaf.shape[:axis], capacity, *leaf.shape[axis:])
        return jnp.zeros(shape, leaf.dtype)

    return ReplayState(
        data=jax.tree.map(empty, example),
        insert_index=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def add(state: ReplayState, batch: Transition) -> ReplayState:
    """Writes a batch [*L, N] over the oldest rows.

    Raises:
        ValueError: where N does not divide the capacity.
    """
    axis = state.data.reward.ndim - 1
    capacity, rows = state.data.reward.shape[axis], batch.reward.shape[axis]
    if capacity % rows:
        raise ValueError(
            f"replay capacity {capacity} is not a multiple of the {rows} transitions "
            f"inserted at a time"
        )
    chex.assert_trees_all_equal_dtypes(state.data, batch)

    def write(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, state.insert_index, axis)

    return ReplayState(
        data=jax.tree.map(write, state.data, batch),
        insert_index=(state.insert_index + rows) % capacity,
        size=jnp.minimum(state.size + rows, capacity),
    )


def sample(
    state: ReplayState, key: Key[Array, "*L"], batch_size: int
) -> Int[Array, "*L batch_size"]:
    """Draws rows of each ring, uniformly and with replacement, for `take`.

    `key` [*L] is consumed. An empty ring gives its (zero) first row: callers learn
    after the first insert.
    """
    last = jnp.maximum(state.size, 1)
    keys = key.reshape(-1)
    rows = jax.vmap(lambda k: jax.random.randint(k, (batch_size,), 0, last))(keys)
    return rows.reshape(*key.shape, batch_size)


def take(state: ReplayState, rows: Int[Array, "*L B"]) -> Transition:
    """The transitions [*L, B] in these rows of each ring."""
    *leading, capacity = state.data.reward.shape
    rings = jnp.arange(math.prod(leading)).reshape(*leading, 1)
    rows = rows + capacity * rings  # in all rings, end to end

    def gather(ring):
        return ring.reshape(-1, *ring.shape[len(leading) + 1 :])[rows]

    return jax.tree.map(gather, state.data)
