"""Orbax checkpoints of a whole TrainState, in a run folder.

    RUN/checkpoints/<env steps>/   the newest few whole states: a full resume
    RUN/best/<env steps>/          the policy of the best evaluation so far

A step is written under another name and renamed when whole, so that an interrupted save
leaves no half step behind.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from iqmjx import loop
from iqmjx.run import memory

CHECKPOINTS = "checkpoints"
BEST = "best"
_NEWEST_KEPT = 2
_SCORE = "episode_reward"
_CHUNK_BYTES = 2**26  # what is compressed at a time


class Store:
    """The checkpoints of one run, open for writing."""

    def __init__(self, run_folder: Path, state: loop.TrainState):
        folder, parts = run_folder.absolute(), _parts(state)
        newest = ocp.CheckpointManagerOptions(
            max_to_keep=_NEWEST_KEPT, enable_async_checkpointing=False
        )
        best = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            best_fn=lambda metrics: metrics[_SCORE],
            enable_async_checkpointing=False,
        )
        self._newest = ocp.CheckpointManager(
            folder / CHECKPOINTS, options=newest, item_handlers=_handlers(parts)
        )
        self._best = ocp.CheckpointManager(
            folder / BEST,
            options=best,
            item_handlers=_handlers({"policy": parts["policy"]}),
        )

    def drop_after(self, env_steps: int) -> None:
        """Deletes newer whole-state steps: a resume from here takes them again."""
        for step in self._newest.all_steps():
            if step > env_steps:
                self._newest.delete(step)

    def save(self, env_steps: int, state: loop.TrainState) -> None:
        """Writes the whole state, unless this step is there already."""
        if env_steps in self._newest.all_steps():
            return
        self._newest.save(env_steps, args=_save_args(_parts(state)))
        gc.collect()  # Orbax leaves copies of arrays in reference cycles

    def save_policy(self, env_steps: int, state: loop.TrainState, score: float) -> None:
        """Writes the policy; of all written so, the one that scored best is kept."""
        if env_steps in self._best.all_steps():
            return
        self._best.save(
            env_steps,
            args=_save_args({"policy": _parts(state)["policy"]}),
            metrics={_SCORE: score},
        )

    def close(self) -> None:
        """Waits for what is being written."""
        self._newest.close()
        self._best.close()


@contextlib.contextmanager
def open_store(run_folder: Path, state: loop.TrainState) -> Iterator[Store]:
    """A Store for states like `state` (arrays or shapes), closed on leaving."""
    store = Store(run_folder, state)
    try:
        yield store
    finally:
        store.close()


def restore_state(
    run_folder: Path, abstract: loop.TrainState
) -> tuple[int, loop.TrainState, list[str]]:
    """Restores the newest whole state of a run.

    Args:
        run_folder: the run's folder.
        abstract: shapes and dtypes of the state (`jax.eval_shape`).

    Returns:
        The env steps it was saved at, the state, and a line about each newer step that
        could not be read.

    Raises:
        ValueError: where no step can be restored.
    """
    parts, step, problems = _restore_newest(run_folder / CHECKPOINTS, _parts(abstract))
    (learner, normalizer), (worlds, key) = parts["policy"], parts["worlds"]
    replay = _owned(parts.pop("replay"))
    state = loop.TrainState(learner, normalizer, replay, worlds, key)
    return step, state, problems


def restore_policy(folder: Path, abstract: loop.TrainState) -> tuple[int, Any, Any]:
    """Restores what acting needs from the newest whole step in a folder of steps.

    Returns:
        (env steps it was saved at, learner, normalizer).

    Raises:
        ValueError: where no step can be restored.
    """
    wanted = {"policy": _parts(abstract)["policy"]}
    parts, step, _ = _restore_newest(folder, wanted)
    return step, *parts["policy"]


def locate(path: Path) -> tuple[Path, Path]:
    """Finds the run folder and the folder of steps that a user's path means.

    Args:
        path: a run folder, its `checkpoints` or `best`, or one step in them.

    Returns:
        (run folder, folder whose newest step is meant; or that one step).

    Raises:
        ValueError: where the path is none of these.
    """
    path = path.absolute()
    for up, run_folder in enumerate([path, *path.parents[:2]]):
        if (run_folder / "config.json").is_file():
            return run_folder, path if up else run_folder / CHECKPOINTS
    raise ValueError(
        f"--checkpoint {path}: not a run folder, its checkpoints/ or one step in it "
        f"(a run folder holds config.json)"
    )


def _parts(state: loop.TrainState) -> dict[str, Any]:
    """A state as separately restorable items: acting needs only the first."""
    return {
        "policy": (state.learner, state.normalizer),
        "replay": state.replay,
        "worlds": (state.envs, state.key),
    }


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


def _save_args(parts: dict[str, Any]) -> ocp.args.Composite:
    chunked = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    return ocp.args.Composite(
        **{
            name: ocp.args.PyTreeSave(tree, jax.tree.map(lambda _: chunked, tree))
            for name, tree in parts.items()
        }
    )


def _restore_args(parts: dict[str, Any]) -> ocp.args.Composite:
    return ocp.args.Composite(
        **{
            name: ocp.args.PyTreeRestore(
                tree, ocp.checkpoint_utils.construct_restore_args(tree)
            )
            for name, tree in parts.items()
        }
    )


def _owned(tree: Any) -> Any:
    """Copies restored arrays one by one into memory that XLA owns.

    What Orbax returns may be a NumPy array's memory, and donating that to a program
    makes a second copy of all of it. `tree` should be the last reference.
    """
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for i in range(len(leaves)):
        leaves[i] = jnp.copy(leaves[i]).block_until_ready()
    return structure.unflatten(leaves)


def _restore_newest(folder: Path, wanted: dict[str, Any]) -> tuple[Any, int, list[str]]:
    """Restores from the newest step that can be read; `folder` may be one step."""
    args = _restore_args(wanted)
    folder = folder.absolute()
    chosen = int(folder.name) if folder.name.isdigit() else None
    root = folder.parent if chosen is not None else folder
    if not root.is_dir():
        raise ValueError(f"{root}: there is no checkpoint (no such folder)")
    problems = []
    handlers = _handlers(wanted)
    with ocp.CheckpointManager(root, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps if chosen is None else [chosen]:
            try:
                restored = manager.restore(step, args=args)
                gc.collect()  # as in Store.save
                return {name: restored[name] for name in wanted}, step, problems
            # Damage shows in many ways (missing files, short reads, bad JSON): each is
            # reported, and an older step tried.
            except Exception as error:
                reason = str(error).strip().split("\n")[0][:200]
                problems.append(f"step {step} cannot be read: {reason}")
    detail = "; ".join(problems) or "it holds no step"
    raise ValueError(f"{folder}: there is no whole checkpoint to restore ({detail})")


def abstract_state(setup: loop.Setup) -> loop.TrainState:
    """Shapes and dtypes of a run's state, nothing computed."""
    return jax.eval_shape(lambda: loop.init(setup, jax.random.key(0)))
