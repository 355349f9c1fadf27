"""Orbax checkpoints of a whole TrainState, in a run folder.

    RUN/checkpoints/<env steps>/   the newest few whole states: a full resume

A step is written under another name and renamed when whole, so that an interrupted save
leaves no half step behind. Each array of the state is stored under its path in the
state, with its leading axes of seeds and shards.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from iqmjx import loop
from iqmjx.run import memory

CHECKPOINTS = "checkpoints"
_NEWEST_KEPT = 2
_CHUNK_BYTES = 2**26  # what is compressed at a time
_NAMES_TOLD = 3
_REASON_LENGTH = 400  # characters
_STEPS = "envs.steps"  # of the item `worlds`: [S, G, N/G]


class Store:
    """The checkpoints of one run, open for writing. Every process must have one."""

    def __init__(self, run_folder: Path, state: loop.TrainState):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_NEWEST_KEPT, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(
            run_folder.absolute() / CHECKPOINTS,
            options=options,
            item_handlers=_handlers(_parts(state)),
        )

    def drop_after(self, env_steps: int) -> None:
        """Deletes newer steps: a resume from here takes them again."""
        delete_after(self._manager, env_steps)

    def save(self, env_steps: int, state: loop.TrainState) -> None:
        """Writes the whole state, unless this step is there already."""
        if env_steps in self._manager.all_steps():
            return
        chunked = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
        items = {
            part: ocp.args.PyTreeSave(arrays, dict.fromkeys(arrays, chunked))
            for part, arrays in _parts(state).items()
        }
        self._manager.save(env_steps, args=ocp.args.Composite(**items))
        gc.collect()  # Orbax leaves copies of arrays in reference cycles

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


@contextlib.contextmanager
def open_store(run_folder: Path, state: loop.TrainState) -> Iterator[Store]:
    """A Store for states like `state` (arrays or shapes), closed on leaving."""
    store = Store(run_folder, state)
    try:
        yield store
    finally:
        store.close()


def has_steps(run_folder: Path) -> bool:
    """Whether a run has saved a state, whole or damaged."""
    folder = run_folder / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


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
        ValueError: where no step can be restored.
    """
    wanted = abstract_state(setup)
    folder = (run_folder / CHECKPOINTS).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no checkpoint (no such folder)")
    handlers = _handlers(_parts(wanted))
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        step, (state, divided), problems = read_first(
            steps,
            lambda step: _restore_step(manager, step, setup, wanted),
            f"{folder}: there is no whole checkpoint to restore",
        )
    told = [f"warning: {p}; falling back to an older one" for p in problems]
    return step, state, told + divided


def read_first(
    steps: Iterable[int], read: Callable[[int], Any], failure: str
) -> tuple[int, Any, list[str]]:
    """The first step that can be read, what it holds, and a line about each before it.

    Raises:
        ValueError: `failure`, and why, where none can be.
    """
    problems = []
    for step in steps:
        try:
            return step, read(step), problems
        # Damage shows in many ways (missing files, short reads, bad JSON): each is
        # reported, and the next step tried.
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:_REASON_LENGTH]
            problems.append(f"step {step} cannot be read: {reason}")
    raise ValueError(f"{failure} ({'; '.join(problems) or 'it holds no step'})")


def delete_after(manager: ocp.CheckpointManager, env_steps: int) -> None:
    """Deletes the steps after this one."""
    for step in manager.all_steps():
        if step > env_steps:
            manager.delete(step)


def _restore_step(
    manager: ocp.CheckpointManager,
    step: int,
    setup: loop.Setup,
    wanted: loop.TrainState,
) -> tuple[loop.TrainState, list[str]]:
    """The state of one step, and a line where its shards are divided anew."""
    items = manager.item_metadata(step)
    saved: dict[str, Mapping[str, Any]] = {}
    for part in _parts(wanted):
        metadata: Any = items.get(part, None)
        saved[part] = metadata.tree if metadata else {}
    layout, shards = setup.layout, _shards_of(saved["worlds"])
    if shards in (None, layout.num_shards):
        placed = layout.placed(loop.SPECS, wanted)
        raw = _read(manager, step, saved, placed)
        raw = jax.tree.map(_owned, raw)
        told = []
    else:
        whole = _read(manager, step, saved, loop.regrouped(wanted, shards))
        raw = layout.place(loop.SPECS, loop.regrouped(whole, layout.num_shards))
        told = [
            f"worlds and replay, saved in {shards} shards, are divided anew into "
            f"{layout.num_shards}"
        ]
    return jax.tree.map(_typed, raw, wanted), told


def _shards_of(worlds: Mapping[str, Any]) -> int | None:
    """The number of shards of a saved state; None where it is none of ours."""
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
        "learner": {"learner": state.learner, "normalizer": state.normalizer},
        "replay": {"replay": state.replay},
        "worlds": {"envs": state.envs, "key": state.key, "steps": state.steps},
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


def _owned(leaf: Any) -> Any:
    """Copies a restored array into memory that XLA owns.

    What Orbax returns may be a NumPy array's memory, and donating that to a program
    makes a second copy of all of it.
    """
    return jax.jit(jnp.copy)(leaf).block_until_ready()


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


def _read(
    manager: ocp.CheckpointManager,
    step: int,
    saved: dict[str, Mapping[str, Any]],
    wanted: loop.TrainState,
) -> Any:
    """The state of one step, keys as numbers.

    It is placed by the shardings of the shapes `wanted`; NumPy's where there is none.

    Raises:
        ValueError: where what is saved (shapes by name) is not what is wanted.
    """
    parts = _parts(wanted)
    told = [line for part in parts for line in differences(saved[part], parts[part])]
    if told:
        more = f" and {len(told) - _NAMES_TOLD} more" if told[_NAMES_TOLD:] else ""
        raise ValueError(
            "it was saved by another version of iqmjx, or with other settings: "
            f"{', '.join(told[:_NAMES_TOLD])}{more}"
        )
    items = {
        part: ocp.args.PyTreeRestore(shapes, jax.tree.map(_restore_args, shapes))
        for part, shapes in parts.items()
    }
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    arrays = {part: dict(restored[part]) for part in parts}
    del restored
    gc.collect()  # as in Store.save
    found = {
        part: fill(fields, arrays[part]) for part, fields in _items(wanted).items()
    }
    return loop.TrainState(**found["learner"], **found["replay"], **found["worlds"])


def _restore_args(like: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if like.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=like.sharding, global_shape=like.shape)
