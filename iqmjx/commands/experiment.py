"""Makes an experiment: python -m iqmjx.experiment FILE --scale cpu.

Runs that are there already are not made again, and one that was interrupted goes on:
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
        experiment = plan.load(path, _SCALE.value)
    name = f"{path.stem}-{_SCALE.value}"
    out = Path(_OUT.value or Path("checkpoints", "experiments", name))
    if _DRY_RUN.value:
        _say_what_is_left(out, experiment)
        return
    runs, parallel = experiment.runs, _PARALLEL.value
    with cli.user_errors(), cli.run_errors():
        if _SLURM.value:
            cluster.make_all(out, runs, parallel, options, _say)
        elif not runner.make_all(out, runs, parallel, _say, stop or Stop()):
            print("stopped; the same command goes on")
            return
        tell(report.write(out / "curves", out / "report", experiment))


def _say(line: str) -> None:
    print(line, flush=True)


def _say_what_is_left(out: Path, experiment: plan.Experiment) -> None:
    """Each run, where it goes, and what it costs."""
    left = [run for run in experiment.runs if not runner.is_finished(out, run)]
    for run in experiment.runs:
        done = "there already" if run not in left else f"{run.env_steps:,} env steps"
        print(f"{runner.curve_path(out, run)}: {done}")
        if run in left and run.variant != plan.RANDOM:
            print(f"    python -m iqmjx.train {' '.join(run.arguments)}")
    steps = sum(run.env_steps for run in left)
    print(f"{len(left)} of {len(experiment.runs)} runs to make, {steps:,} env steps")
