"""MuJoCo's own log, silenced where its warnings are read as counters instead.

Without a handler of warnings MuJoCo prints them, and writes MUJOCO_LOG.TXT into the
working directory. The handler is a C function of the whole process, called on MuJoCo's
threads; one written in Python would have them wait for Python's lock.
"""

from __future__ import annotations

import ctypes
import importlib
import threading

# The search goes on in what the module is linked with, MuJoCo's own library.
_library = ctypes.CDLL(importlib.import_module("mujoco._functions").__file__)
_handler = ctypes.c_void_p.in_dll(_library, "mju_user_warning")
# It looks a string up and does nothing else.
_ignore = ctypes.cast(_library.mju_str2Type, ctypes.c_void_p).value


class _Silence:
    """A context in which warnings go nowhere; any number of threads may be in it.

    What handled them before does so again once the last has left, unless a handler was
    set meanwhile: that one stays.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._before = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before, _handler.value = _handler.value, _ignore
            self._inside += 1

    def __exit__(self, *_exc_info) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and _handler.value == _ignore:
                _handler.value = self._before


silence = _Silence()
