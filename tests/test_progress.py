"""What a person sees of a run."""

import io
import re

import pytest
from rich import console

from iqmjx.run import progress

EVALUATION = {
    "eval/episode_reward": 4000.0,
    "eval/episode_reward_std": 50.0,
    "eval/sampled_episode_reward": 3500.5,
    "eval/sampled_episode_reward_std": 60.0,
    "eval/avg_episode_length": 1000.0,
    "eval/diverged": 0.0,
}
CHUNK = {
    "training/sps": 1e5,
    "training/entropy": 1.2345678,
    "training/temperature": 0.1,
    "training/td_error": 3.0,
    "training/value": 250.0,
    "physics/diverged": 2.0,
    "physics/overflow": 0.0,
    "episode/sum_reward": 1234.5,
}


def test_the_rate_counts_what_training_waits_for_and_forgets_the_warm_up():
    seconds = 0.0
    pace = progress.Pace(lambda: seconds)
    pace.begin(0)
    seconds = 1.0
    pace.begin(100_000)  # the warm-up: at 100,000 env steps per second
    seconds = 3.0
    pace.add(102_000)
    assert pace.rate == pytest.approx(1000)
    seconds = 13.0  # ten of them an evaluation's
    pace.add(103_000)
    assert pace.rate == pytest.approx(3000 / 12)


def test_the_rate_is_that_of_the_last_minutes():
    seconds = 0.0
    pace = progress.Pace(lambda: seconds)
    pace.begin(0)
    for chunk in range(
        1, 1001
    ):  # a machine that is three times as fast from the middle
        seconds += 3 if chunk <= 500 else 1
        pace.add(1000 * chunk)
    assert pace.rate == pytest.approx(1000)


def shown(width, rows=1, **more):
    out = io.StringIO()
    terminal = console.Console(file=out, force_terminal=True, width=width)
    told = progress.Progress(20_000_000, out=terminal)
    told.begin(0)
    told.evaluated(0, [EVALUATION | {"eval/episode_reward": 10.0}] * rows)
    told.evaluated(5_000_000, [EVALUATION | more] * rows)
    told.trained(10_000_000, [CHUNK] * rows)
    with terminal.capture() as captured:
        terminal.print(console.Group(told._view()))  # a bare Text would be wrapped
    return captured.get()


@pytest.mark.parametrize("width", [40, 80])
def test_the_live_view_fits_its_terminal(width):
    lines = shown(width, rows=16).splitlines()
    assert 4 <= len(lines) <= 6
    assert all(len(line) <= width for line in lines)


def test_the_live_view_tells_returns_learning_physics_and_memory():
    view = shown(80)
    assert re.search(r"━{12} +50%  [\d,]+ env steps/s", view)
    assert "10,000,000 / 20,000,000 env steps" in view
    assert "greedy 4000.0, sampled 3500.5, training 1234.5  ▁█" in view
    assert "entropy 1.235   temperature 0.1   TD error 3   value 250" in view
    assert re.search(r"diverged 2   overflows 0   memory [\d.]+ [MG]i?B", view)


def test_a_plain_line_labels_its_returns(capsys):
    with progress.Progress(100) as told:
        told.begin(0)
        told.evaluated(0, [EVALUATION])
        told.trained(50, [CHUNK])
    *_, line = capsys.readouterr().out.splitlines()
    pattern = (
        r"50 / 100 env steps   [\d,]+ env steps/s   0:00 left   "
        r"return: greedy 4000.0, sampled 3500.5, training 1234.5"
    )
    assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([3.0], ""), ([0, 7.0], "▁█"), ([5.0, 5.0], "▁▁"), ([0, 1, 7], "▁▂█")],
)
def test_a_sparkline_is_scaled_from_the_lowest_to_the_highest(values, line):
    assert progress.sparkline(values) == line


def test_a_sparkline_leaves_out_what_is_no_number():
    assert progress.sparkline([0.0, float("nan"), 7.0, float("inf")]) == "▁█"
