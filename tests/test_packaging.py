"""What is installed: one import name, all of it, and nothing else."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_cli import SETTINGS

ROOT = Path(__file__).parents[1]


def test_every_folder_of_code_is_a_package_that_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = listed["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "iqmjx").rglob("*.py")}
    folders |= {
        ROOT / "iqmjx" / path.parent.relative_to(ROOT)
        for path in (ROOT / "envs").rglob("*.py")
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(names)


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_beside_another_package_called_envs(tmp_path):
    """It brings iqmjx alone, and imports nothing of the working directory."""
    run = {"check": True, "cwd": tmp_path}
    pip = [sys.executable, "-m", "pip"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], **run)
    (wheel,) = wheels.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"iqmjx"}
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], **run)

    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    run["env"] = os.environ | {"PYTHONPATH": str(site)}
    where = "import iqmjx.envs; print(iqmjx.envs.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], stdout=subprocess.PIPE, text=True, **run
    )
    assert found.stdout.startswith(str(site))
    for command in (
        ["iqmjx.train", *SETTINGS, "--logdir", "run"],
        ["iqmjx.evaluate", "--checkpoint", "run", "--episodes", "1"],
    ):
        subprocess.run([sys.executable, "-m", *command], **run)
