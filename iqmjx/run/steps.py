"""Numbered steps in a folder, each saved whole and checked when it is read.

    FOLDER/<step>/                 what Orbax wrote, one folder per item
    FOLDER/<step>/checksums.json   one of each file

A step is written under another name and renamed when it is whole, so an interrupted
save leaves no half step behind. Nothing of a step is read before all of its files have
been held against their checksums.
"""

from __future__ import annotations

import gc
import json
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from iqmjx import parallel, registry, strict_json
from iqmjx.errors import UsageError
from iqmjx.run import memory

_CHECKSUMS = "checksums.json"
_PARTIAL = ".partial"
_BLOCK = 2**18  # bytes read at a time: they stay in the cache
_PAGE = 2**12  # bytes
_FILES_BYTES = 2**14  # of the files of one array, beside its numbers
_READERS = 2
_REASON_LENGTH = 400  # characters


class StorageError(OSError):
    """A step could not be written: the disk is full, or not ours to write."""


class Steps:
    """A folder of steps, open for writing.

    Opening it removes what an interrupted save has left there.
    """

    def __init__(
        self,
        folder: Path,
        handlers: dict[str, Any],
        by_all: bool = False,
    ):
        """Opens the folder.

        Args:
            folder: made where there is none.
            handlers: Orbax's, one for each item of a step.
            by_all: every process of the run has one and saves its part of the arrays;
                else this process alone has.
        """
        self._folder, self._by_all = folder.absolute(), by_all
        self._writes_files = not by_all or parallel.is_first()
        self._checkpointer = checkpointer(handlers, by_all)
        if self._writes_files:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.iterdir():
                if _PARTIAL in leftover.name:
                    shutil.rmtree(leftover)

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Writes a step, unless it is there already.

        Args:
            step: its number.
            items: Orbax's arguments for saving, by item.

        Raises:
            StorageError: where it cannot be written; the steps before are kept.
        """
        if self._told(lambda: str(step in numbers(self._folder))) == "True":
            return
        if shortage := self._told(lambda: _shortage(self._folder, items)):
            raise StorageError(f"{self._folder / str(step)}: {shortage}")
        partial = self._folder / f"{step}{_PARTIAL}"
        try:
            self._checkpointer.save(partial, ocp.args.Composite(**items), force=True)
            if self._writes_files:
                _write_checksums(partial)
                partial.rename(self._folder / str(step))
        except Exception as error:
            for leftover in self._folder.glob(f"{partial.name}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if _is_storage(error):
                reason = _reason(error)
                raise StorageError(f"{self._folder / str(step)}: {reason}") from error
            raise
        finally:
            gc.collect()  # Orbax leaves copies of arrays in reference cycles

    def keep_newest(self, count: int) -> None:
        """Deletes the steps before the newest few."""
        newest = numbers(self._folder)[-count:]
        self.delete(lambda step: step not in newest)

    def delete(self, unwanted: Callable[[int], bool]) -> None:
        """Deletes the steps, whole or damaged, whose numbers are unwanted."""
        for step in numbers(self._folder) if self._writes_files else ():
            if unwanted(step):
                shutil.rmtree(self._folder / str(step))

    def close(self) -> None:
        """Frees what saving held."""
        self._checkpointer.close()

    def _told(self, find: Callable[[], str]) -> str:
        """What this process finds; where all processes save, what the first does."""
        return parallel.by_first(find) if self._by_all else find()


def numbers(folder: Path) -> list[int]:
    """The steps in a folder, in order, whether or not they can be read."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def read_newest(
    folder: Path, read: Callable[[Path], Any], choice: int | None = None
) -> tuple[int, Any, list[str]]:
    """Reads the newest step that is whole.

    Args:
        folder: of the steps.
        read: what to do with the folder of one.
        choice: read this step or none.

    Returns:
        The step, what was read of it, and a line for each reason why newer ones could
        not be read.

    Raises:
        UsageError: where none can be read; at once a NotFoundError, for a class that is
            not here.
    """
    steps = numbers(folder)[::-1] if choice is None else [choice]
    unread: dict[str, list[int]] = {}
    for step in steps:
        try:
            path = (folder / str(step)).absolute()
            return step, read(path), _told(unread)
        except registry.NotFoundError:
            raise  # an older step needs the same class
        # Damage shows in many ways (missing files, short reads, bad JSON): each is
        # reported, and the next step tried.
        except Exception as error:
            unread.setdefault(_reason(error), []).append(step)
    reasons = "; ".join(_told(unread)) or "it holds no step"
    raise UsageError(f"{folder}: there is no whole step in it ({reasons})")


def verify(step: Path) -> bool:
    """Holds all files of a step against their checksums.

    Returns:
        Whether there are checksums; steps of older versions have none.

    Raises:
        UsageError: naming a file that is missing, or is not what was written.
    """
    path = step / _CHECKSUMS
    if not path.is_file():
        return False
    try:
        saved = dict(strict_json.loads(path.read_bytes()))
        found = _checksums(step)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    for name in sorted(saved.keys() | found.keys()):
        if name not in found:
            raise UsageError(f"{name} is missing")
        if found[name] != saved.get(name):
            raise UsageError(f"{name} is damaged: it is not what was written")
    return True


def checkpointer(handlers: dict[str, Any], by_all: bool = False) -> ocp.Checkpointer:
    """What reads and writes the items of a step (see `Steps`)."""
    this_process: Any = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    processes = ocp.options.MultiprocessingOptions() if by_all else this_process
    items = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=processes),
        **handlers,
    )
    return ocp.Checkpointer(items, multiprocessing_options=processes)


def _write_checksums(step: Path) -> None:
    (step / _CHECKSUMS).write_text(json.dumps(_checksums(step), indent=1) + "\n")


def _checksums(step: Path) -> dict[str, int]:
    """The checksum of each file in a step, but of the list of them."""
    files = sorted(path for path in step.rglob("*") if path.is_file())
    names = [path.relative_to(step).as_posix() for path in files]
    with ThreadPoolExecutor(_READERS) as readers:
        checksums = dict(zip(names, readers.map(_checksum, files), strict=True))
    checksums.pop(_CHECKSUMS, None)
    return checksums


def _checksum(path: Path) -> int:
    """The CRC-32 of a file's size and of the sums of its pages' 64-bit words.

    A CRC-32 of all of its bytes takes 2.6 times as long.
    """
    size, checksum = path.stat().st_size, 0
    block = bytearray(min(_BLOCK, size // _PAGE * _PAGE + _PAGE))
    pages = np.frombuffer(block, "<u8").reshape(-1, _PAGE // 8)
    with path.open("rb") as file:
        while count := file.readinto(block):
            block[count:] = bytes(len(block) - count)
            checksum = zlib.crc32(pages.sum(axis=1), checksum)
    return zlib.crc32(size.to_bytes(8, "little"), checksum)


def _shortage(folder: Path, items: dict[str, Any]) -> str:
    """What the disk lacks for a step, in words; nothing where there is room.

    Asked before, because Orbax meets a full disk with pages of errors. A step takes at
    most its arrays' bytes, uncompressed, and some blocks for each array's files.
    """
    leaves = jax.tree.leaves([argument.item for argument in items.values()])
    arrays = [leaf for leaf in leaves if hasattr(leaf, "nbytes")]
    needed = sum(array.nbytes + _FILES_BYTES for array in arrays)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return ""
    wanted, left = memory.describe(needed), memory.describe(free)
    return f"too little room is left: it takes up to {wanted}, and {left} are free"


def _is_storage(error: BaseException | None) -> bool:
    """Whether the cause of an error is that files cannot be written.

    TensorStore, which writes arrays, says so in the text of a ValueError.
    """
    if error is None:
        return False
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_storage, error.exceptions))
    return (
        isinstance(error, OSError)
        or "OS error" in str(error)
        or _is_storage(error.__cause__ or error.__context__)
    )


def _told(unread: dict[str, list[int]]) -> list[str]:
    """A line for each reason why steps could not be read."""
    return [
        f"step{'s' * (len(of) > 1)} {', '.join(map(str, of))} cannot be read: {reason}"
        for reason, of in unread.items()
    ]


def _reason(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0][:_REASON_LENGTH]
