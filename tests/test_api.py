"""`iqmjx.train`: as the command, and as a guest in somebody's program."""

import asyncio
import importlib
import logging
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import iqmjx
from iqmjx import api, envs
from iqmjx.envs import Env
from iqmjx.envs.locomotion.hopper import Hopper
from iqmjx.errors import UsageError
from iqmjx.run import launching, metrics, run_folder, saved_policy, trainer
from tests import test_metrics, toys

SETTINGS = {name: value for name, value in toys.SMALL.items() if name != "env"}
SETTINGS |= {"preset": "cpu", "num_evals": 3, "progress": False}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The run that `SETTINGS` ask for, as the library makes it without the function."""
    folder = tmp_path_factory.mktemp("expected")
    assert trainer.train(toys.config(num_evals=3), folder, quiet=True)
    return folder


def curve(folder):
    rows = [row for row in metrics.read(folder) if "eval/episode_reward" in row]
    return [(row["env_steps"], row["eval/episode_reward"]) for row in rows]


def test_a_run_that_a_callback_stops_goes_on_in_an_event_loop(tmp_path, capsys):
    """As a notebook has one; in a program that computes in double precision."""
    seen = []

    def stop_at_the_second(evaluation):
        seen.append(evaluation)
        return np.bool_(len(seen) == 2)

    logdir, seed = tmp_path / "run", np.int64(0)
    first = iqmjx.train(
        Hopper("native"),
        logdir=str(logdir),
        on_evaluation=stop_at_the_second,
        seed=seed,
        **SETTINGS,
    )
    assert not first.finished and first.folder == logdir
    assert first.policy.env_steps == 96 and first.config.env == "hopper"

    async def go_on():
        with jax.enable_x64(True):
            return iqmjx.train(
                logdir=logdir, resume=True, progress=False, on_evaluation=seen.append
            )

    result = asyncio.run(go_on())
    assert result.finished and result.config == first.config
    heard = [(each.env_steps, each.row["eval/episode_reward"]) for each in seen]
    evaluations = result.evaluations
    pairs = zip(evaluations.env_steps, evaluations.returns, strict=True)
    assert heard == list(pairs) == curve(logdir)
    assert evaluations.env_steps.tolist() == [0, 96, 192]
    played = seen[-1].policy
    assert played.env_steps == 192 and played.config == result.config
    actors = played.saved.actor, result.policy.saved.actor
    jax.tree.map(np.testing.assert_array_equal, *actors)
    assert (np.abs(result.policy(np.zeros((5, 11)))) <= 1).all()
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_that_ctrl_c_stops_goes_on_in_a_thread(tmp_path, expected, capfd):
    """The interrupted call raises; in the end all is as without an interruption."""

    def interrupt(evaluation):
        if evaluation.env_steps == 96:
            signal.raise_signal(signal.SIGINT)

    logdir = tmp_path / "run"
    settings = SETTINGS | {"progress": True}
    with pytest.raises(KeyboardInterrupt):
        iqmjx.train("hopper", logdir=logdir, on_evaluation=interrupt, **settings)
    said, _ = capfd.readouterr()
    assert f"run folder: {logdir}" in said and "stopped at 96 env steps" in said
    results = []

    def go_on():
        with jax.enable_x64(True):
            results.append(iqmjx.train(logdir=logdir, resume=True, progress=False))

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    (result,) = results
    assert curve(logdir) == curve(expected)
    wanted = saved_policy.load(expected / "policy")
    assert result.policy.env_steps == wanted.env_steps == 192
    actors = result.policy.saved.actor, wanted.actor
    jax.tree.map(np.testing.assert_array_equal, *actors)
    assert capfd.readouterr() == ("", "")  # Orbax's log among them


@pytest.mark.slow
def test_what_a_callback_raises_ends_a_run_that_can_be_begun_again(tmp_path):
    logdir = tmp_path / "run"
    with pytest.raises(TypeError, match="on_evaluation returned 'yes'; return True"):
        iqmjx.train("hopper", logdir=logdir, on_evaluation=lambda _: "yes", **SETTINGS)
    handler = logging.getLogger("absl").filters
    assert not handler  # ours is gone
    with pytest.warns(UserWarning, match="Failing cannot be written: No space left"):
        result = iqmjx.train(
            logdir=logdir,
            resume=True,
            progress=False,
            num_evals=0,
            num_timesteps=64,
            loggers=[f"{test_metrics.__name__}:Failing"],
        )
    assert result.finished and not len(result.evaluations.returns)


@pytest.mark.slow
def test_several_seeds_have_a_result_each(tmp_path):
    seen = []
    settings = SETTINGS | {"num_evals": 1, "num_timesteps": 64}
    result = iqmjx.train(
        "hopper",
        logdir=tmp_path / "a",
        num_seeds=2,
        on_evaluation=seen.append,
        **settings,
    )
    (evaluation,) = seen
    assert [seed.config.seed for seed in result.seeds] == [0, 1]
    assert [policy.config.seed for policy in evaluation.policies] == [0, 1]
    for seed, row in zip(result.seeds, evaluation.rows, strict=True):
        assert seed.folder == tmp_path / "a" / f"seed{seed.config.seed}"
        assert seed.evaluations.returns.tolist() == [row["eval/episode_reward"]]
        assert seed.policy.config == seed.config
    assert result.policy is result.seeds[0].policy
    returns = [seed.evaluations.returns[0] for seed in result.seeds]
    assert returns[0] != returns[1]


def test_a_curve_has_nan_where_no_episode_counts(tmp_path):
    log = metrics.MetricsLog(tmp_path, toys.config(loggers=()))
    names = "episode_reward", "episode_reward_std", "avg_episode_length"
    names += "sampled_episode_reward", "sampled_episode_reward_std"
    log.write(32, {"training/loss": 1.0})
    log.write(64, {f"eval/{name}": float(i) for i, name in enumerate(names)})
    log.write(96, {f"eval/{name}": float("nan") for name in names})
    log.close()
    found = api.Seed(toys.config(), tmp_path).evaluations
    assert found.env_steps.tolist() == [64, 96] and found.env_steps.dtype == np.int64
    columns = found.returns, found.returns_std, found.lengths
    columns += found.sampled_returns, found.sampled_returns_std
    assert [column[0] for column in columns] == [0, 1, 2, 3, 4]
    assert all(np.isnan(column[1]) for column in columns)


class Heavy(Hopper):
    """A task with an argument of its own."""

    def __init__(self, *args, gravity=-9.81, **kwargs):
        self.gravity = gravity
        super().__init__(*args, **kwargs)

    def spec(self):
        spec = super().spec()
        spec.option.gravity[2] = self.gravity
        return spec


def test_a_task_object_keeps_its_arguments_for_any_number_of_worlds(tmp_path):
    task = Heavy("native", gravity=-20.0)
    assert task.for_worlds(3).physics.model.opt.gravity[2] == -20
    given = api._of_task(task, {})
    assert given == {"env": "tests.test_api:Heavy", "physics": "native"}
    given |= {"num_timesteps": 64, "num_shards": 1}
    request = launching.Request(given, "cpu", tmp_path / "run", env=task)
    with launching.prepared(request) as run:
        assert run.setup.env.physics.model.opt.gravity[2] == -20
        assert run_folder.load(run.folder).config.env == "tests.test_api:Heavy"


class Local(Env):
    """Not at the top level, as far as its name says."""

    name = "tests.test_api:nowhere.<locals>.Local"
    spec = Hopper.spec
    frame_skip = Hopper.frame_skip
    initial = observe = judge = None


MISTAKES = [
    (lambda: ("hopper", {"num_env": 3}), "--num_env 3: .*did you mean num_envs"),
    (lambda: ("humanoyd", {}), "--env humanoyd: .*did you mean humanoid"),
    (lambda: (Hopper, {}), "give a task's name, or an iqmjx.envs.Env"),
    (lambda: (3, {}), "--env 3: give a task's name"),
    (lambda: (Local("native"), {}), "Local: its class must be at the top level"),
    (
        lambda: (Hopper("native"), {"physics": "mjx"}),
        "--physics mjx: the task object was built on native",
    ),
    (lambda: ("hopper", {"preset": "tpu"}), "--preset tpu: choose one of"),
    (lambda: (None, {"resume": True}), "--resume: name the run's folder"),
    (
        lambda: ("hopper", {"loggers": "tensorboard"}),
        "--loggers 'tensorboard': give",
    ),
]


@pytest.mark.parametrize("index", range(len(MISTAKES)))
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    tmp_path, monkeypatch, index
):
    given, told = MISTAKES[index]
    monkeypatch.chdir(tmp_path)
    env, options = given()
    with pytest.raises(UsageError, match=told) as error:
        iqmjx.train(env, **options)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(
        UsageError, match=f"--logdir {tmp_path}: exists and is not empty"
    ):
        iqmjx.train("hopper", logdir=tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_mjx_is_refused_where_it_would_wait_forever(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "2")
    with pytest.raises(
        UsageError, match=r"--physics mjx: with 2 threads .*PJRT_NPROC=16"
    ):
        launching._check_threads("mjx")
    launching._check_threads("native")
    monkeypatch.setenv("PJRT_NPROC", "16")
    launching._check_threads("mjx")


def test_importing_the_module_of_the_command_leaves_the_function():
    assert iqmjx.train is api.train
    assert importlib.import_module("iqmjx.train") is api.train
    assert iqmjx.train is api.train
    assert "train" in dir(iqmjx)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        iqmjx.trian  # noqa: B018


def test_importing_the_package_imports_nothing_that_takes_time():
    script = (
        "import sys, iqmjx; sys.exit(any(m in sys.modules for m in {'jax', 'numpy'}))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert envs.REGISTRY  # and here both are
