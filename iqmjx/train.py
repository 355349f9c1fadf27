"""python -m iqmjx.train: the command `iqmjx train`.

Imported, this module stands for the function `iqmjx.train`, whose name it would take.
"""

import sys
from typing import Any

import iqmjx
from iqmjx.__main__ import run

if __name__ == "__main__":
    run("train")
elif __name__ == "iqmjx.train":
    modules: dict[str, Any] = sys.modules
    modules[__name__] = iqmjx.train
