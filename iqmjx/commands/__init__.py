"""The commands: command line -> settings -> library -> printed result."""

import sys

try:
    import mujoco  # noqa: F401
except RuntimeError as error:  # it reads MUJOCO_GL while it is imported
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
