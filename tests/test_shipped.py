"""The policies under checkpoints/: small, loadable, and as good as their cards say."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import iqmjx
from iqmjx.run import gymnasium_play
from launch import ship_policy

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SHIPPED = sorted(path.parent for path in CHECKPOINTS.glob(f"*/{ship_policy.CARD}"))
LARGEST = 2_000_000  # bytes


def card(folder):
    return json.loads((folder / ship_policy.CARD).read_text())


def named(folder):
    return folder.name


def test_policies_are_shipped():
    assert SHIPPED


@pytest.mark.parametrize("folder", SHIPPED, ids=named)
def test_a_shipped_policy_is_small_and_acts(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < LARGEST
    policy, told = iqmjx.load(folder), card(folder)
    assert policy.env_steps == told["env_steps"]
    task = gymnasium_play.twin(policy.env)
    assert task.gymnasium_id == told["evaluation"]["env"]
    obs = np.zeros(policy.observation_size, np.float32)
    action = policy(obs)
    assert (policy.lowest <= action).all() and (action <= policy.highest).all()
    assert told["commit"] and told["command"].startswith("iqmjx train ")


def test_the_table_is_that_of_the_cards(tmp_path):
    for folder in SHIPPED:
        (tmp_path / folder.name).mkdir()
        shutil.copy(folder / ship_policy.CARD, tmp_path / folder.name)
    readme = CHECKPOINTS / "README.md"
    shutil.copy(readme, tmp_path)
    ship_policy.write_table(tmp_path)
    assert (tmp_path / "README.md").read_text() == readme.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHIPPED, ids=named)
def test_a_shipped_policy_scores_what_its_card_says(folder):
    told = card(folder)["evaluation"]
    played = ship_policy.scores(folder, told["episodes"])
    standard_error = told["std"] / math.sqrt(told["episodes"])
    assert abs(played["mean"] - told["mean"]) <= standard_error
    if "success" in told:
        assert abs(played["success"] - told["success"]) <= 0.05
