"""Gymnasium's MuJoCo locomotion tasks, version 5.

Observation, reward, termination, reset noise and time limit follow the installed
gymnasium package, and the models are its XML files.
"""

from pathlib import Path

import gymnasium
import mujoco


def load(xml: str) -> mujoco.MjSpec:
    """Reads one of the XML files that gymnasium installs."""
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    return mujoco.MjSpec.from_file(str(assets / xml))
