"""Ctrl-C, SIGTERM and SIGHUP: noted from a command's first second on, answered at once.

Python runs the handlers of signals in the main thread, between two steps of its own:
not while XLA compiles, and not before a chunk has ended. So the interpreter also writes
each signal's number to a pipe, and a thread reads it there.

Nothing is imported here that takes time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEAN_LINE = "\r\x1b[K\x1b[?25h"  # of a terminal: the line empty, the cursor shown


class Stop:
    """Whether a command was asked to stop.

    While there is nothing to save, the first signal ends the process. Within `deferred`
    it is noted in `requested` instead; then a second Ctrl-C ends the process.

    Attributes:
        requested: whether to stop as soon as the state is saved.
        farewell: what is said where there was nothing to save.
    """

    def __init__(self, idle_exit: int | None = None):
        """Nothing asked yet.

        Args:
            idle_exit: the exit code where there was nothing to save; by default that
                of a process that the signal killed.
        """
        self.requested = False
        self.farewell = "stopped"
        self._idle_exit = idle_exit
        self._say: Callable[[str], None] | None = None  # within `deferred`
        self._lock = threading.Lock()

    @property
    def deferring(self) -> bool:
        """Whether signals are noted: whether there is something to save."""
        return self._say is not None

    @contextlib.contextmanager
    def deferred(self, say: Callable[[str], None]) -> Iterator[None]:
        """Notes signals, and answers through `say`, until it is left."""
        with self._lock:
            before, self._say = self._say, say
        try:
            yield
        finally:
            with self._lock:
                self._say = before

    def take(self, number: int) -> None:
        """Answers a signal; any thread may call it."""
        with self._lock:
            if self._say is None:
                _leave(self.farewell, _code(number, self._idle_exit))
            elif not self.requested:
                try:  # said before anything that follows from `requested` is
                    self._say(
                        "stopping after this chunk ... (Ctrl-C again: at once, with "
                        "the last checkpoint)"
                    )
                finally:
                    self.requested = True
            elif number == signal.SIGINT:  # Slurm sends SIGTERM more than once
                _leave("stopped at once", _code(number))


def listen(idle_exit: int | None = None) -> Stop:
    """A `Stop` that takes this process's signals; the main thread's to call.

    A signal that the process was started to ignore (as nohup does) stays ignored.
    """
    stop = Stop(idle_exit)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(stop, reader), daemon=True).start()
    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    atexit.register(_ignore)  # the first to be registered, and so the last to be called
    return stop


@contextlib.contextmanager
def held_back() -> Iterator[Stop]:
    """A `Stop` for a run within somebody's program, which has handlers of its own.

    In the main thread, Ctrl-C asks it to stop, and reaches the program's own handler
    (by default Python's, which raises KeyboardInterrupt) when this is left; at once,
    where there is nothing to save, and the second time. Elsewhere signals are left
    alone, and so are those that are ignored.
    """
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    alone = threading.current_thread() is not threading.main_thread()
    if alone or before in (signal.SIG_IGN, None):
        yield stop
        return
    interrupted = False

    def take(number: int, frame: types.FrameType | None) -> None:
        nonlocal interrupted
        if stop.deferring and not interrupted:
            interrupted = stop.requested = True
            return
        interrupted = False
        signal.signal(number, before)
        signal.raise_signal(number)

    signal.signal(signal.SIGINT, take)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        signal.raise_signal(signal.SIGINT)


def _ignore() -> None:
    """Leaves the exit code as it is: Python forgets its handlers while it ends."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _watch(stop: Stop, reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in _STOPPING:
                stop.take(number)


def _code(number: int, instead: int | None = None) -> int:
    return 128 + number if instead is None else instead


def _leave(text: str, code: int) -> None:
    """Ends the process, whatever its other threads are in the middle of."""
    with contextlib.suppress(OSError, ValueError):
        start = _CLEAN_LINE if os.isatty(2) else ""
        os.write(2, f"{start}{text}\n".encode())
    os._exit(code)
