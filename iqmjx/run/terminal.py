"""What a command prints: dropped where nobody reads it, and harmless to a terminal."""

from __future__ import annotations

import io
import sys


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
