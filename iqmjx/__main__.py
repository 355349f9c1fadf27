"""The command `iqmjx`, and `python -m iqmjx`: `iqmjx train --env humanoid`.

No import here takes time: signals are answered from the first second on.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence

from iqmjx import __version__
from iqmjx.run import signals, terminal


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: a module of `iqmjx.commands`.

    Attributes:
        summary: what it does, in a line.
        saves: whether a stop is its own to answer: `main` is given the `Stop`.
    """

    summary: str
    saves: bool = False


COMMANDS = {
    "train": Command("Train an agent, or resume a run.", saves=True),
    "evaluate": Command("Play a policy and report its returns."),
    "play": Command("Show policies in MuJoCo's viewer, or write a video."),
    "export": Command("Write a policy as ONNX, StableHLO or NumPy."),
    "tasks": Command("List the tasks."),
    "experiment": Command("Run the experiments of a file and report.", saves=True),
    "report": Command("Draw curves and tables of the experiments so far."),
    "benchmark": Command("Measure the speed of training on this machine."),
    "tabular": Command("Check the paper's theory on small random MDPs."),
}
_HELP = ("-h", "--help", "help")


def main() -> None:
    """Runs the command that the command line names, or lists the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print(_overview())
    elif name == "--version":
        print(f"iqmjx {__version__}")
    elif name in COMMANDS:
        run(name, arguments)
    else:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else "iqmjx --help lists them"
        print(f"error: {name}: there is no such command; {hint}", file=sys.stderr)
        sys.exit(2)


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        name: one of COMMANDS.
        arguments: its command line; by default the process's.
    """
    command = COMMANDS[name]
    stop = signals.listen(idle_exit=0 if command.saves else None)
    terminal.keep_going()
    from iqmjx.commands import cli

    with cli.user_errors():  # --algo names one whose settings become flags
        module = importlib.import_module(f"iqmjx.commands.{name}")
    given = sys.argv[1:] if arguments is None else arguments
    cli.run(module, given, *[stop] * command.saves)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {each.summary}" for name, each in COMMANDS.items()]
    return "\n".join(
        [
            "iqmjx: IQ (Implicit Q-values) trained fast on MuJoCo.",
            "",
            *lines,
            "",
            "iqmjx COMMAND --help lists a command's settings; python -m iqmjx.COMMAND",
            "is the same command. A first run: iqmjx train --env hopper",
        ]
    )


if __name__ == "__main__":
    main()
