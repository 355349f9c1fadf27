"""What a command prints: dropped where nobody reads it, and harmless to a terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator


class _Dropping(io.FileIO):
    """A file whose writes cannot fail: what cannot be written is dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:  # a pipe that nobody reads, a terminal gone, a full disk
            return memoryview(data).nbytes


def keep_going() -> None:
    """From now on a run does not depend on who reads its output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start
            continue
        raw = _Dropping(stream.fileno(), "w", closefd=False)
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=True,
            ),
        )


def plain(text: object) -> str:
    """Text in one line of printable characters, the others written out.

    For text that came from a file: an escape sequence in it would reach the terminal.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how much of something is done, on stderr: a bar, or a line at its start.

    Gives what to call with what is done, and what there is to do.
    """
    from rich import console, progress  # which take a while, and `keep_going` is early

    screen = console.Console(stderr=True, highlight=False)
    if not screen.is_terminal:
        print(f"{plain(what)} ...", file=sys.stderr)
    with progress.Progress(
        console=screen, transient=True, disable=not screen.is_terminal
    ) as bar:
        task = bar.add_task(plain(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
