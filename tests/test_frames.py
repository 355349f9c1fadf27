import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iqmjx import presets
from iqmjx.run import run_folder, trainer
from tests import test_cli, toys

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_frames_are_of_each_episode_from_its_start_to_its_end(tmp_path):
    run, out = tmp_path / "run", tmp_path / "frames.png"
    resolved = presets.resolve(toys.SMALL, "cpu")
    run_folder.create(run, resolved)
    trainer.train(resolved.config, run)
    told = subprocess.run(
        [sys.executable, ROOT / "launch/frames.py", "--checkpoint", run, "--out", out]
        + ["--episodes", "2", "--frames", "3"],
        env=test_cli.environment(),
        capture_output=True,
        text=True,
    )
    if "MuJoCo cannot render" in told.stderr:
        pytest.skip("no GL library")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("return") == 2
    picture = np.asarray(Image.open(out).convert("RGB"), int)
    assert picture.shape == (400, 600, 3)
    first, middle, last = picture.reshape(2, 200, 3, 200, 3).transpose(2, 0, 1, 3, 4)
    assert abs(first - middle).max() > 50 and abs(middle - last).max() > 50
