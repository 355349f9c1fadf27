"""A study: trials of other settings, chosen by Optuna, each with trainings of its own.

    OUT/study.journal       Optuna's journal: the trials, and their evaluations
    OUT/runs/, OUT/curves/  of the trials: see `iqmjx.experiments.runner`

The journal says what is done. A study that was stopped or killed resumes the
trials that were under way, in their folders.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.trial import FrozenTrial, TrialState
from rich import console, table

from iqmjx.errors import RunError, UsageError, described
from iqmjx.experiments import curves, plan, runner
from iqmjx.experiments.plan import Experiment, Run, Training
from iqmjx.experiments.search import Search
from iqmjx.run import metrics, run_folder
from iqmjx.run.signals import Stop

_NAME = "study"
_STARTUP_TRIALS = 5
"""Trials at random, before the sampler learns from them and the pruner compares."""
_WARM_UP = 0.25
"""The share of a trial's evaluations before which it is not pruned."""
_WHY, _ASKED = "why", "asked"  # names of attributes in the journal
_WIDE = 200  # columns of a table
_RETURN = "eval/episode_reward"  # greedy


class PrunedError(RunError):
    """A trial was stopped, since others did better."""


@contextlib.contextmanager
def opened(out: Path, search: Search, experiment: Experiment) -> Iterator[Study]:
    """The study in a folder, begun where there is none; no other process makes it.

    Raises:
        UsageError: where another process does, or it is a study of something else.
    """
    with run_folder.claimed(out, "out"):
        yield Study(out, search, experiment)


class Study:
    """What a journal says, and what makes its trials: see `opened`."""

    def __init__(self, out: Path, search: Search, experiment: Experiment):
        self._out, self._search = out, search
        self._pack_seeds = experiment.pack_seeds
        self._lock = threading.Lock()
        first = plan.settings(search.runs[0].arguments).config
        self._num_evals = first.num_evals
        count = len(plan.trainings(search.runs, self._pack_seeds))
        self._num_steps = count * self._num_evals
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = _storage(out / "study.journal")
        self._study = optuna.create_study(
            study_name=_NAME,
            storage=self._storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                _STARTUP_TRIALS, n_warmup_steps=round(_WARM_UP * self._num_steps)
            ),
        )
        asked = {
            "runs": [[*run.arguments, run.episodes] for run in search.runs],
            "search": experiment.search,
            "normalize": experiment.normalize,
            "pack_seeds": self._pack_seeds,
        }
        before = self._study.user_attrs.get(_ASKED, asked)
        if before != asked:
            changed = ", ".join(name for name in asked if asked[name] != before[name])
            raise UsageError(
                f"--out {out}: the study there was begun with other {changed}; give "
                f"another folder, or put the file back as it was"
            )
        self._study.set_user_attr(_ASKED, asked)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in order, those under way among them."""
        return self._study.get_trials(deepcopy=False)

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the highest score; None where none came to its end."""
        ended = [t for t in self.trials if t.state == TrialState.COMPLETE]
        return self._study.best_trial if ended else None

    def make(
        self, trials: int, parallel: int, say: Callable[[str], None], asked: Stop
    ) -> bool:
        """Makes trials until there are so many, all of them ended.

        Args:
            trials: how many, those there are already among them.
            parallel: how many at a time: see `runner.work`.
            say: is told a line about each trial.
            asked: what may ask to stop; the trainings under way are saved then.

        Returns:
            Whether all are made; False after a stop.

        Raises:
            RunError: where a training fails otherwise than by diverging; the trial
                stays under way.
        """
        under_way = [t.number for t in self.trials if t.state == TrialState.RUNNING]
        count = len(under_way) + max(trials - len(self.trials), 0)

        def job() -> None:
            with self._lock:
                number = under_way.pop(0) if under_way else self._begin()
            self._go_on(number, say, asked)

        return runner.work([job] * count, parallel, say, asked)

    def _begin(self) -> int:
        """Chooses the values of a new trial, and writes them down; its number.

        They depend on its number, and on the trials that have ended. The first has
        the settings that there are now, to compare with.
        """
        number = len(self.trials)
        sampler = optuna.samplers.TPESampler(
            seed=number, n_startup_trials=_STARTUP_TRIALS
        )
        draft = optuna.create_study(sampler=sampler, direction="maximize")
        draft.add_trials(self.trials)
        if number == 0:
            draft.enqueue_trial(dict(self._search.present))
        values = draft.ask(dict(self._search.space)).params
        begun = optuna.create_trial(
            state=TrialState.RUNNING,
            params=values,
            distributions=dict(self._search.space),
        )
        self._study.add_trial(begun)
        return number

    def _trial(self, number: int) -> optuna.Trial:
        study = self._storage.get_study_id_from_name(_NAME)
        find = self._storage.get_trial_id_from_study_id_trial_number
        return optuna.Trial(self._study, find(study, number))

    def _go_on(self, number: int, say: Callable[[str], None], asked: Stop) -> None:
        """Makes what there is left of a trial, and writes down how it ended."""
        trial = self._trial(number)
        say(f"trial {number}: {' '.join(self._search.arguments(trial.params))}")
        state, score, trainings = TrialState.PRUNED, None, []
        try:
            runs = self._search.trial(number, trial.params)
            trainings = plan.trainings(runs, self._pack_seeds)
            for index, training in enumerate(trainings):
                if not all(runner.is_finished(self._out, r) for r in training.runs):
                    self._train(trial, trainings[: index + 1], say, asked)
            state, score = TrialState.COMPLETE, self._score(runs)
            told = f"score {score:.5g}"
        except UsageError as error:
            state, told = TrialState.FAIL, f"refused: {error}"
        except PrunedError as error:
            told = str(error)
        except runner.StoppedError:
            if asked.requested:
                return
            raise
        except RunError:
            if not any(self._has_diverged(training) for training in trainings):
                raise
            told = "diverged"
        trial.set_user_attr(_WHY, told)
        self._study.tell(number, score, state=state)
        say(f"trial {number}: {told}")

    def _train(
        self,
        trial: optuna.Trial,
        trainings: list[Training],
        say: Callable[[str], None],
        asked: Stop,
    ) -> None:
        """Makes the last of a trial's trainings, and prunes it by its evaluations.

        Raises:
            PrunedError: where it was; its state is saved.
            RunError: as `runner.make`.
        """
        pruned, seen = "", -1
        folders = runner.seed_folders(self._out, trainings[-1]).values()
        files = [folder / metrics.FILE for folder in folders]

        def go_on() -> bool:
            nonlocal pruned, seen
            size = sum(file.stat().st_size for file in files if file.exists())
            if size != seen:
                pruned, seen = self._report(trial, trainings), size
            return not (pruned or asked.requested)

        try:
            runner.make(self._out, trainings[-1], say, go_on)
        except runner.StoppedError as error:
            raise PrunedError(pruned) if pruned else error from error

    def _report(self, trial: optuna.Trial, trainings: list[Training]) -> str:
        """Tells Optuna of new evaluations; '' or, where it prunes the trial, where.

        The steps of a trial are the evaluations of its trainings, one training after
        the other; the value of each is the mean over the trainings so far, as far as
        they are then. The last evaluation of all is not asked about.
        """
        *before, now = [self._evaluations(training) for training in trainings]
        told = self.trials[trial.number].intermediate_values
        first, end = len(before) * self._num_evals, self._num_steps - 1
        for step, value in enumerate(now, first):
            if step < end and (step not in told or step == max(told)):
                if step not in told:
                    ends = [returns[-1] for returns in before]
                    trial.report(float(np.mean([*ends, value])), step)
                if trial.should_prune():
                    return f"pruned at evaluation {step + 1} of {self._num_steps}"
        return ""

    def _score(self, runs: Sequence[Run]) -> float:
        """The mean normalized score.

        Raises:
            PrunedError: where a run has none: its episodes diverged.
        """
        found = [curves.read(runner.curve_path(self._out, run)).score for run in runs]
        tasks = [run.task for run in runs]
        score = float(np.mean(list(map(self._search.normalized, tasks, found))))
        if not np.isfinite(score):
            raise PrunedError("its episodes diverged")
        return score

    def _evaluations(self, training: Training) -> list[float]:
        """Normalized returns of a training's evaluations so far, means over seeds."""
        seeds = [
            np.array([row[_RETURN] for row in rows if _RETURN in row], float)
            for rows in runner.metrics_of(self._out, training)
        ]
        count = min(map(len, seeds))
        returns = np.mean([own[:count] for own in seeds], axis=0)
        task = training.runs[0].task
        return [self._search.normalized(task, value) for value in returns.tolist()]

    def _has_diverged(self, training: Training) -> bool:
        """Whether the loss of a seed diverged."""
        seeds = runner.metrics_of(self._out, training)
        rows = itertools.chain.from_iterable(seeds)
        return any(row.get("training/loss", 0) is None for row in rows)


def told(study: Study, search: Search) -> str:
    """What came out of a study: its trials, the best first, and the best's settings."""
    trials = sorted(study.trials, key=lambda t: (t.state, -(t.value or 0), t.number))
    rows = table.Table("trial", *search.space, "", box=None, pad_edge=False)
    for trial in trials:
        values = [search.shown(name, value) for name, value in trial.params.items()]
        outcome = trial.user_attrs.get(_WHY, "under way")
        rows.add_row(str(trial.number), *values, outcome)
    out = console.Console(width=_WIDE, highlight=False, markup=False)
    with out.capture() as printed:
        out.print(rows)
    lines = [line.rstrip() for line in printed.get().splitlines()]
    best = study.best
    if best is None:
        return "\n".join([*lines, "", "no trial came to its end"])
    flags = " ".join(search.arguments(best.params))
    return "\n".join(
        [
            *lines,
            "",
            f"best: trial {best.number}; its flags:",
            "",
            f"    {flags}",
            "",
            "as an entry of LAYERS in iqmjx/presets.py:",
            "",
            search.layer(best.params),
        ]
    )


def _storage(path: Path) -> optuna.storages.JournalStorage:
    """A journal that no other process has open.

    What a process that was killed has left half done is put away: its lock, and the
    beginning of a line.

    Raises:
        UsageError: where it cannot be read.
    """
    path.with_name(path.name + LOCK_FILE_SUFFIX).unlink(missing_ok=True)
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read ({described(error)})") from error
