"""iqmjx: IQ (Implicit Q-values) trained fast on MuJoCo.

Array shapes are written with one letter per dimension throughout the package:

    N  parallel worlds                 O  observation entries
    B  transitions in one batch        A  action dimensions
    C  replay capacity, transitions    n  bins per action dimension
    K  updates per vector step         T  vector steps in one chunk
    M  evaluation episodes, or start states in a bank
    V  value networks                  S  seeds

A vector step is one control step of all N worlds; env steps count worlds, so a vector
step is N env steps.

Read the training step in three files: `agents/iq.py` (the equation), `replay.py` (the
data), `loop.py` (the loop).
"""

from __future__ import annotations

import os
import typing

if typing.TYPE_CHECKING:
    from iqmjx.run.trained_policy import TrainedPolicy

__version__ = "0.1.0"


def load(path: str | os.PathLike[str]) -> TrainedPolicy:
    """Loads a trained policy.

        policy = iqmjx.load("checkpoints/humanoid")
        action = policy(obs)

    Args:
        path: a run folder, its `policy` or `best`, or one step in them.

    Raises:
        UsageError: where there is no saved policy, or it cannot be read here.
    """
    from iqmjx.run import trained_policy  # brings JAX, which takes a second to import

    return trained_policy.load(path)
