"""What this machine's CPU can do."""

from __future__ import annotations

from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def instructions() -> list[str]:
    """The names of its sets of instructions; none where Linux does not list them."""
    lines = _INFO.read_text().splitlines() if _INFO.is_file() else []
    told = (line for line in lines if line.startswith(("flags", "Features")))
    return next(told, ":").split(":", 1)[1].split()
