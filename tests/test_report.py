import json

import numpy as np
import pytest

from iqmjx.commands import report


def write(folder, task, algo, seed, score, name=""):
    head = {"task": task, "algo": algo, "name": name, "seed": seed}
    rows = [
        {"env_steps": 1000 * i, "seconds": 60.0 * (i + seed), "return": score * i / 4}
        for i in range(5)
        if algo != "random"
    ]
    lines = [head, *rows, {"score": score}]
    path = folder / "-".join(filter(None, [task, algo, name, f"seed{seed}.jsonl"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def curves(tmp_path):
    for task, scale in (("hopper", 10.0), ("ant", 1.0)):
        write(tmp_path, task, "random", 0, 100 * scale)
        for seed, sac, iq in ((0, 500, 300), (1, 300, 100), (2, 400, 500)):
            write(tmp_path, task, "sac", seed, sac * scale)
            write(tmp_path, task, "iq", seed, iq * scale)
    write(tmp_path, "ant", "iq", 0, 250.0, name="plain")
    return tmp_path


def test_normalized_scores(curves):
    """Random 100 is 0 and SAC's median 400 is 1, so 300, 100, 500 are 2/3, 0, 4/3."""
    by_task = report.scores(report.load(curves))
    got = report.normalized(by_task, "iq")
    for task in ("ant", "hopper"):
        np.testing.assert_allclose(got[task], [2 / 3, 0, 4 / 3])
    assert list(report.normalized(by_task, "iq-plain")) == ["ant"]


def test_what_no_episode_was_left_for_is_nan(tmp_path):
    write(tmp_path, "ant", "iq", 0, 400.0)
    path = tmp_path / "ant-iq-seed0.jsonl"
    path.write_text(path.read_text().replace('"score": 400.0', '"score": null'))
    path.write_text(path.read_text().replace('"return": 100.0', '"return": null'))
    [curve] = report.load(tmp_path)
    np.testing.assert_array_equal(curve.returns, [0, np.nan, 200, 300, 400])
    assert np.isnan(curve.score) and "| iq | nan, 4 min |" in report.table([curve])


def test_table(curves):
    lines = report.table(report.load(curves)).splitlines()
    assert lines[0] == "| | ant | hopper | median normalized score |"
    # Seeds 0, 1, 2 took 4, 5, 6 minutes.
    assert "| random | 100 | 1000 | 0.00 |" in lines
    assert any(
        line.startswith("| iq | 300 (300, 100, 500), 5 min |")
        and line.endswith("| 0.67 |")
        for line in lines
    )
    assert any(
        line.startswith("| iq-plain | 250, 4 min |  |") and line.endswith("| 0.50 |")
        for line in lines
    )
    assert any(
        line.startswith("| sac | 400 (500, 300, 400), 5 min |")
        and line.endswith("| 1.00 |")
        for line in lines
    )


def test_figure(curves, tmp_path):
    report.draw(report.load(curves), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_interval_is_the_spread_of_the_mean():
    """Of 4 values 0 and 4 values 2, the mean is 1 with deviation 1 / sqrt(8)."""
    values = np.stack([np.array([0, 0, 0, 0, 2, 2, 2, 2.0]), np.full(8, 5.0)], 1)
    low, high = report.interval(values)
    np.testing.assert_allclose(low, [1 - 1.96 / 8**0.5, 5], atol=0.2)
    np.testing.assert_allclose(high, [1 + 1.96 / 8**0.5, 5], atol=0.2)


def test_no_curves(tmp_path):
    with pytest.raises(ValueError, match=r"--curves .*learning_curves\.py writes"):
        report.load(tmp_path)
