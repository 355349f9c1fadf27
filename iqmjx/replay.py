"""The replay ring: a first-in-first-out buffer on the device, written in place.

Inserting is one `dynamic_update_slice` per field, whatever the capacity: the capacity
is a multiple of the insert, so a slice never wraps. Callers donate the state (inside a
scan the carry is), and the ring exists once.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@struct.dataclass
class Transition:
    """Transitions; observations raw, actions as the policy class stores them."""

    obs: Float[Array, "*B O"]
    action: Any  # [*B, ...], dtype of the policy class
    reward: Float[Array, "*B"]
    terminated: Bool[Array, "*B"]  # a time limit is not a termination
    next_obs: Float[Array, "*B O"]  # before any reset


@struct.dataclass
class ReplayState:
    """The ring's content."""

    data: Transition  # [C, ...]
    insert_index: Int[Array, ""]  # row that the next insert begins at
    size: Int[Array, ""]  # rows written so far, at most C


def init(example: Transition, capacity: int) -> ReplayState:
    """An empty ring for transitions like `example` [] (arrays or shapes)."""
    return ReplayState(
        data=jax.tree.map(
            lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), example
        ),
        insert_index=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def add(state: ReplayState, batch: Transition) -> ReplayState:
    """Writes a batch [N] over the oldest rows.

    Raises:
        ValueError: where N does not divide the capacity.
    """
    capacity, rows = state.data.reward.shape[0], batch.reward.shape[0]
    if capacity % rows:
        raise ValueError(
            f"replay capacity {capacity} is not a multiple of the {rows} transitions "
            f"inserted at a time"
        )
    chex.assert_trees_all_equal_dtypes(state.data, batch)

    def write(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, state.insert_index, 0)

    return ReplayState(
        data=jax.tree.map(write, state.data, batch),
        insert_index=(state.insert_index + rows) % capacity,
        size=jnp.minimum(state.size + rows, capacity),
    )


def sample(state: ReplayState, key: PRNGKeyArray, batch_size: int) -> Transition:
    """Draws rows [batch_size] uniformly, with replacement; `key` is consumed.

    An empty ring gives its (zero) first row: callers test `size` before they learn.
    """
    rows = jax.random.randint(key, (batch_size,), 0, jnp.maximum(state.size, 1))
    return jax.tree.map(lambda ring: ring[rows], state.data)
