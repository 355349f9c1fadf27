"""Makes an experiment: python -m iqmjx.experiment FILE --scale cpu.

Runs that are there already are not made again, and one that was interrupted is resumed:
the same command, given again, comes to the same end. Then it writes the report.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from iqmjx import command_line
from iqmjx.commands import cli
from iqmjx.commands.report import tell
from iqmjx.envs.physics.native import cpus
from iqmjx.errors import UsageError
from iqmjx.experiments import cluster, plan, report, runner
from iqmjx.run.signals import Stop
from iqmjx.settings import LARGEST_INT, refuse

_STOPPED = "stopped; the same command resumes it"

FLAGS = flags.FlagValues()
POSITIONAL = "file"
_FILE = command_line.path(
    FLAGS, "file", None, "The experiment, such as launch/experiments/figure2.toml."
)
_SCALE = flags.DEFINE_string(
    "scale", "smoke", "How large: a name of the file's.", flag_values=FLAGS
)
_OUT = command_line.path(
    FLAGS,
    "out",
    None,
    "Where all goes (default: checkpoints/experiments/<file>-<scale>).",
)
_PARALLEL = command_line.integer(
    FLAGS, "parallel", 1, "Runs at a time, each on a share of the CPUs."
)
_SLURM = flags.DEFINE_bool(
    "slurm",
    False,
    "Make the runs on a Slurm cluster: a job array of which --parallel run at a time.",
    flag_values=FLAGS,
)
_SLURM_OPTIONS = flags.DEFINE_list(
    "slurm_options",
    [],
    "Of submitit: slurm_partition=low,timeout_min=600,gpus_per_node=1.",
    flag_values=FLAGS,
)
_PACK_SEEDS = flags.DEFINE_bool(
    "pack_seeds",
    None,
    "Train the seeds of a task and variant in one process, as suits a GPU; by default "
    "as the file's scale says.",
    flag_values=FLAGS,
)
_STUDY = command_line.integer(
    FLAGS,
    "study",
    None,
    "Make a study of so many trials, of the settings in the file's [search].",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Say what there is to do, and do nothing.", flag_values=FLAGS
)


def main(stop: Stop | None = None) -> None:
    """Runs the command.

    Args:
        stop: what the process's signals ask for.
    """
    with cli.user_errors():
        if _FILE.value is None:
            raise UsageError("--file: name an experiment, such as figure2.toml")
        path, most = Path(_FILE.value), len(cpus())
        if not 1 <= _PARALLEL.value <= (LARGEST_INT if _SLURM.value else most):
            fix = f"give a number from 1 to {most}, the number of CPUs"
            refuse("parallel", _PARALLEL.value, fix)
        options = cluster.parse_options(_SLURM_OPTIONS.value)
        experiment = plan.load(path, _SCALE.value, _PACK_SEEDS.value)
    name = f"{path.stem}-{_SCALE.value}"
    if _STUDY.value is not None:
        out = Path(_OUT.value or Path("checkpoints", "experiments", f"{name}-study"))
        _make_study(_STUDY.value, out, path, experiment, stop or Stop())
        return
    out = Path(_OUT.value or Path("checkpoints", "experiments", name))
    trainings = runner.left(out, experiment.runs, experiment.pack_seeds)
    if _DRY_RUN.value:
        _say_what_is_left(out, experiment, trainings)
        return
    parallel = _PARALLEL.value
    with cli.user_errors(), cli.run_errors():
        if _SLURM.value:
            cluster.make_all(out, trainings, parallel, options, _say)
        elif not runner.make_all(out, trainings, parallel, _say, stop or Stop()):
            print(_STOPPED)
            return
        tell(report.write(out / "curves", out / "report", experiment))


def _make_study(
    trials: int, out: Path, path: Path, experiment: plan.Experiment, stop: Stop
) -> None:
    """Makes a study, and says what came out of it."""
    with cli.user_errors(), cli.run_errors():
        try:
            from iqmjx.experiments import search, study
        except ImportError as error:
            fix = "pip install -c constraints.txt '.[search]'"
            raise UsageError(f"--study: it needs Optuna: {fix}") from error
        if not 1 <= trials <= LARGEST_INT:
            refuse("study", trials, "give the number of trials, at least 1")
        if _SLURM.value:
            raise UsageError("--slurm: a study is made on one machine; leave it out")
        try:
            asked = search.of(experiment)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        if _DRY_RUN.value:
            steps = sum(run.env_steps for run in asked.runs)
            for name, distribution in asked.space.items():
                print(f"{name}: {distribution}")
            for run in asked.runs:
                print(f"{run.task}, seed {run.seed}: {' '.join(run.arguments)}")
            print(f"{out}: {trials} trials of {steps:,} env steps")
            return
        with study.opened(out, asked, experiment) as opened:
            if opened.make(trials, _PARALLEL.value, _say, stop):
                print(study.told(opened, asked))
            else:
                print(_STOPPED)


def _say(line: str) -> None:
    print(line, flush=True)


def _say_what_is_left(
    out: Path, experiment: plan.Experiment, trainings: list[plan.Training]
) -> None:
    """Each run, where it goes, and what it costs; each command that there is left."""
    left = [run for training in trainings for run in training.runs]
    for run in experiment.runs:
        done = "there already" if run not in left else f"{run.env_steps:,} env steps"
        print(f"{runner.curve_path(out, run)}: {done}")
    for training in trainings:
        if training.runs[0].variant != plan.RANDOM:
            print(f"python -m iqmjx.train {' '.join(training.arguments)}")
    steps = sum(run.env_steps for run in left)
    print(f"{len(left)} of {len(experiment.runs)} runs to make, {steps:,} env steps")
