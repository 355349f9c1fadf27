"""An algorithm and a policy class from outside the package, by name alone."""

import json
import re
import subprocess
import sys

import jax
import pytest

from iqmjx import loop, presets
from iqmjx.config import Config
from tests import toys

MODULE = '''
import dataclasses
from typing import ClassVar

from iqmjx.agents import base, iq
from iqmjx.policies.gaussian import Gaussian


@dataclasses.dataclass(frozen=True)
class Settings(iq.Settings):
    boldness: float = dataclasses.field(default=0.25, metadata={"help": "How bold."})
    learning_rate: float = base.setting(1e-2, "A rate of its own.", above=0)
    steps_back: tuple[int, ...] = base.setting((1, 2), "Steps.", at_least=1)


class Bold(iq.ImplicitQ):
    """IQ, all of whose temperatures are multiplied by its boldness."""

    Settings = Settings

    @classmethod
    def from_config(cls, config, observation_size, action_size):
        agent = super().from_config(config, observation_size, action_size)
        warm = agent.temperature * config.algorithm.boldness
        return dataclasses.replace(agent, temperature=warm)


@dataclasses.dataclass(frozen=True)
class Taken:
    batch_size: int = 3


class Clash:
    """Its setting has the name of one that every run has."""

    Settings = Taken


@dataclasses.dataclass(frozen=True)
class Flagged:
    logdir: str = ""


class Hidden:
    """Its setting has the name of a flag of the command."""

    Settings = Flagged


@dataclasses.dataclass(frozen=True)
class Wide(Gaussian):
    """A Gaussian under another name."""
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "made_up.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("made_up", None)


def command(folder, *arguments):
    """A command in the folder, from which alone the module can be imported."""
    return subprocess.run(
        [sys.executable, "-m", "iqmjx.train", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_it_begins_with_its_own_defaults(outside, preset):
    given = {"env": "hopper", "algo": "made_up:Bold", "boldness": 0.5}
    resolved = presets.resolve(given, preset)
    theirs = resolved.config.algorithm
    assert resolved.config.algo == "made_up:Bold"
    assert (theirs.boldness, theirs.learning_rate) == (0.5, 1e-2)
    assert (theirs.discounting, theirs.temperature) == (0.99, 0.01)
    assert resolved.sources["learning_rate"] == "default"
    assert resolved.sources["num_envs"] == f"preset {preset}"
    assert Config.of(resolved.config.flat()) == resolved.config
    hash(resolved.config)
    with pytest.raises(ValueError, match="--boldness 1: --algo iq does not have it"):
        presets.resolve({"boldness": 1}, preset)


def test_it_trains_with_a_policy_class_from_outside(outside):
    config = toys.config(
        algo="made_up:Bold", policy="made_up:Wide", boldness=0.5, temperature=0.3
    )
    setup = loop.make_setup(config)
    assert type(setup.agent).__name__ == "Bold" and setup.agent.temperature == 0.15
    assert type(setup.agent.policy).__name__ == "Wide"
    state = loop.init(setup, jax.random.key(0))
    before = jax.tree.map(lambda leaf: leaf.copy(), state.learner.params)
    for _ in range(2):
        state, metrics = loop.train_chunk(setup, state)
    assert metrics.updates > 0 and jax.numpy.isfinite(metrics.learning.loss)
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.learner.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("algo", "message"),
    [
        ("made_up:Clash", "made_up:Clash: .*that every run has: batch_size"),
        ("made_up:MODULE", "module made_up has no MODULE"),
        ("made_up:Wide", "made_up:Wide: the class needs a dataclass named Settings"),
    ],
)
def test_algorithms_that_cannot_be_are_refused(outside, algo, message):
    with pytest.raises(ValueError, match=message):
        presets.resolve({"algo": algo}, "cpu")


def test_its_settings_are_flags_and_are_kept_in_the_run_folder(outside):
    small = {name: v for name, v in toys.SMALL.items() if name != "hidden_sizes"}
    flags = [f"--{name}={value}" for name, value in small.items()]
    flags += ["--hidden_sizes=16", "--boldness", "0.5", "--steps_back=3,4"]
    flags += ["--logdir", "run", "--algo", "made_up:Bold", "--num_timesteps=32"]
    result = command(outside, *flags)
    assert result.returncode == 0, result.stderr
    saved = json.loads((outside / "run/config.json").read_text())["config"]
    assert saved["algo"] == "made_up:Bold"
    assert saved["algorithm"]["boldness"] == 0.5
    assert saved["algorithm"]["steps_back"] == [3, 4]
    more = command(outside, "--resume", "--logdir=run", "--num_timesteps=64")
    assert more.returncode == 0, more.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algo=made_up:Bold", "--boldness=much"], "flag --boldness=much"),
        (["--algo=made_up:Bold", "--steps_back=0"], "--steps_back 0: .*at least 1"),
        (["--algo=sac", "--boldness=1"], "boldness"),
        (["--algo=made_up:Hidden"], "made_up:Hidden: the command has a flag logdir"),
        (["--algo=made_down:Bold", "--boldness=1"], "no module made_down"),
    ],
)
def test_flags_that_do_not_fit_end_in_one_line(outside, flags, message):
    result = command(outside, *flags)
    (line,) = result.stderr.strip().splitlines()
    assert result.returncode == 2 and line.startswith("error: ")
    assert re.search(message, line), line


def test_the_script_of_an_installed_command_finds_the_working_directory(outside):
    """It is not on such a script's path, as it is with `python -m`."""
    script = outside / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from iqmjx.commands import cli, train\n"
        "from absl import flags\n"
        "cli.run(lambda: print(flags.FLAGS.boldness))\n"
    )
    arguments = ["--boldness=0.5", "--algo=made_up:Bold"]
    result = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=outside,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0.5"
