"""A profile by JAX, read: which operations took the time."""

from __future__ import annotations

import glob
import re
from collections import Counter
from typing import Any

import jax

_TOP = 15


def costliest(folder: str) -> list[dict[str, Any]]:
    """Operations by their total time, the costliest first.

    Of the device where the profile has one. On a CPU, of XLA's own threads: Python's
    are in the profile as well, and wait most of the time. Numbers at the end of a name
    tell instances of one operation apart, and are dropped.
    """
    paths = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    profile: Any = jax.profiler.ProfileData.from_file(paths[0])
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            if not devices and "XLA" not in line.name and "Eigen" not in line.name:
                continue  # one of Python's threads
            for event in line.events:
                name = re.sub(r"[.\d]+$", "", event.name)
                total[name] += event.duration_ns / 1e9
                calls[name] += 1
    return [
        {"operation": name[:80], "seconds": seconds, "calls": calls[name]}
        for name, seconds in total.most_common(_TOP)
    ]
