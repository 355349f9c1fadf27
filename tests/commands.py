"""Commands in one process, one after the other: seconds less for each.

    python -m tests.commands < COMMANDS

where COMMANDS is a list in JSON of [name, arguments]; prints a list of [exit code, what
it says on stderr].
"""

import contextlib
import io
import json
import subprocess
import sys

from absl import flags

from iqmjx.commands import benchmark, cli, evaluate, train

COMMANDS = {"train": train, "evaluate": evaluate, "benchmark": benchmark}


def outcome(name: str, arguments: list[str]) -> tuple[int, str]:
    """The exit code of iqmjx.<name> in this process, and what it says on stderr."""
    command = COMMANDS[name]
    for values in (flags.FLAGS, command.FLAGS):
        for flag in values:
            values[flag].unparse()
    sys.argv = [name, *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.run(command.main, command.FLAGS)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    raise AssertionError("a command ends by exiting")


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
        for command, (code, said) in zip(commands, json.loads(done.stdout), strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps([outcome(*each) for each in json.load(sys.stdin)]))
