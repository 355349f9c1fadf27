"""The Adroit hand's four tasks, dense and sparse.

Model, observation, reward, success, resets and time limit follow the installed
gymnasium-robotics package, and the models are its XML files. One term does not: since
gymnasium-robotics 1.2.1 the dense rewards of door, hammer and relocate pay 0.1 for each
metre *between* hand and object, against their own documentation. Upstream has turned
the sign, and calls the tasks -v2
(https://github.com/Farama-Foundation/Gymnasium-Robotics/pull/220 and 306; no release
has it yet). So do we: `door`, `hammer` and `relocate` are version 2, and `door-v1`,
`hammer-v1` and `relocate-v1` are what the installed package pays. Of pen and of the
sparse rewards both versions are the same.

Version 2 also mends `set_env_state` of relocate and hammer (310, 313): what it set was
not what `get_env_state` had read. Resets, steps and observations do not use it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import mujoco
from packaging.version import Version

from iqmjx.errors import UsageError

_PACKAGE = "gymnasium-robotics"
_FIRST, _BEYOND = "1.2.1", "1.4.3"
"""The versions whose rewards these are: from the first, up to but without the last."""


def load(xml: str) -> mujoco.MjSpec:
    """Reads one of the XML files that gymnasium-robotics installs.

    Raises:
        UsageError: where the package is missing, or its rewards are others.
    """
    wanted = f"'{_PACKAGE}>={_FIRST},<{_BEYOND}'"
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"the Adroit hand's models come with {_PACKAGE}, which is not "
            f"installed: pip install {wanted}"
        ) from None
    if not Version(_FIRST) <= Version(version) < Version(_BEYOND):
        raise UsageError(
            f"the Adroit hand's rewards in {_PACKAGE} {version} are not those "
            f"known here: pip install {wanted}"
        )
    package = importlib.util.find_spec(_PACKAGE.replace("-", "_"))  # not imported
    assert package is not None and package.submodule_search_locations is not None
    root = Path(package.submodule_search_locations[0])
    return mujoco.MjSpec.from_file(str(root / "envs/assets/adroit_hand" / xml))
