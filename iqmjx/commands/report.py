"""Reports learning curves: python -m iqmjx.report --curves FOLDER.

Works from what curves there are. The figures show return against env steps and against
time, a panel for each task, a line for each variant. One table gives the final scores
in Gymnasium; another what they say together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from iqmjx import command_line
from iqmjx.commands import cli
from iqmjx.errors import UsageError
from iqmjx.experiments import report

FLAGS = flags.FlagValues()
POSITIONAL = "curves"
_CURVES = command_line.path(
    FLAGS, "curves", None, "Where curves are: an experiment's curves/."
)
_OUT = command_line.path(
    FLAGS,
    "out",
    None,
    "Files to write, without their endings (default: report, beside the curves).",
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        if _CURVES.value is None:
            raise UsageError("--curves: name a folder of curves")
        folder = Path(_CURVES.value)
        tell(report.write(folder, Path(_OUT.value or folder.parent / "report")))


def tell(written: report.Report) -> None:
    """Prints a report's tables, and where it is."""
    for line in written.problems:
        print(f"warning: {line}", file=sys.stderr)
    print(written.text)
    print(", ".join(map(str, written.files)))
