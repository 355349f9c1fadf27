"""Commands in one process, one after the other: seconds less for each.

    python -m tests.commands < COMMANDS

where COMMANDS is a list in JSON of [name, arguments]; prints a list of [exit code, what
it prints, its errors].
"""

import contextlib
import importlib
import io
import json
import subprocess
import sys

from absl import flags

from iqmjx.__main__ import COMMANDS
from iqmjx.commands import cli
from iqmjx.run.signals import Stop


def outcome(name: str, arguments: list[str]) -> tuple[int, str, str]:
    """A command in this process: its exit code, what it prints, and its errors."""
    command = importlib.import_module(f"iqmjx.commands.{name}")
    for values in (flags.FLAGS, command.FLAGS):
        for flag in values:
            values[flag].unparse()
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            cli.run(command, arguments, *[Stop()] * COMMANDS[name].saves)
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue(), said.getvalue()
    return 0, printed.getvalue(), said.getvalue()


def printed(name: str, arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it prints."""
    code, out, _ = outcome(name, arguments)
    return code, out


def outcomes(commands, **kwargs) -> list[subprocess.CompletedProcess]:
    """What becomes of commands, [name, arguments] each, in one new process.

    `kwargs` are those of subprocess.run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands"],
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        **kwargs,
    )
    assert done.returncode == 0
    return [
        subprocess.CompletedProcess(command, code, stderr=said)
        for command, (code, _, said) in zip(
            commands, json.loads(done.stdout), strict=True
        )
    ]


if __name__ == "__main__":
    print(json.dumps([outcome(*each) for each in json.load(sys.stdin)]))
