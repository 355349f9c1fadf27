import collections
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import replay
from iqmjx.replay import Transition


def rows(ids, width=3):
    """Transitions whose every field encodes their id."""
    ids = jnp.asarray(ids)
    return Transition(
        obs=jnp.tile(ids[:, None].astype(jnp.float32), (1, width)),
        action=jnp.tile((ids % 100)[:, None].astype(jnp.int8), (1, 2)),
        reward=-ids.astype(jnp.float32),
        discount=(ids % 2).astype(jnp.float32),
        weight=(ids % 3).astype(jnp.float32),
        next_obs=jnp.tile(ids[:, None] + 0.5, (1, width)),
    )


def check_aligned(batch):
    ids = np.asarray(batch.obs[:, 0])
    np.testing.assert_array_equal(batch.reward, -ids)
    np.testing.assert_array_equal(batch.next_obs[:, 1], ids + 0.5)
    np.testing.assert_array_equal(batch.action[:, 0], ids % 100)
    np.testing.assert_array_equal(batch.discount, ids % 2)
    np.testing.assert_array_equal(batch.weight, ids % 3)


def empty(capacity, width=3):
    example = jax.tree.map(lambda leaf: leaf[0], rows(jnp.arange(1), width))
    return replay.init(example, capacity)


def drawn(state, key, batch_size):
    return replay.take(state, replay.sample(state, key, batch_size))


@pytest.mark.parametrize("jit", [True, False])
def test_ring_is_a_deque(jit):
    add = jax.jit(replay.add) if jit else replay.add
    state, reference = empty(12), collections.deque(maxlen=12)
    for insert in range(10):  # wraps three times
        ids = np.arange(4 * insert, 4 * insert + 4)
        state = add(state, rows(ids))
        reference.extend(ids.tolist())
        written = state.data.obs[: int(state.size), 0]
        assert sorted(np.asarray(written).tolist()) == sorted(reference)
        size = int(state.size)
        check_aligned(jax.tree.map(lambda leaf, n=size: leaf[:n], state.data))
    assert state.size == 12 and state.data.action.dtype == jnp.int8


def test_samples_only_written_rows_and_all_of_them():
    state = replay.add(empty(64), rows(jnp.arange(1, 9)))
    batch = drawn(state, jax.random.key(0), 500)
    assert set(np.asarray(batch.obs[:, 0]).tolist()) == set(range(1, 9))
    check_aligned(batch)
    again = drawn(state, jax.random.key(1), 500)
    assert (again.obs != batch.obs).any()


def test_sampling_is_uniform():
    state = replay.add(empty(16), rows(jnp.arange(16)))
    batch = drawn(state, jax.random.key(0), 16_000)
    counts = np.bincount(np.asarray(batch.obs[:, 0], int), minlength=16)
    assert np.sum((counts - 1000) ** 2 / 1000) < 44.3  # 15 degrees, 99.99%


def test_refuses_an_insert_that_would_wrap():
    with pytest.raises(ValueError, match="12 is not a multiple of the 5"):
        replay.add(empty(12), rows(jnp.arange(5)))


def test_refuses_another_dtype():
    batch = dataclasses.replace(rows(jnp.arange(4)), action=jnp.zeros((4, 2)))
    with pytest.raises(AssertionError):
        replay.add(empty(12), batch)


def test_rings_side_by_side_hold_and_give_their_own_rows():
    """[2, 3] rings of 8 rows: what one of them alone would do, with its key."""
    ids = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    lift = jax.vmap(jax.vmap(rows))
    example = jax.tree.map(lambda leaf: leaf[:, :, 0], lift(ids))
    rings = replay.init(example, 8)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    alone = [empty(8) for _ in range(6)]
    for shift in (0, 100, 200):  # wraps
        rings = replay.add(rings, lift(ids + shift))
        batch = drawn(rings, keys, 5)
        for ring in range(6):
            place = divmod(ring, 3)
            alone[ring] = replay.add(alone[ring], rows(ids[place] + shift))
            expected = drawn(alone[ring], keys[place], 5)
            of_ring = jax.tree.map(lambda leaf, p=place: leaf[p], batch)
            jax.tree.map(np.testing.assert_array_equal, of_ring, expected)
    assert rings.size == 8 and rings.insert_index == 4


@pytest.mark.slow
def test_insert_cost_does_not_depend_on_capacity():
    """720 floats a row, 1024 rows at a time, ring full: 1M rows within twice 128k.

    Neither ring fits a cache; a copy of the ring would make it eight times.
    """
    batch = rows(jnp.arange(1024), width=360)
    insert = jax.jit(replay.add, donate_argnums=0)

    def fill(capacity):
        state = empty(capacity, width=360)
        full = dataclasses.replace(state, size=jnp.asarray(capacity, jnp.int32))
        for _ in range(32):
            full = insert(full, batch)
        return jax.block_until_ready(full)

    def seconds(state):
        start = time.perf_counter()
        for _ in range(64):
            state = insert(state, batch)
        jax.block_until_ready(state)
        return state, time.perf_counter() - start

    small, large = fill(2**17), fill(2**20)
    small_times, large_times = [], []
    for _ in range(12):  # in turns: a slow spell of the machine falls on both
        small, elapsed = seconds(small)
        small_times.append(elapsed)
        large, elapsed = seconds(large)
        large_times.append(elapsed)
    assert min(large_times) / min(small_times) <= 2
