"""Experiments: what a file asks for, and that a command makes it, once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iqmjx.envs import REGISTRY
from iqmjx.envs.physics import native
from iqmjx.errors import UsageError
from iqmjx.experiments import plan, runner, search
from tests import test_cli
from tests.test_extensions import MODULE

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "launch/experiments").glob("*.toml"))
TINY = """
title = "Tiny"
tasks = ["hopper", "Ant-v5"]
random = true

[variants]
"IQ" = "--algo iq"
"M-IQ, 3 bins" = "--algo m_iq --num_bins 3 --num_timesteps 300"

[scales.large]
seeds = [3, 5]
episodes = 4
flags = "--num_envs 8 --chunk_steps 16 --num_timesteps 512 --min_replay_size 64"
tasks = { hopper = "--num_timesteps 700" }

[scales.small]
seeds = [1]
episodes = 3
variants = ["IQ"]
flags = '''
  --num_timesteps 512 --num_envs 8 --chunk_steps 16 --batch_size 16 --num_evals 2
  --grad_updates_per_step 1 --min_replay_size 64 --max_replay_size 512
  --exploration_steps 0 --hidden_sizes 16 --num_eval_envs 2 --num_checkpoints 2
'''
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_file_s_runs(tiny):
    experiment = plan.load(tiny, "large")
    assert experiment.title == "Tiny"
    assert experiment.variants == ("IQ", "M-IQ, 3 bins", "random")
    runs = {run.name: run for run in experiment.runs}
    trained = [
        f"{task}-{variant}-seed{seed}"
        for seed in (3, 5)
        for task in ("hopper", "ant")
        for variant in ("iq", "m-iq-3-bins")
    ]
    at_random = ["hopper-random-seed3", "ant-random-seed3"]
    assert sorted(runs) == sorted(trained + at_random)
    # The last to say so wins: scale, task, variant. In chunks of 128, after 64.
    steps = {name: runs[name].env_steps for name in trained[:4]}
    assert list(steps.values()) == [704, 320, 576, 320]
    run = runs["ant-m-iq-3-bins-seed5"]
    assert (run.task, run.seed, run.episodes) == ("ant", 5, 4)
    assert run.arguments[:4] == ("--env", "ant", "--seed", "5")
    assert run.arguments[-2:] == ("--num_timesteps", "300")
    assert plan.load(tiny, "small").variants == ("IQ", "random")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title =", "titel =", ["titel: it can have title"]),
        ('title = "Tiny"', "", ["title: give a text"]),
        ("seeds = [3, 5]", "seeds = 3", ["scales.seeds: give a list"]),
        ("seeds = [3, 5]", "seeds = []", ["scales.seeds: give a list"]),
        ("seeds = [3, 5]", "seeds = [-1]", ["seeds -1: give whole numbers"]),
        ("seeds = [3, 5]", "seeds = [3, 3]", ["same name"]),
        ("episodes = 4", "episodes = 0", ["episodes 0: give at least 1"]),
        ('"IQ" =', '"m-iq, 3 bins" =', ["same name"]),
        ('"Ant-v5"', '"Ant-v9"', ["Ant-v9"]),
        ('"Ant-v5"', '"tests.toys:Commanded"', ["tests.toys:Commanded", "Gymnasium"]),
        ("--algo iq", "--algo dqn", ["IQ on hopper: --algo dqn"]),
        ("--num_bins 3", "--num_bin 3", ["M-IQ, 3 bins on hopper:", "num_bin"]),
        ("--num_bins 3", "bins", ["unexpected argument 'bins'"]),
        ("--num_envs 8", "--num_envs 0", ["--num_envs 0: give"]),
        ("--num_envs 8", "--num_seeds 2", ["--num_seeds: seeds are named"]),
        ("[variants]", "[variants", ["cannot be read"]),
    ],
)
def test_what_a_file_cannot_say_is_told_with_its_name(tiny, old, new, words):
    assert old in TINY
    tiny.write_text(TINY.replace(old, new, 1))
    with pytest.raises(UsageError) as told:
        plan.load(tiny, "large")
    for word in (str(tiny), *words):
        assert word in str(told.value)


def test_a_variant_s_algorithm_has_its_own_settings(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bolder.py").write_text(MODULE)
    with_own = '"--algo bolder:Bold --boldness 0.5"'
    tiny.write_text(TINY.replace('"--algo iq"', with_own))
    run = plan.load(tiny, "small").runs[0]
    assert run.arguments[-2:] == ("--boldness", "0.5") and run.env_steps == 576
    tiny.write_text(TINY.replace('"--algo iq"', with_own.replace("boldness", "bold")))
    with pytest.raises(UsageError, match=r"IQ on hopper: --bold: there is no"):
        plan.load(tiny, "small")


def test_scales_and_variants_that_are_not_there_are_told(tiny, tmp_path):
    with pytest.raises(UsageError, match="--scale huge: choose one of large, small"):
        plan.load(tiny, "huge")
    tiny.write_text(TINY.replace('["IQ"]', '["SAC"]'))
    with pytest.raises(UsageError, match="variants SAC: choose from IQ, M-IQ"):
        plan.load(tiny, "small")
    with pytest.raises(UsageError, match="No such file"):
        plan.load(tmp_path / "none.toml", "small")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_our_experiments_can_be_made(path):
    for scale in plan.tomllib.loads(path.read_text())["scales"]:
        experiment = plan.load(path, scale)
        assert {run.task for run in experiment.runs} <= REGISTRY.keys()
        assert ("random" in experiment.variants) != bool(experiment.search)
        assert experiment.pack_seeds == (scale == "gpu")
        if experiment.search:
            assert search.of(experiment).present.keys() == experiment.search.keys()
        if scale == "smoke":
            assert max(run.env_steps for run in experiment.runs) < 5000


PACKED = TINY.replace("seeds = [1]", "seeds = [2, 0, 1, 5]\npack_seeds = true")


def names_and_seeds(trainings):
    return [(t.name, [run.seed for run in t.runs]) for t in trainings]


def test_consecutive_seeds_of_a_task_and_variant_are_a_pack(tiny):
    tiny.write_text(PACKED)
    experiment = plan.load(tiny, "small")
    packs = plan.trainings(experiment.runs, experiment.pack_seeds)
    assert names_and_seeds(packs) == [
        ("hopper-iq-seeds0-2", [0, 1, 2]),
        ("hopper-iq-seed5", [5]),
        ("hopper-random-seed2", [2]),
        ("ant-iq-seeds0-2", [0, 1, 2]),
        ("ant-iq-seed5", [5]),
        ("ant-random-seed2", [2]),
    ]
    config = plan.settings(packs[0].arguments).config
    assert (config.env, config.seed, config.num_seeds) == ("hopper", 0, 3)
    alone = plan.load(tiny, "small", pack_seeds=False)
    assert alone.runs == experiment.runs
    separate = plan.trainings(alone.runs, alone.pack_seeds)
    assert [training.arguments for training in separate] == [
        run.arguments for run in alone.runs
    ]
    many = str(list(range(200)))
    tiny.write_text(PACKED.replace("[2, 0, 1, 5]", many))
    with pytest.raises(UsageError, match=r"tiny\.toml: --num_seeds 200: give"):
        plan.load(tiny, "small")


def test_what_is_under_way_goes_on_as_it_began(tiny):
    tiny.write_text(PACKED.replace('["hopper", "Ant-v5"]', '["hopper"]'))
    out, runs = tiny.parent / "out", plan.load(tiny, "small").runs
    (out / "curves").mkdir(parents=True)
    (out / "curves/hopper-random-seed2.jsonl").touch()
    (out / "runs/hopper-iq-seed1").mkdir(parents=True)
    wanted = [("hopper-iq-seed1", [1])]
    wanted += [(f"hopper-iq-seed{seed}", [seed]) for seed in (0, 2, 5)]
    assert names_and_seeds(runner.left(out, runs, True)) == wanted
    (out / "runs/hopper-iq-seed1").rmdir()
    (out / "runs/hopper-iq-seeds0-2").mkdir()
    (out / "curves/hopper-iq-seed0.jsonl").touch()
    for pack in (False, True):
        assert names_and_seeds(runner.left(out, runs, pack)) == [
            ("hopper-iq-seeds0-2", [2, 1]),
            ("hopper-iq-seed5", [5]),
        ]


def command(tiny, *more):
    command = [sys.executable, "-m", "iqmjx.experiment", tiny, "--scale", "small"]
    return [*command, "--out", tiny.parent / "out", *more]


def make(tiny, *more):
    return subprocess.run(command(tiny, *more), capture_output=True, text=True)


def test_a_command_makes_the_runs_and_the_report_and_makes_nothing_twice(tiny):
    tiny.write_text(TINY.replace('["hopper", "Ant-v5"]', '["hopper"]'))
    out = tiny.parent / "out"
    dry = make(tiny, "--dry_run")
    assert dry.returncode == 0 and not out.exists(), dry.stderr
    assert dry.stdout.endswith("2 of 2 runs to make, 576 env steps\n")
    first = make(tiny)
    assert first.returncode == 0, first.stderr
    path = out / "curves/hopper-iq-seed1.jsonl"
    head, *rows, end = map(json.loads, path.read_text().splitlines())
    assert (head["variant"], head["seed"], head["config"]["num_envs"]) == ("IQ", 1, 8)
    assert head["command"].startswith("python -m iqmjx.train --env hopper --seed 1 ")
    assert [row["env_steps"] for row in rows] == [0, 576]
    assert len(end["returns"]) == 3
    assert end["score"] == pytest.approx(sum(end["returns"]) / 3)
    report = (out / "report.md").read_text()
    assert report.startswith("# Tiny\n") and "| IQ |" in report
    times = {path: path.stat().st_mtime_ns for path in (out / "curves").iterdir()}
    again = make(tiny)
    assert again.returncode == 0 and "trains" not in again.stdout
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert (out / "report.md").read_text() == report
    assert make(tiny, "--dry_run").stdout.count("there already") == 2


@pytest.mark.slow
def test_packed_seeds_have_the_curves_that_they_have_alone(tiny):
    tiny.write_text(PACKED.replace('["hopper", "Ant-v5"]', '["hopper"]'))
    out, found = tiny.parent / "out", {}
    for pack in ("--pack_seeds", "--nopack_seeds"):
        assert make(tiny, pack).returncode == 0
        found[pack] = {
            path.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted((out / "curves").iterdir())
        }
        shutil.move(out, tiny.parent / pack)
    packed, alone = found.values()
    assert packed.keys() == alone.keys() and len(packed) == 5
    folders = {path.name for path in (tiny.parent / "--pack_seeds/runs").iterdir()}
    assert {"hopper-iq-seeds0-2", "hopper-iq-seed5"} <= folders
    for name, (head, *rows, end) in packed.items():
        assert head.get("config") == alone[name][0].get("config")
        returns = [row["return"] for row in rows]
        assert returns == pytest.approx(
            [r["return"] for r in alone[name][1:-1]], rel=1e-3
        )
        assert end["returns"] == pytest.approx(alone[name][-1]["returns"], rel=1e-3)


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on_and_ends_as_if_it_was_not(tiny):
    tiny.write_text(TINY.replace("--num_timesteps 512", "--num_timesteps 20000"))
    out = tiny.parent / "out"
    for rows in (3, 40, 10**9):
        begun = subprocess.Popen(command(tiny), start_new_session=True)
        run = out / "runs/hopper-iq-seed1"
        while begun.poll() is None:
            if len(test_cli.metrics_rows(run)) > rows:
                os.killpg(begun.pid, signal.SIGKILL)
                break
            time.sleep(0.1)
        begun.wait()
    assert begun.returncode == 0
    curve = out / "curves/hopper-iq-seed1.jsonl"
    killed = [json.loads(line) for line in curve.read_text().splitlines()]
    (out / "curves").rename(out / "killed")
    (out / "runs").rename(out / "runs-killed")
    assert make(tiny).returncode == 0
    whole = [json.loads(line) for line in curve.read_text().splitlines()]
    assert killed[-1] == whole[-1]
    assert [row["return"] for row in killed[1:-1]] == [
        row["return"] for row in whole[1:-1]
    ]


@pytest.mark.slow
def test_a_command_that_is_stopped_saves_its_runs_and_can_be_given_again(tiny):
    tiny.write_text(
        TINY.replace("--num_timesteps 512", "--num_timesteps 100000000").replace(
            '["hopper", "Ant-v5"]', '["hopper"]'
        )
    )
    run = tiny.parent / "out/runs/hopper-iq-seed1"
    for _ in range(2):
        before = len(test_cli.metrics_rows(run))
        begun = subprocess.Popen(command(tiny), stdout=subprocess.PIPE, text=True)
        while len(test_cli.metrics_rows(run)) < before + 5:
            time.sleep(0.1)
        begun.send_signal(signal.SIGTERM)
        output, _ = begun.communicate(timeout=60)
        assert begun.returncode == 0 and output.endswith("same command resumes it\n")
    said = run.with_suffix(".log").read_text()
    assert said.count("state saved") == 2 and said.count("resuming at ") == 1
    assert not (tiny.parent / "out/curves/hopper-iq-seed1.jsonl").exists()


def test_a_run_that_fails_ends_the_command_with_what_it_said(tiny):
    out = tiny.parent / "out"
    folder = out / "runs/hopper-iq-seed1"
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    failed = make(tiny)
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert "hopper-iq-seed1" in line and "not a run folder" in line


def test_bad_flags_are_named(tiny):
    for flags, words in (
        (["--study", "0"], "--study 0: give the number of trials"),
        (["--study", "2"], "tiny.toml: search: give a table"),
        (["--study", "2", "--slurm"], "--slurm: a study is made on one machine"),
        (["--parallel", "4096"], "--parallel 4096: give a number from 1 to"),
        (["more"], "unexpected argument"),
        (["--slurm", "--slurm_options", "fast"], "--slurm_options fast: give NAME"),
    ):
        asked = make(tiny, *flags)
        assert asked.returncode == 2 and words in asked.stderr
    nothing = subprocess.run(
        [sys.executable, "-m", "iqmjx.experiment"], capture_output=True, text=True
    )
    assert nothing.returncode == 2 and "--file: name" in nothing.stderr
    assert len(native.cpus()) >= 1
