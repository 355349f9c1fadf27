import json
import re

import numpy as np
import pytest

from iqmjx.commands import report
from iqmjx.errors import UsageError
from iqmjx.experiments import curves as curve_files
from iqmjx.experiments.plan import RANDOM, Experiment, Run

ORDER = ["IQ", "SAC", "plain", RANDOM]


def write(folder, task, variant, seed, score, **end):
    head = {"task": task, "variant": variant, "seed": seed}
    rows = [
        {"env_steps": 1000 * i, "seconds": 60.0 * (i + seed), "return": score * i / 4}
        for i in range(5)
        if variant != RANDOM
    ]
    lines = [head, *rows, {"score": score} | end]
    path = folder / f"{task}-{variant}-seed{seed}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "curves"
    folder.mkdir()
    for task, scale in (("hopper", 10.0), ("ant", 1.0)):
        write(folder, task, RANDOM, 0, 100 * scale)
        for seed, sac, iq in ((0, 500, 300), (1, 300, 100), (2, 400, 500)):
            write(folder, task, "SAC", seed, sac * scale)
            write(folder, task, "IQ", seed, iq * scale)
    write(folder, "ant", "plain", 0, 250.0)
    return folder


def load(folder):
    curves, problems = curve_files.load(folder)
    assert not problems
    return curves


def test_normalized_scores(folder):
    """Random 100 is 0 and SAC's mean 400 is 1, so 300, 100, 500 are 2/3, 0, 4/3."""
    by_task = report.scores(load(folder))
    got = report.normalized(by_task, "IQ")
    for task in ("ant", "hopper"):
        np.testing.assert_allclose(got[task], [2 / 3, 0, 4 / 3])
    assert list(report.normalized(by_task, "plain")) == ["ant"]


def test_tables(folder):
    lines = report.table(load(folder), ORDER).splitlines()
    assert lines[0] == "| | ant | hopper |"
    # Seeds 0, 1, 2 took 4, 5, 6 minutes.
    iq = "300 (300, 100, 500), 5 min | 3000 (3000, 1000, 5000), 5 min"
    assert lines[2] == f"| IQ | {iq} |"
    assert lines[4:] == ["| plain | 250, 4 min |  |", "| random | 100 | 1000 |"]
    lines = report.aggregates(load(folder), ORDER).splitlines()
    numbers = [re.findall(r"\| (\S+)", line) for line in lines[2:]]
    # IQ: 0, 2/3 and 4/3 twice; the middle half is 0, 2/3, 2/3, 4/3 of 6 less one at
    # each end. It is below 1 by 1, 1/3 and 0; above SAC's 2/3, 1, 4/3 in 0 + .5 + 0,
    # 1 + 1 + .5 of 9 pairs.
    assert numbers[0] == ["IQ", "2", "0.67", "0.67", "0.67", "0.44", "0.33"]
    assert numbers[1] == ["SAC", "2", "1.00", "1.00", "1.00", "0.11", "0.50"]
    assert numbers[2][:3] == ["plain", "1", "0.50"] and len(numbers) == 3
    low, high = map(float, re.search(r"0\.67 \((\S+) to (\S+)\)", lines[2]).groups())
    assert 0 < low < 0.5 and 0.9 < high < 4 / 3


def test_success_is_told_where_there_is_such_a_thing(tmp_path):
    write(tmp_path, "door", "IQ", 0, 10.0, success=0.25)
    write(tmp_path, "door", "IQ", 1, 20.0, success=0.75)
    assert "15 (10, 20), success 50%" in report.table(load(tmp_path), ["IQ"])


def test_what_no_episode_was_left_for_is_nan(tmp_path):
    write(tmp_path, "ant", "IQ", 0, 400.0)
    path = tmp_path / "ant-IQ-seed0.jsonl"
    path.write_text(path.read_text().replace('"score": 400.0', '"score": null'))
    path.write_text(path.read_text().replace('"return": 100.0', '"return": null'))
    [curve] = load(tmp_path)
    np.testing.assert_array_equal(curve.returns, [0, np.nan, 200, 300, 400])
    assert np.isnan(curve.score) and "| IQ | nan, 4 min |" in report.table(
        [curve], ["IQ"]
    )


def test_a_report_of_what_there_is_says_what_is_missing_and_what_is_damaged(
    folder, capsys
):
    (folder / "ant-plain-seed0.jsonl").write_text('{"task": "ant"')
    (folder / "ant-other-seed0.jsonl").write_text('{"task": "ant"}\n{"score": 1}\n')
    (folder / "ant-list-seed0.jsonl").write_text("[]\n[]\n")
    runs = tuple(
        Run("ant", variant, seed, (), 1, 1)
        for variant in ("SAC", "IQ")
        for seed in (0, 7)
    )
    experiment = Experiment("Of ants", ("SAC", "IQ"), runs)
    text = report.write(folder, folder.parent / "report", experiment)
    written = (folder.parent / "report.md").read_text()
    assert written.startswith("# Of ants\n") and written in text
    assert "Not there yet: ant-sac-seed7, ant-iq-seed7." in written
    assert written.index("| SAC |") < written.index("| IQ |")
    assert (folder.parent / "report.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr().err.splitlines()
    names = ("ant-list-seed0", "ant-other-seed0", "ant-plain-seed0")
    assert len(told) == 3 and all(map(lambda n, t: n in t, names, told))
    assert all(line.endswith("left out") for line in told)


def test_curves_of_random_play_alone_make_a_table_and_no_figure(tmp_path):
    write(tmp_path, "ant", RANDOM, 0, 100.0)
    assert "| random | 100 |" in report.write(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report.png").exists()


def test_files_from_before_there_were_experiments_are_read(tmp_path):
    write(tmp_path, "ant", "IQ", 0, 400.0)
    path = tmp_path / "ant-IQ-seed0.jsonl"
    old = path.read_text()
    for name, variant in (("", "m_iq"), ("1M", "m_iq-1M")):
        now = f'"algo": "m_iq", "name": "{name}"'
        path.write_text(old.replace('"variant": "IQ"', now))
        assert load(tmp_path)[0].variant == variant


def test_no_curves(tmp_path):
    with pytest.raises(UsageError, match=r"--curves .*iqmjx\.experiment makes them"):
        report.write(tmp_path, tmp_path / "report")
