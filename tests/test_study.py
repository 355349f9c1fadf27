"""Studies: what a file may ask for, and that killed ones end as if they were not."""

import json
import os

import numpy as np
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from iqmjx import presets
from iqmjx.errors import RunError, UsageError
from iqmjx.experiments import curves, plan, runner, search, study
from iqmjx.run import run_folder
from iqmjx.run.signals import Stop

FILE = """
title = "Tiny"
tasks = ["hopper", "ant"]

[variants]
"IQ" = "--algo iq --discounting 0.5"

[search]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
grad_updates_per_step = { low = 1, high = 4 }
layer_norm = [true, false]
hidden_sizes = [[16], [16, 16]]

[normalize]
hopper = [10, 110]
Ant-v5 = [0, -2]

[scales.small]
seeds = [3, 4]
episodes = 2
flags = '''
  --num_timesteps 512 --num_envs 8 --chunk_steps 16 --batch_size 16 --num_evals 4
  --min_replay_size 64 --max_replay_size 512 --exploration_steps 0 --hidden_sizes 16
  --learning_rate 1e-3 --num_eval_envs 2 --num_checkpoints 2
'''
"""
ONE_TASK = FILE.replace('"hopper", "ant"', '"hopper"').replace("[3, 4]", "[3]")


def load(tmp_path, text=FILE, **options):
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    experiment = plan.load(path, "small", **options)
    return experiment, search.of(experiment)


def test_a_trial_is_the_variant_with_other_values_on_all_tasks_and_seeds(tmp_path):
    _, asked = load(tmp_path)
    values = {
        "learning_rate": 0.00123456,
        "grad_updates_per_step": 3,
        "layer_norm": "false",
        "hidden_sizes": "16,16",
    }
    words = "--learning_rate 0.001235 --grad_updates_per_step 3 --nolayer_norm"
    words += " --hidden_sizes 16,16"
    assert asked.arguments(values) == words.split()
    runs = asked.trial(7, values)
    names = [f"{task}-trial-7-seed{n}" for task in ("hopper", "ant") for n in (3, 4)]
    assert [run.name for run in runs] == names
    flat = plan.settings(runs[3].arguments).config.flat()
    assert (flat["env"], flat["seed"], flat["discounting"]) == ("ant", 4, 0.5)
    assert (flat["learning_rate"], flat["hidden_sizes"]) == (0.001235, (16, 16))
    assert asked.normalized("hopper", 60.0) == 0.5
    assert asked.normalized("ant", -3.0) == 1.5
    # What the preset's entry gives a run of these tasks is what the flags give it.
    (layer,) = eval(f"[{asked.layer(values)}]", {"Layer": presets.Layer})
    assert (layer.task, layer.algo) == (("hopper", "ant"), ("iq",))
    assert layer.settings == {name: flat[name] for name in values}


def test_numbers_stay_within_their_range_when_they_are_shortened(tmp_path):
    text = FILE.replace(
        "low = 1e-4, high = 1e-2", "low = 1.00006e-3, high = 1.00008e-3"
    )
    _, asked = load(tmp_path, text)
    assert asked.shown("learning_rate", 1.00007e-3) == "0.00100006"


def test_the_first_trial_has_the_settings_that_there_are(tmp_path):
    _, asked = load(tmp_path)
    assert asked.present["learning_rate"] == 1e-3
    assert asked.present["layer_norm"] == "true"
    assert asked.present["hidden_sizes"] == "16"
    # The preset's 16 updates are not in the range.
    assert "grad_updates_per_step" not in asked.present


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[search]", "[searching]", ["searching: it can have title"]),
        ("learning_rate = {", "lr = {", ["search.lr: no such setting", "batch_size"]),
        ("low = 1e-4", "low = -1", ["search.learning_rate: low -1 must be above 0"]),
        ("low = 1e-4", "low = 0.1", ["search.learning_rate: give", "L is less than H"]),
        ("low = 1e-4", "low = nan", ["search.learning_rate: give { low = L"]),
        ("low = 1e-4", "lo = 1e-4", ["search.learning_rate: give { low = L"]),
        ("log = true", "log = 1", ["search.learning_rate: give { low = L"]),
        ("low = 1, ", "low = 1.5, ", ["search.grad_updates_per_step", "whole numbers"]),
        ("low = 1, ", "low = 0, ", ["search.grad_updates_per_step: ", "at least 1"]),
        ("low = 1, ", "low = true, ", ["search.grad_updates_per_step: give"]),
        ("[true, false]", "[true]", ["search.layer_norm: give two or more values"]),
        ("[true, false]", '["yes", "no"]', ["search.layer_norm: ", "yes"]),
        (
            "[true, false]",
            "{ low = 0, high = 1 }",
            ["layer_norm: give a list of values"],
        ),
        ("[[16], [16, 16]]", "[[16], [16]]", ["hidden_sizes: give two", "none twice"]),
        ("[[16], [16, 16]]", "[[16], [0]]", ["search.hidden_sizes: --hidden_sizes 0"]),
        ("layer_norm =", "seed = [1, 2]\nlayer_norm =", ["search.seed: all trials"]),
        (
            "layer_norm =",
            "batch_size = [8, 0]\nlayer_norm =",
            ["search.batch_size: --b"],
        ),
        ("hopper = [10, 110]", "", ["normalize.hopper: give the two scores"]),
        ("[10, 110]", "[10, 10]", ["normalize.hopper: give the two scores"]),
        ("[10, 110]", '["a", 10]', ["normalize.hopper: give the two scores"]),
        ("Ant-v5", "Ant-v9", ["normalize.Ant-v9: "]),
        ('"IQ" =', '"SAC" = "--algo sac"\n"IQ" =', ["variants SAC, IQ: a study is of"]),
    ],
)
def test_what_cannot_be_searched_is_told_with_its_key(tmp_path, old, new, words):
    assert old in FILE
    with pytest.raises(UsageError) as told:
        load(tmp_path, FILE.replace(old, new, 1))
    for word in words:
        assert word in str(told.value)
    assert "\n" not in str(told.value)


class Played:
    """In the place of `runner.make`: what trainings come to is known beforehand.

    A run's evaluations rise in equal steps from 0 to its score: 100, less 100 for each
    factor of ten between its learning rate and 1e-3.
    """

    def __init__(self):
        self.begun = []
        self.evaluated = 0
        self.diverges = lambda rate: False
        self.then = lambda: None
        """Called after each evaluation."""

    def __call__(self, out, training, say, go_on):
        config = plan.settings(training.arguments).config
        rate = config.algorithm.learning_rate
        score = 100 - 100 * abs(np.log10(rate / 1e-3))
        self.begun.append(training.name)
        for evaluation in range(self._there(out, training), config.num_evals):
            row = {"env_steps": 64 * evaluation}
            row["eval/episode_reward"] = score * evaluation / (config.num_evals - 1)
            if self.diverges(rate) and evaluation == 2:
                row = {"env_steps": 64 * evaluation, "training/loss": None}
            for folder in self._folders(out, training):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
            self.evaluated += 1
            self.then()
            if "training/loss" in row:
                raise RunError("diverged")
            if not go_on():
                raise runner.StoppedError("stopped")
        (out / "curves").mkdir(exist_ok=True)
        for run in training.runs:
            head = {"task": run.task, "variant": run.variant, "seed": run.seed}
            end = curves.end(np.array([score]), None)
            curves.write(runner.curve_path(out, run), [head, end])

    def _folders(self, out, training):
        folder = out / "runs" / training.name
        return run_folder.seed_folders(folder, training.seeds).values()

    def _there(self, out, training):
        return len(runner.metrics_of(out, training)[0])


@pytest.fixture
def played(monkeypatch):
    played = Played()
    monkeypatch.setattr(runner, "make", played)
    return played


def make(out, asked, trials=9, stop=None):
    """Makes a study, one trial at a time; what its journal says then."""
    experiment, ranges = asked
    with study.opened(out, ranges, experiment) as opened:
        said = []
        whole = opened.make(trials, 1, said.append, stop or Stop())
        assert whole == (stop is None)
        ended = [
            (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
            for t in opened.trials
        ]
        return ended, study.told(opened, ranges), said


def test_a_study_finds_what_is_best_and_prunes_what_is_not(tmp_path, played):
    asked = load(tmp_path, ONE_TASK)
    trials, told, _ = make(tmp_path / "out", asked, 16)
    numbers, states, params, values, evaluations, why = zip(*trials, strict=True)
    assert numbers == tuple(range(16))
    assert len({own["learning_rate"] for own in params}) == 16
    assert params[0]["learning_rate"] == 1e-3 and values[0] == [pytest.approx(0.9)]
    assert set(states[:5]) == {TrialState.COMPLETE} and TrialState.PRUNED in states
    ended = {}
    for number, state in enumerate(states):
        rate = float(f"{params[number]['learning_rate']:.4g}")
        score = 0.9 - abs(np.log10(rate / 1e-3))  # in units of 100 from 10 on
        seen = evaluations[number]
        # By hand: below the median of those that had ended, at a step after the first.
        medians = {
            s: np.median([e[s] for e in ended.values()]) for s in (1, 2) if ended
        }
        pruned = number >= 5 and [
            s for s in seen if s and max(seen.values()) < medians[s]
        ]
        if state == TrialState.COMPLETE:
            assert values[number] == [pytest.approx(score)] and not pruned
            ended[number] = seen
        else:
            step = max(seen)
            assert pruned == [step]
            assert why[number]["why"] == f"pruned at evaluation {step + 1} of 4"
    assert told.index("trial 0; its flags:\n\n    --learning_rate 0.001 ") > 0
    assert '"learning_rate": 0.001,' in told and 'preset=("cpu",),' in told
    again = len(played.begun)
    assert make(tmp_path / "out", asked, 16)[:2] == (trials, told)
    assert len(played.begun) == again
    # More trials later are those of a larger study; and what is asked must stay.
    assert make(tmp_path / "other", asked, 9)[0] == trials[:9]
    assert make(tmp_path / "other", asked, 16)[0] == trials
    other = load(tmp_path, ONE_TASK.replace("high = 4", "high = 5"))
    with pytest.raises(UsageError, match=r"--out .*: .* begun with other search; give"):
        make(tmp_path / "out", other)


class Killed(BaseException):
    """In the place of SIGKILL."""


def test_wherever_a_study_is_killed_it_ends_as_if_it_was_not(
    tmp_path, played, monkeypatch
):
    asked = load(tmp_path, ONE_TASK)
    whole, told, _ = make(tmp_path / "whole", asked)
    count = played.evaluated
    assert {state for _, state, *_ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}
    write = JournalFileBackend.append_logs
    records = len((tmp_path / "whole/study.journal").read_text().splitlines())
    for killed_at in range(0, records, 7):
        left, out = killed_at, tmp_path / str(killed_at)

        def dying(self, logs):
            nonlocal left
            left -= 1
            if left == -1:  # in the middle of a line, holding the lock
                with open(self._file_path, "a") as file:
                    file.write(json.dumps(logs[0])[:20])
                os.symlink(self._file_path, self._file_path + ".lock")
            if left < 0:
                raise Killed
            write(self, logs)

        monkeypatch.setattr(JournalFileBackend, "append_logs", dying)
        with pytest.raises(Killed):
            make(out, asked)
        monkeypatch.setattr(JournalFileBackend, "append_logs", write)
        before = played.evaluated
        assert make(out, asked)[:2] == (whole, told)
        assert played.evaluated - before <= count


def test_a_study_that_is_stopped_goes_on_with_the_trial_under_way(tmp_path, played):
    asked = load(tmp_path, ONE_TASK)
    stop = Stop()

    def ask_to_stop():
        stop.requested = played.evaluated >= 10

    played.then = ask_to_stop
    stopped, _, _ = make(tmp_path / "out", asked, stop=stop)
    played.then = lambda: None
    (*_, under_way) = stopped
    assert len(stopped) == 3
    assert under_way[1] == TrialState.RUNNING and len(under_way[4]) == 2
    assert make(tmp_path / "out", asked)[0] == make(tmp_path / "whole", asked)[0]
    assert played.begun.count("hopper-trial-2-seed3") == 3


def test_a_trial_of_several_tasks_and_seeds(tmp_path, played):
    """Ant's unit: 0 is 0, and 1 is -2."""
    trials, _, _ = make(tmp_path / "out", load(tmp_path), 1)
    ((_, state, _, values, evaluations, _),) = trials
    assert played.begun == [
        f"{task}-trial-0-seed{seed}" for task in ("hopper", "ant") for seed in (3, 4)
    ]
    assert state == TrialState.COMPLETE and values == [pytest.approx((0.9 - 50) / 2)]
    steps = [0, 100 / 3, 200 / 3, 100]
    hopper, ant = [(s - 10) / 100 for s in steps], [-s / 2 for s in steps]
    wanted = [*hopper, *((0.9 + h) / 2 for h in hopper), *((1.8 + a) / 3 for a in ant)]
    wanted += [(1.8 - 50 + a) / 4 for a in ant[:3]]  # the last is its score
    assert evaluations == {s: pytest.approx(v) for s, v in enumerate(wanted)}
    packed = make(tmp_path / "packed", load(tmp_path, pack_seeds=True), 1)[0][0]
    assert played.begun[4:] == ["hopper-trial-0-seeds3-4", "ant-trial-0-seeds3-4"]
    assert packed[3] == values and len(packed[4]) == 7


def test_trials_that_diverge_or_are_refused_do_not_end_a_study(tmp_path, played):
    played.diverges = lambda rate: rate > 2e-3
    text = ONE_TASK.replace("layer_norm =", "batch_size = [16, 24]\nlayer_norm =")
    text = text.replace("{ low = 1, high = 4 }", "[1, 2]")
    text = text.replace("layer_norm =", "num_shards = [1, 8, 16]\nlayer_norm =")
    # 16 shards divide neither the 8 worlds nor 24 rows.
    with pytest.raises(
        UsageError, match=r"search\.num_shards: --num_shards 16: it must"
    ):
        load(tmp_path, text)
    text = text.replace("[1, 8, 16]", "[1, 8]").replace("[16, 24]", "[16, 12]")
    trials, told, said = make(tmp_path / "out", load(tmp_path, text), 12)
    for _, state, params, _, _, why in trials:
        refused = params["num_shards"] == "8" and params["batch_size"] == "12"
        if refused:
            assert state == TrialState.FAIL
            assert why["why"].startswith("refused: --num_shards 8: it must divide")
        elif params["learning_rate"] > 2e-3:
            assert state == TrialState.PRUNED
            assert why["why"] == "diverged" or why["why"].startswith("pruned at")
    assert {"diverged"} < {why["why"] for *_, why in trials}
    assert "refused" in told and any("diverged" in line for line in said)


def test_a_failure_that_is_no_divergence_ends_the_command(tmp_path, monkeypatch):
    def fails(*_):
        raise RunError("no space left on device")

    monkeypatch.setattr(runner, "make", fails)
    asked = load(tmp_path, ONE_TASK)
    with pytest.raises(RunError, match="no space left"):
        make(tmp_path / "out", asked)
    with study.opened(tmp_path / "out", asked[1], asked[0]) as opened:
        assert [trial.state for trial in opened.trials] == [TrialState.RUNNING]
        with (
            pytest.raises(UsageError, match=r"--out .*another process"),
            study.opened(tmp_path / "out", asked[1], asked[0]),
        ):
            pass


def test_a_journal_that_cannot_be_read_is_told(tmp_path):
    asked = load(tmp_path, ONE_TASK)
    (tmp_path / "study.journal").write_text("[1]\nnone\n")
    with (
        pytest.raises(UsageError, match=r"study.journal: cannot be read"),
        study.opened(tmp_path, asked[1], asked[0]),
    ):
        pass
