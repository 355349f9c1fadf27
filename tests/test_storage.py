"""Runs on disks that fill up or cannot be written, mounted for the purpose."""

import os
import subprocess

import pytest

from iqmjx.run import metrics
from tests.test_cli import SETTINGS, assert_refused, command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
]


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of 20 MB; returns its folder, and what mounts it otherwise."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        subprocess.run(["mount", *options, str(place)], check=True)

    mount(["-t", "tmpfs", "-o", "size=20m", "tmpfs"])
    yield place, lambda options: mount(["-o", f"remount,{options}"])
    subprocess.run(["umount", str(place)], check=True)


def names(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def size(folder):
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def test_a_disk_that_fills_up(disk):
    """It has room for half a state more."""
    folder, remount = disk[0] / "run", disk[1]
    short = [s for s in SETTINGS if "num_timesteps" not in s]
    flags = [*short, "--num_checkpoints=6", "--num_evals=0", "--logdir", folder]
    assert command("train", *flags, "--num_timesteps=96").returncode == 0
    free = os.statvfs(disk[0]).f_bavail * os.statvfs(disk[0]).f_bsize
    room = size(folder / "checkpoints" / "96") + size(folder / "policy" / "96")
    (disk[0] / "filler").write_bytes(bytes(free - room // 2))
    more = ["--resume", "--logdir", folder, "--num_timesteps=192"]
    result = command("train", *more)
    assert result.returncode == 1, result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert (
        line.startswith("error: the state cannot be saved: ")
        and "too little room" in line
    )
    assert "warning: the state cannot be saved" in result.stdout
    saved = names(folder / "checkpoints")
    assert saved == [64, 96] and "partial" not in str(list(folder.rglob("*")))
    remount("size=40m")
    again = command("train", *more)
    assert again.returncode == 0, again.stderr
    assert "resuming at 96 env steps" in again.stdout
    assert names(folder / "checkpoints")[-1] == 192
    steps = [row["env_steps"] for row in metrics.read(folder)]
    assert steps == [32, 64, 96, 128, 160, 192]


def test_a_disk_that_is_full_from_the_start(disk):
    filler = disk[0] / "filler"
    with filler.open("wb") as file, pytest.raises(OSError):
        while True:
            file.write(bytes(2**16))
    result = command("train", *SETTINGS, "--logdir", disk[0] / "run")
    assert_refused(result, "--logdir", "No space left on device")


def test_a_disk_that_is_read_only(disk):
    folder, remount = disk
    assert command("train", *SETTINGS, "--logdir", folder / "run").returncode == 0
    remount("ro")
    for arguments in (
        [*SETTINGS, "--logdir", folder / "other"],
        ["--resume", "--num_timesteps", 224, "--logdir", folder / "run"],
    ):
        result = command("train", *arguments)
        assert_refused(result, "--logdir", "Read-only file system")
    played = command("evaluate", "--checkpoint", folder / "run", "--episodes", 1)
    assert played.returncode == 0, played.stderr
