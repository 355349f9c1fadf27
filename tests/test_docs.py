"""README and docs: links lead somewhere, commands and code do what they show."""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iqmjx import command_line
from iqmjx.__main__ import COMMANDS
from tests import test_cli

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "checkpoints/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = (
    "python3 -m venv",
    "pip install",
    "sbatch",
    "kubectl",
    "apt ",
    "tensorboard ",
)
"""Installations and clusters, which have tests of their own, and a server."""
TRAINING = 100.0
"""Seconds after which a training is stopped, if it lasts that long."""


def named(path):
    return str(path.relative_to(ROOT))


def commands(page):
    """The commands of a page's blocks, each as a list of words."""
    for language, text in BLOCK.findall(page.read_text()):
        if language in ("", "sh") and not text.lstrip().startswith(("@", "for ")):
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith(ELSEWHERE):
                    yield shlex.split(line, comments=True)


def in_process(words):
    """The name and arguments of a command of iqmjx; None where it is another."""
    if words[0] == "iqmjx":
        return words[1:2], words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("iqmjx."):
        return [words[2].removeprefix("iqmjx.")], words[3:]
    return None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_have_the_flags_that_are_shown(page):
    for words in commands(page):
        found = in_process([word for word in words if word != "&"])
        if found is None or not found[0]:
            continue
        (name,), arguments = found
        assert name in COMMANDS, words
        module = importlib.import_module(f"iqmjx.commands.{name}")
        for flag in module.FLAGS:  # which other tests have parsed
            module.FLAGS[flag].unparse()
        if "--help" not in arguments:
            positional = getattr(module, "POSITIONAL", None)
            command_line.parse(module.FLAGS, arguments, positional)


PRELUDE = """
import numpy as np
obs, step = np.zeros((2, 348), np.float32), 0
"""


@pytest.fixture(scope="module")
def humanoid(tmp_path_factory):
    """A folder with a run of Humanoid in checkpoints/humanoid, and its exports."""
    folder = tmp_path_factory.mktemp("humanoid")
    settings = [s for s in test_cli.SETTINGS if "--env" not in s]
    run_folder = ["--env", "humanoid", "--logdir", "checkpoints/humanoid"]
    trained = test_cli.command(
        "train", *settings, *run_folder, cwd=folder, env=test_cli.environment()
    )
    assert trained.returncode == 0, trained.stderr
    for name, suffix in (
        ("onnx", "onnx"),
        ("numpy", "npz"),
        ("stablehlo", "stablehlo"),
    ):
        words = ["iqmjx", "export", "checkpoints/humanoid", "--format", name]
        run_command([*words, "--out", f"humanoid.{suffix}"], folder)
    return folder


def run_command(words, cwd):
    """Runs a command as printed; a training is stopped after a while, and saved."""
    program = [sys.executable, "-m", "iqmjx"] if words[0] == "iqmjx" else words[:1]
    program = [sys.executable] if words[0] == "python" else program
    process = subprocess.Popen(
        [*program, *words[1:]],
        cwd=cwd,
        env=test_cli.environment() | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "train" in " ".join(words[:3]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TRAINING)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, (words, output)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_work_as_printed(page, tmp_path, humanoid):
    """In their order, in an empty folder; trainings for as long as they are let."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    for file in page.parent.glob("cartpole.*"):
        shutil.copy(file, tmp_path)
    if "RUN" in page.read_text() or "checkpoints/humanoid" in page.read_text():
        shutil.copytree(humanoid / "checkpoints", tmp_path / "checkpoints")
        (tmp_path / "RUN").symlink_to(tmp_path / "checkpoints" / "humanoid")
    for words in commands(page):
        run_command(words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_works_as_printed(page, tmp_path, humanoid):
    shutil.copytree(humanoid, tmp_path / "here")
    for language, code in BLOCK.findall(page.read_text()):
        if language == "python" and "mujoco.viewer" not in code:
            done = subprocess.run(
                [sys.executable, "-c", PRELUDE + code],
                cwd=tmp_path / "here",
                env=test_cli.environment(),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
