"""Orbax checkpoints of a whole TrainState, in a run folder.

    RUN/checkpoints/<env steps>/   the newest few whole states: a full resume

Each array of the state is stored under its path in the state, with its leading axes of
seeds and shards.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from iqmjx import loop, parallel
from iqmjx.errors import UsageError
from iqmjx.registry import NotFoundError
from iqmjx.run import memory, steps

CHECKPOINTS = "checkpoints"
_NEWEST_KEPT = 2
_CHUNK_BYTES = 2**26  # what is compressed at a time
_STEPS = "envs.steps"  # of the item `worlds`: [S, G, N/G]


class Store:
    """The checkpoints of one run, open for writing. Every process must have one."""

    def __init__(self, run_folder: Path, state: loop.TrainState):
        self._steps = steps.Steps(
            run_folder / CHECKPOINTS,
            _handlers(_parts(state)),
            by_all=True,
        )

    def drop_after(self, env_steps: int) -> None:
        """Deletes newer steps: a resume from here takes them again."""
        self._steps.delete(lambda step: step > env_steps)

    def save(self, env_steps: int, state: loop.TrainState) -> None:
        """Writes the whole state, unless this step is there already.

        Raises:
            StorageError: where it cannot be written; older ones are kept.
        """
        chunked = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
        items = {
            part: ocp.args.PyTreeSave(arrays, dict.fromkeys(arrays, chunked))
            for part, arrays in _parts(state).items()
        }
        self._steps.save(env_steps, items)
        self._steps.keep_newest(_NEWEST_KEPT)

    def close(self) -> None:
        """Frees what saving held."""
        self._steps.close()


@contextlib.contextmanager
def open_store(run_folder: Path, state: loop.TrainState) -> Iterator[Store]:
    """A Store for states like `state` (arrays or shapes), closed on leaving."""
    store = Store(run_folder, state)
    try:
        yield store
    finally:
        store.close()


def newest(run_folder: Path) -> int | None:
    """The env steps of the newest state saved, whole or damaged; None without any."""
    return max(steps.numbers(run_folder / CHECKPOINTS), default=None)


def restore(
    run_folder: Path, setup: loop.Setup
) -> tuple[int, loop.TrainState, list[str]]:
    """Restores the newest whole state of a run, onto the setup's devices.

    Where it was saved with another number of shards than the setup's, worlds and
    replay are divided anew: no world and no transition is lost, but batches are drawn
    from other shards.

    Args:
        run_folder: the run's folder.
        setup: the run's setup.

    Returns:
        The env steps it was saved at, the state, and lines to be told: about each newer
        step that could not be read, and about a new division.

    Raises:
        UsageError: where no step can be restored.
    """
    wanted = abstract_state(setup)
    reader = steps.checkpointer(_handlers(_parts(wanted)), by_all=True)
    try:
        step, (state, divided), problems = steps.read_newest(
            run_folder / CHECKPOINTS,
            lambda path: _restore_step(reader, path, setup, wanted),
        )
    except NotFoundError:
        raise
    except UsageError as error:
        raise UsageError(f"{error}; to begin anew, remove that folder") from error
    told = [f"warning: {p}; falling back to an older one" for p in problems]
    return step, state, told + divided


def _restore_step(
    reader: ocp.Checkpointer, path: Path, setup: loop.Setup, wanted: loop.TrainState
) -> tuple[loop.TrainState, list[str]]:
    """The state of one step, and a line where its shards are divided anew."""
    checked = parallel.by_first(lambda: str(steps.verify(path))) == "True"
    items: Any = reader.metadata(path).item_metadata
    saved: dict[str, Mapping[str, Any]] = {}
    for part in _parts(wanted):
        metadata: Any = items.get(part, None)
        saved[part] = metadata.tree if metadata else {}
    layout = setup.layout
    shards = _shards_of(saved["worlds"]) or layout.num_shards
    if as_saved := shards == layout.num_shards:
        to_read = layout.placed(loop.SPECS, wanted)
    else:
        to_read = loop.regrouped(wanted, shards)
    _refuse_differences(saved, to_read)
    if not checked:
        raise ValueError("its checksums are missing")
    raw, told = _read(path, to_read), []
    if not as_saved:
        raw = layout.place(loop.SPECS, loop.regrouped(raw, layout.num_shards))
        told = [
            f"worlds and replay, saved in {shards} shards, are divided anew into "
            f"{layout.num_shards}"
        ]
    return jax.tree.map(_typed, raw, wanted), told


def _refuse_differences(
    saved: Mapping[str, Mapping[str, Any]], wanted: loop.TrainState
) -> None:
    """Raises ValueError where what is saved (shapes by name) is not what is wanted."""
    parts = _parts(wanted)
    told = [line for part in parts for line in differences(saved[part], parts[part])]
    if told:
        more = f" (and {len(told) - 1} more differ)" if told[1:] else ""
        raise ValueError(
            "it was saved by another version of iqmjx, or with other settings: "
            f"{told[0]}{more}"
        )


def _shards_of(worlds: Mapping[str, Any]) -> int | None:
    """The number of shards of a saved state; None where it is no state of a run."""
    steps = worlds.get(_STEPS)
    return steps.shape[1] if steps is not None and len(steps.shape) == 3 else None


def abstract_state(setup: loop.Setup) -> loop.TrainState:
    """Shapes and dtypes of a run's state, nothing computed."""
    return jax.eval_shape(lambda: loop.init(setup))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays (or shapes) of a tree by their paths in it, as they are stored.

    Random keys are stored as their numbers, and empty arrays not at all.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): _raw(leaf) for path, leaf in leaves if leaf.size}


def fill(wanted: Any, arrays: dict[str, Any]) -> Any:
    """The tree `wanted` of arrays stored by name, its keys still numbers.

    The arrays are taken out of the mapping.
    """

    def leaf(path, like):
        if like.size == 0:
            return np.zeros(like.shape, like.dtype)
        return arrays.pop(_name(path))

    return jax.tree_util.tree_map_with_path(leaf, wanted)


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What keeps saved arrays (by name, with shape and dtype) from being the wanted."""
    told = [f"{name} is missing" for name in wanted if name not in saved]
    told += [f"{name} is not known" for name in saved if name not in wanted]
    for name in wanted.keys() & saved.keys():
        have, want = saved[name], wanted[name]
        if (tuple(have.shape), have.dtype) != (tuple(want.shape), want.dtype):
            told.append(
                f"{name} is {have.dtype}{list(have.shape)}, not "
                f"{want.dtype}{list(want.shape)}"
            )
    return sorted(told)


def _items(state: loop.TrainState) -> dict[str, dict[str, Any]]:
    """The fields of a state by the item of a checkpoint that they belong to."""
    return {
        "learner": {
            "learner": state.learner,
            "normalizer": state.normalizer,
            "reward_normalizer": state.reward_normalizer,
        },
        "replay": {"replay": state.replay},
        "worlds": {
            "envs": state.envs,
            "returns": state.returns,
            "noise": state.noise,
            "key": state.key,
            "steps": state.steps,
        },
    }


def _parts(state: loop.TrainState) -> dict[str, dict[str, Any]]:
    """The arrays of each item of a checkpoint, by name."""
    return {part: named_leaves(fields) for part, fields in _items(state).items()}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return data.update(sharding=leaf.sharding)
    return jax.jit(jax.random.key_data)(leaf)  # jit: it may lie on several processes


def _typed(leaf: Any, like: Any) -> Any:
    return jax.jit(jax.random.wrap_key_data)(leaf) if _is_key(like) else leaf


def _handlers(parts: dict[str, Any]) -> dict[str, ocp.PyTreeCheckpointHandler]:
    """Handlers that write the arrays of a state one by one, each to a folder.

    Orbax's other ways copy all of them first (a second replay ring), or gather them in
    one database on the way (most of one).
    """
    largest = max(memory.tree_bytes(leaf) for leaf in jax.tree.leaves(parts))
    return {
        name: ocp.PyTreeCheckpointHandler(
            save_concurrent_gb=largest // 10**9 + 1, use_ocdbt=False
        )
        for name in parts
    }


def _read(path: Path, wanted: loop.TrainState) -> Any:
    """The state of one step, keys as numbers.

    It is placed by the shardings of the shapes `wanted`; NumPy's where there is none.
    """
    parts = _parts(wanted)
    arrays = {
        part: {
            name: _read_array(path / part / name, like) for name, like in shapes.items()
        }
        for part, shapes in parts.items()
    }
    found = {
        part: fill(fields, arrays[part]) for part, fields in _items(wanted).items()
    }
    return loop.TrainState(**found["learner"], **found["replay"], **found["worlds"])


def _read_array(folder: Path, like: jax.ShapeDtypeStruct) -> Any:
    """One array as Orbax stored it, read straight into the memory that it will have.

    Orbax reads all of an array, and then places it: for a moment there are two. And
    what it returns may be NumPy's memory, of which XLA makes a copy when it is donated.
    """
    place = {"driver": "file", "path": str(folder)}
    stored = tensorstore.open({"driver": "zarr", "kvstore": place}).result()
    if like.sharding is None:
        return stored.read().result()
    pieces = []
    indices = like.sharding.addressable_devices_indices_map(like.shape)
    for device, index in indices.items():
        view = stored[index].translate_to[0]
        piece = jnp.zeros(view.shape, like.dtype, device=device)
        size: Any = stored.chunk_layout.read_chunk.shape or view.shape  # a number's: ()
        for start, chunk in _chunks(view, size):
            piece = _write(piece, chunk, start)
        pieces.append(piece)
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, pieces)


def _chunks(view: Any, size: tuple[int, ...]) -> Iterator[tuple[Any, np.ndarray]]:
    """Where each part of a stored array begins, and what it holds, one at a time."""
    starts = [range(0, n, step) for n, step in zip(view.shape, size, strict=True)]
    for start in itertools.product(*starts):
        end = np.minimum(np.add(start, size), view.shape)
        index = tuple(slice(a, b) for a, b in zip(start, end, strict=True))
        yield np.array(start, np.int32), view[index].read().result()


@functools.partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    """Writes a part of an array in place, from the indices `start`."""
    return jax.lax.dynamic_update_slice(array, part, start)
