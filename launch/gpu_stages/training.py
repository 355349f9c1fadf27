"""The whole training step, its parts, and where a chunk's time goes by a profile.

`iqmjx.run.throughput` times the step and, on the same worlds, what it is made of; their
ratio, `efficiency`, says how much is lost between the parts. The profile of one chunk
says which operations the rest is: where to look for the next gain.
"""

from __future__ import annotations

import tempfile

from iqmjx.run import throughput

from . import common, profile
from .scales import Check, Results


def measure(check: Check) -> Results:
    """Yields the rates, with the costliest operations."""
    with tempfile.TemporaryDirectory() as folder:
        result = throughput.measure(common.config(check), check.scale.rounds, folder)
        yield result | {"costliest": profile.costliest(folder)}
