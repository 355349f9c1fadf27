"""An algorithm, a policy class and a logger from outside the package, by name."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from iqmjx import acting, loop, presets
from iqmjx.config import Config
from iqmjx.run import metrics, run_folder, saved_policy, trainer
from tests import toys

MODULE = '''
import dataclasses
import json
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


class Clash(iq.ImplicitQ):
    """Its setting has the name of one that every run has."""

    Settings = Taken


class Unmade:
    """It has settings, and cannot be made of them."""

    Settings = Settings


@dataclasses.dataclass(frozen=True)
class Flagged:
    logdir: str = ""


class Hidden(iq.ImplicitQ):
    """Its setting has the name of a flag of the command."""

    Settings = Flagged


@dataclasses.dataclass(frozen=True)
class Wide(Gaussian):
    """A Gaussian under another name."""


class Mute:
    """No logger: its write takes no row."""

    def __init__(self, folder, config, resume_at):
        pass

    def write(self, env_steps):
        pass

    def close(self):
        pass


class Diary:
    """A logger: a file of its own, with what it was told."""

    def __init__(self, folder, config, resume_at):
        self._file = (folder / "diary.jsonl").open("a")
        about = {"opened": resume_at, "boldness": config.algorithm.boldness}
        self._file.write(json.dumps(about) + "\\n")

    def write(self, env_steps, row):
        self._file.write(json.dumps({"env_steps": env_steps, **row}) + "\\n")

    def close(self):
        self._file.write(json.dumps("closed"))
        self._file.write("\\n")
        self._file.close()
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


def bold(**changes):
    given = {"boldness": 0.5, "temperature": 0.3, "policy": "made_up:Wide"}
    return toys.config(algo="made_up:Bold", **given | changes)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def finite(rows):
    """What a logger is given: rows without what is not a number."""
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


@pytest.mark.slow
def test_it_trains_with_a_policy_class_from_outside(outside):
    setup = loop.make_setup(bold())
    assert type(setup.agent).__name__ == "Bold" and setup.agent.temperature == 0.15
    assert type(setup.agent.policy).__name__ == "Wide"
    state, _ = loop.warm_up(setup, loop.init(setup))
    before = jax.tree.map(lambda leaf: leaf.copy(), state.learner.params)
    for _ in range(2):
        state, (_, learning) = loop.train_chunk(setup, state)
    assert (state.learner.updates == 2 * 4 * 2).all()
    assert jax.numpy.isfinite(learning.loss).all()
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.learner.params)
    assert all(jax.tree.leaves(moved))


def test_a_run_of_it_is_logged_outside_and_leaves_a_policy_to_load(outside):
    config = bold(loggers=("made_up:Diary",), num_timesteps=64)
    folder = outside / "run"
    run_folder.create(folder, presets.Resolved(config, "cpu", {}))
    assert trainer.train(config, folder)
    opened, *rows, closed = rows_of(folder / "diary.jsonl")
    assert opened == {"opened": None, "boldness": 0.5} and closed == "closed"
    assert rows == finite(metrics.read(folder))
    assert {row["env_steps"] for row in rows} == {0, 32, 64}
    saved = saved_policy.load(folder / saved_policy.NEWEST)
    # As the run's, but for the shards that its devices had it choose.
    assert dataclasses.replace(saved.config, num_shards=0) == config
    assert type(saved.policy).__name__ == "Wide" and saved.env_steps == 64
    np.testing.assert_allclose(saved.actor.temperature, 0.15, rtol=1e-6)
    moved = [leaf.std() > 0 for leaf in jax.tree.leaves(saved.actor.params)]
    assert any(moved)
    obs = jax.random.normal(jax.random.key(0), (5, 11))
    action = acting.act_greedily(saved.policy, saved.actor, obs)
    assert action.shape == (5, 3) and jax.numpy.isfinite(action).all()


@pytest.mark.parametrize("part", [{"algo": "made_up:Bold"}, {"policy": "made_up:Wide"}])
def test_a_policy_whose_class_is_gone_says_so_once(outside, part):
    """Its older steps need the same class; none of them is damaged."""
    config = toys.config(**part)
    setup = loop.make_setup(config)
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: np.asarray(leaf[0]), actors)
    store = saved_policy.PolicyStore(outside / "run", config, (11, 3))
    for env_steps in (1, 2):
        store.save(env_steps, actor)
    store.close()
    (outside / "made_up.py").unlink()
    sys.modules.pop("made_up")
    with pytest.raises(
        ValueError, match="there is no module made_up; it must"
    ) as error:
        saved_policy.load(outside / "run" / saved_policy.NEWEST)
    (name, value), *_ = part.items()
    assert str(error.value).startswith(f"the policy of step 2: {name} {value}: ")
    assert str(error.value).count("there is no module") == 1


@pytest.mark.parametrize(
    ("algo", "message"),
    [
        ("made_up:Clash", "made_up:Clash: .*that every run has: batch_size"),
        ("made_up:MODULE", "made_up has no MODULE"),
        ("made_up:Unmade", "made_up:Unmade: .* a method from_config.config, obs"),
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
    flags += ["--logdir", "run", "--algo", "made_up:Bold", "--num_timesteps=64"]
    flags += ["--loggers", "made_up:Diary"]
    result = command(outside, *flags)
    assert result.returncode == 0, result.stderr
    saved = json.loads((outside / "run/config.json").read_text())["config"]
    assert saved["algo"] == "made_up:Bold"
    assert saved["algorithm"]["boldness"] == 0.5
    assert saved["algorithm"]["steps_back"] == [3, 4]
    more = command(outside, "--resume", "--logdir=run", "--num_timesteps=96")
    assert more.returncode == 0, more.stderr
    told = rows_of(outside / "run/diary.jsonl")
    opened = [row["opened"] for row in told if "opened" in row]
    assert opened == [None, 64] and told.count("closed") == 2
    rows = [row for row in told if "env_steps" in row]
    assert rows == finite(metrics.read(outside / "run"))
    assert rows[-1]["env_steps"] == 96


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--algo=made_up:Bold", "--boldness=much"],
            "--boldness much: give a number",
        ),
        (["--algo=made_up:Bold", "--steps_back=0"], "--steps_back 0: .*at least 1"),
        (["--algo=sac", "--boldness=1"], "boldness"),
        (["--num_envs=1e-3"], "--num_envs 1e-3: give a whole number of at least 1"),
        (["--env=os:getcwd"], "--env os:getcwd: it is no task: it has no reset"),
        (
            ["--env=builtins:dict"],
            "--env builtins:dict: it is no task: it has no reset",
        ),
        (["--env=os.path:join"], "--env os.path:join: it is no task: called without"),
        (["--loggers=made_up:Bold"], "--loggers made_up:Bold: .* a method __init__"),
        (["--loggers=made_up:Mute"], "--loggers made_up:Mute: .* write.env_steps, row"),
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
        "import sys\n"
        "from iqmjx.commands import cli, train\n"
        "train.main = lambda: print(train.FLAGS.boldness)\n"
        "cli.run(train, sys.argv[1:])\n"
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
