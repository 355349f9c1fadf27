"""Gymnasium's MuJoCo locomotion tasks, version 5.

Observation, reward, termination, reset noise and time limit follow the installed
gymnasium package, and the models are its XML files.
"""

import importlib.util
from pathlib import Path

import mujoco


def load(xml: str) -> mujoco.MjSpec:
    """Reads one of the XML files that gymnasium installs."""
    package = importlib.util.find_spec("gymnasium")  # not imported
    assert package is not None and package.origin is not None
    assets = Path(package.origin).parent / "envs" / "mujoco" / "assets"
    return mujoco.MjSpec.from_file(str(assets / xml))
