import html.parser
import json

import numpy as np
import pytest

from iqmjx.commands import report as command
from iqmjx.errors import UsageError
from iqmjx.experiments import curves as curve_files
from iqmjx.experiments import report
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
    rows = report.scores_table(load(folder), ORDER)
    # Seeds 0, 1, 2 took 4, 5, 6 minutes.
    assert rows == [
        ["", "ant", "hopper"],
        ["IQ", "300\n300, 100, 500\n5 min", "3,000\n3,000, 1,000, 5,000\n5 min"],
        ["SAC", "400\n500, 300, 400\n5 min", "4,000\n5,000, 3,000, 4,000\n5 min"],
        ["plain", "250\n4 min", ""],
        ["random", "100", "1,000"],
    ]
    found = report.estimates(load(folder), ORDER)
    rows = report.estimates_table(found)
    assert rows[0][1:] == [*report._AGGREGATES, "better than SAC"]
    numbers = [[cell.split("\n")[0] for cell in row] for row in rows[1:]]
    # IQ: 0, 2/3 and 4/3 twice; the middle half is 0, 2/3, 2/3, 4/3 of 6 less one at
    # each end. It is below 1 by 1, 1/3 and 0; above SAC's 2/3, 1, 4/3 in 0 + .5 + 0,
    # 1 + 1 + .5 of 9 pairs.
    assert numbers == [
        ["IQ", "0.67", "0.67", "0.67", "0.44", "0.33"],
        ["SAC", "1.00", "1.00", "1.00", "0.11", "0.50"],
        ["plain", "0.50", "0.50", "0.50", "0.50", "0.00"],
    ]
    _, low, high = found["mean"]["IQ"]
    assert 0 < low < 0.5 and 0.9 < high < 4 / 3
    assert rows[3][1:5] == ["0.50\none seed"] * 4


def test_success_is_told_where_there_is_such_a_thing(tmp_path):
    write(tmp_path, "door", "IQ", 0, 10.0, success=0.25)
    write(tmp_path, "door", "IQ", 1, 20.0, success=0.75)
    assert report.scores_table(load(tmp_path), ["IQ"])[1] == [
        "IQ",
        "15\n10, 20\nsuccess 50%\n4 min",
    ]


def test_what_no_episode_was_left_for_is_nan(tmp_path):
    write(tmp_path, "ant", "IQ", 0, 400.0)
    path = tmp_path / "ant-IQ-seed0.jsonl"
    path.write_text(path.read_text().replace('"score": 400.0', '"score": null'))
    path.write_text(path.read_text().replace('"return": 100.0', '"return": null'))
    [curve] = load(tmp_path)
    np.testing.assert_array_equal(curve.returns, [0, np.nan, 200, 300, 400])
    assert np.isnan(curve.score)
    assert report.scores_table([curve], ["IQ"])[1] == ["IQ", "nan\n4 min"]


class Page(html.parser.HTMLParser):
    """What a page has."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


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
    experiment = Experiment("Of <ants>", ("SAC", "IQ"), runs, False, {}, {})
    written = report.write(folder, folder.parent / "report", experiment)
    text = (folder.parent / "report.md").read_text()
    assert text.startswith("# Of <ants>\n") and text == written.text
    assert "Not there yet: ant-sac-seed7, ant-iq-seed7." in text
    assert text.index("| SAC |") < text.index("| IQ |")
    names = ("ant-list-seed0", "ant-other-seed0", "ant-plain-seed0")
    assert len(written.problems) == 3
    for name, problem in zip(names, written.problems, strict=True):
        assert name in problem and problem in text
    assert all(path.exists() for path in written.files) and len(written.files) == 8
    command.tell(written)
    assert capsys.readouterr().err.count("left out\n") == 3


def test_the_page_holds_all_of_it_and_needs_no_other_file(folder):
    report.write(folder, folder.parent / "report")
    page = Page((folder.parent / "report.html").read_text())
    assert page.tags.count("svg") == 3 and page.tags.count("table") == 2
    assert all(link.startswith("#") for link in page.links)
    assert not {"img", "script", "link", "iframe"} & set(page.tags)
    for word in ("300, 100, 500", "better than SAC", "IQ"):
        assert word in page.words


def test_the_same_curves_give_the_same_report(folder):
    """To the byte, so that two of them can be compared."""
    whole = []
    for _ in range(2):
        files = report.write(folder, folder.parent / "report").files
        whole.append([path.read_bytes() for path in files])
    assert whole[0] == whole[1]


def test_curves_of_random_play_alone_make_a_table_and_no_figure(tmp_path):
    write(tmp_path, "ant", RANDOM, 0, 100.0)
    written = report.write(tmp_path, tmp_path / "report")
    assert "| random | 100 |" in written.text
    assert [path.suffix for path in written.files] == [".md", ".html"]


def test_a_baseline_that_is_no_better_than_chance_normalizes_nothing(tmp_path):
    for variant in (RANDOM, "SAC", "IQ"):
        write(tmp_path, "ant", variant, 0, 100.0)
    assert not report.estimates(load(tmp_path), ORDER)


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
