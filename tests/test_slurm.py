"""On a Slurm cluster of one node, which the tests bring up: runs and experiments."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import test_cli

ROOT = Path(__file__).parents[1]
NODE = ROOT / "tests" / "slurm_node.sh"
SCRIPT = ROOT / "launch" / "slurm.sh"
MISSING = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started as root"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([NODE, "start", folder], check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield
        wait_until(cancel_all)
    subprocess.run([NODE, "stop", folder], check=True, timeout=60)


def cancel_all():
    """Whether no job is left."""
    slurm_command("scancel", "--user=root")
    return not slurm_command("squeue", "--noheader")


class Job:
    """A run of small settings submitted through launch/slurm.sh."""

    def __init__(self, folder, num_timesteps, tasks):
        self.run, self.output = folder / "run", folder / "output"
        options = ["--parsable", f"--ntasks={tasks}", f"--output={self.output}"]
        steps = f"--num_timesteps={num_timesteps}"  # the later of two flags holds
        flags = [*test_cli.SETTINGS, steps, "--logdir", str(self.run)]
        self.number = slurm_command("sbatch", *options, str(SCRIPT), *flags)

    def __getitem__(self, name):
        """A field of `scontrol show job`."""
        shown = slurm_command("scontrol", "show", "job", self.number, "--oneliner")
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)[name]

    def steps(self):
        """The env steps of its training rows so far."""
        rows = test_cli.metrics_rows(self.run)
        return [row["env_steps"] for row in rows if "training/sps" in row]

    def said(self, words):
        """How often its output holds some words."""
        return self.output.read_text().count(words)

    def wait_for_progress(self):
        before = len(self.steps())
        self.wait_until(lambda: len(self.steps()) >= before + 10)

    def wait_until(self, condition, seconds=180.0):
        assert wait_until(condition, seconds), self.output.read_text()


def slurm_command(*arguments):
    result = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return result.stdout.strip()


def wait_until(condition, seconds=180.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def requeue(job):
    slurm_command("scontrol", "requeue", job.number)


def preempt(job):
    """Another job takes the node: the processes alone are told, and given a while."""
    give_node_away(grace_seconds=30)


def preempt_at_once(job):
    """Likewise without GraceTime: SIGTERM comes twice, the first to processes alone."""
    give_node_away(grace_seconds=0)


def give_node_away(grace_seconds):
    grace = f"GraceTime={grace_seconds}"
    slurm_command("scontrol", "update", "PartitionName=low", grace)
    more = ["--partition=high", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1"]
    slurm_command("sbatch", *more)


def reach_time_limit(job):
    """What Slurm sends ahead of it."""
    slurm_command("scancel", "--batch", "--signal=USR1", job.number)


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_goes_on_after_every_way_of_being_stopped(slurm, tmp_path, tasks):
    job = Job(tmp_path, num_timesteps=20_000, tasks=tasks)
    stops = [requeue, preempt, preempt_at_once, reach_time_limit]
    for restarts, stop in enumerate(stops, start=1):
        job.wait_for_progress()
        stop(job)
        job.wait_until(lambda wanted=restarts: job.said("resuming at ") == wanted)
        assert job.said("state saved") == restarts, stop
        assert job["Restarts"] == str(restarts)
    job.wait_until(lambda: job["JobState"] == "COMPLETED", seconds=900)
    assert job.steps() == list(range(32, 20_001, 32))
    assert not job.said("resuming at 0 ") and job.said("done; ") == 1


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, tmp_path):
    job = Job(tmp_path, num_timesteps=100_000_000, tasks=1)
    job.wait_for_progress()
    slurm_command("scancel", job.number)
    job.wait_until(lambda: job.said("state saved"))
    job.wait_until(lambda: not slurm_command("squeue", "--noheader"))
    assert job["JobState"] == "CANCELLED" and job["Restarts"] == "0"


def test_a_run_that_fails_is_not_queued_again(slurm, tmp_path):
    job = Job(tmp_path, num_timesteps=-1, tasks=1)
    job.wait_until(lambda: job["JobState"] == "FAILED")
    assert job["ExitCode"] == "2:0" and job["Restarts"] == "0"


EXPERIMENT = """
title = "Four runs"
tasks = ["hopper"]

[variants]
"IQ" = ""

[scales.small]
seeds = [0, 1, 2, 3]
episodes = 2
flags = '''--num_timesteps=60000 {settings}'''
"""


def curves_of(out):
    """What an experiment's curves say, but for times and places."""
    found = {}
    for path in sorted((out / "curves").iterdir()):
        _, *rows, end = map(json.loads, path.read_text().splitlines())
        found[path.name] = [row["return"] for row in rows], end
    return found


def test_an_experiment_s_array_survives_preemption_and_ends_as_the_pool_does(
    slurm, tmp_path
):
    settings = [s for s in test_cli.SETTINGS if "--env" not in s]
    settings = " ".join(s for s in settings if "num_timesteps" not in s)
    file = tmp_path / "four.toml"
    file.write_text(EXPERIMENT.format(settings=settings))
    make = [sys.executable, "-m", "iqmjx.experiment", file, "--scale", "small", "--out"]
    there = tmp_path / "there"
    options = "--slurm_options=slurm_partition=low,slurm_time=10,slurm_mem=0"
    on_slurm = [*make, there, "--slurm", "--parallel", "4", options]
    begun = subprocess.Popen(on_slurm, stdout=subprocess.PIPE, text=True)
    logs = [there / f"runs/hopper-iq-seed{seed}.log" for seed in range(4)]

    def said(words):
        return sum(log.read_text().count(words) for log in logs if log.exists())

    assert wait_until(lambda: said("env steps/s") >= 8)
    with begun:
        begun.kill()  # its jobs stay; the same command waits for them
    begun = subprocess.Popen(on_slurm, stdout=subprocess.PIPE, text=True)
    # What submitit is told ahead of a time limit.
    ours = slurm_command("squeue", "--noheader", "--array", "--format=%i").split()
    slurm_command("scancel", "--signal=USR2", ours[0])
    assert wait_until(lambda: said("resuming at ") == 1)
    again = next(log for log in logs if "resuming at " in log.read_text())
    assert wait_until(lambda: "env steps/s" in again.read_text().split("resuming")[1])
    slurm_command("scontrol", "update", "PartitionName=low", "GraceTime=30")
    more = ["--partition=high", "--ntasks=1", "--output=/dev/null", "--wrap=sleep 1"]
    slurm_command("sbatch", *more)
    assert wait_until(lambda: said("resuming at ") == 2)
    output, _ = begun.communicate(timeout=900)
    assert begun.returncode == 0, output
    assert said("state saved") == 2 and said("done; ") == 4
    assert not said("resuming at 0 ") and "jobs submitted" not in output
    here = tmp_path / "here"
    subprocess.run([*make, here, "--parallel", "2"], check=True)
    assert curves_of(there) == curves_of(here) and len(curves_of(here)) == 4
    tables = [(out / "report.md").read_text() for out in (there, here)]
    without_minutes = [re.sub(r"; \d+ min", "", table) for table in tables]
    assert without_minutes[0] == without_minutes[1]


def test_slurm_options_that_are_none_are_told(slurm, tmp_path):
    file = tmp_path / "four.toml"
    file.write_text(EXPERIMENT.format(settings=""))
    make = [sys.executable, "-m", "iqmjx.experiment", file, "--scale", "small"]
    make += ["--out", tmp_path, "--slurm"]
    for options, words in (("fast", "NAME=VALUE"), ("speed=2", "speed")):
        done = subprocess.run(
            [*make, f"--slurm_options={options}"], capture_output=True, text=True
        )
        assert done.returncode == 2 and words in done.stderr
