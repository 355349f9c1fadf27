"""Rows on disk: whole, damaged, and where they cannot be written."""

import errno
import json
import os
import time
from typing import ClassVar

import pytest

from iqmjx.errors import RunError
from iqmjx.run import metrics
from tests import toys

ROWS = [{"env_steps": 32 * i, "training/loss": i / 2} for i in range(5)]


class Failing:
    """A logger that fails for as long as the disk is full."""

    full = True
    rows: ClassVar[list] = []

    def __init__(self, folder, config, resume_at):
        self.rows.clear()

    def write(self, env_steps, row):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.rows.append(env_steps)

    def close(self):
        pass


def log(folder, warn=None, resume_at=None, loggers=()):
    def unexpected(text):
        raise AssertionError(text)

    config = toys.config(loggers=loggers)
    return metrics.MetricsLog(folder, config, resume_at, warn or unexpected)


def lines(folder):
    return (folder / metrics.FILE).read_bytes().split(b"\n")[:-1]


@pytest.fixture
def written(tmp_path):
    to = log(tmp_path)
    for row in ROWS:
        to.write(row["env_steps"], {"training/loss": row["training/loss"]})
    to.close()
    return tmp_path


def test_rows_come_back(written):
    assert metrics.read(written) == ROWS
    assert metrics.read(written / "nowhere") == []


DAMAGED = {
    "cut": b'{"env_steps": 64, "train',
    "bytes": b"\xff\xfe\x00",
    "a list": b"[64]",
    "no steps": b'{"training/loss": 1.0}',
    "steps of another type": b'{"env_steps": "64"}',
    "zeros": bytes(40),
    "brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_damaged_line_costs_itself_and_is_named(written, kind, place):
    damaged = lines(written)
    damaged[place] = DAMAGED[kind]
    (written / metrics.FILE).write_bytes(b"\n".join(damaged) + b"\n")
    told = []
    assert metrics.read(written, told.append) == ROWS[:place] + ROWS[place + 1 :]
    (line,) = told
    assert f"{metrics.FILE}: line {place + 1} is damaged" in line
    # A resume leaves it out for good.
    log(written, told.append, resume_at=96).close()
    assert len(told) == 2
    kept = [row for row in ROWS if row["env_steps"] <= 96 and row != ROWS[place]]
    assert metrics.read(written) == kept


def test_a_resume_at_the_beginning_keeps_nothing(written):
    log(written, resume_at=metrics.BEGINNING).close()
    assert metrics.read(written) == []


def test_numbers_that_are_not_finite_become_null(tmp_path):
    to = log(tmp_path)
    to.write(0, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    (line,) = lines(tmp_path)
    assert json.loads(line) == {"env_steps": 0, "a": None, "b": None, "c": 1.0}


def test_a_full_disk_costs_rows_and_is_said_once(tmp_path, monkeypatch):
    told, really, room = [], os.write, [9]  # bytes that the disk still takes
    to = log(tmp_path, told.append)
    to.write(0, {"a": 1.0})

    def full(file, data):
        if room:
            return really(file, data[: room.pop()])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    to.write(32, {"a": 2.0})
    to.write(64, {"a": 3.0})
    assert told == ["warning: metrics.jsonl cannot be written: No space left on device"]
    monkeypatch.setattr(os, "write", really)
    to.write(96, {"a": 4.0})
    to.close()
    assert [row["env_steps"] for row in metrics.read(tmp_path, told.append)] == [0, 96]
    assert "line 2 is damaged" in told[1]


def test_a_logger_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    told = []
    to = log(tmp_path, told.append, loggers=(f"{__name__}:Failing",))
    to.write(0, {"a": 1.0})
    to.write(32, {"a": 1.0})
    name = f"{__name__}:Failing"
    assert told == [f"warning: {name} cannot be written: No space left on device"]
    monkeypatch.setattr(Failing, "full", False)
    to.write(64, {"a": 1.0})
    to.close()
    assert Failing.rows == [64] and len(metrics.read(tmp_path)) == 3


class Broken(Failing):
    """A logger with a bug."""

    def write(self, env_steps, row):
        if self.full:
            row["loss"]


def test_a_logger_with_a_bug_does_not_end_the_run(tmp_path, monkeypatch):
    told = []
    name = f"{__name__}:Broken"
    to = log(tmp_path, told.append, loggers=(name,))
    to.write(0, {"a": 1.0})
    to.write(32, {"a": 1.0})
    (line,) = told
    assert line.startswith(f"warning: {name} cannot be written: KeyError: 'loss' (")
    assert f"{__file__}, line " in line
    monkeypatch.setattr(Broken, "full", False)
    to.write(64, {"a": 1.0})
    monkeypatch.setattr(Broken, "full", True)
    to.write(96, {"a": 1.0})  # a new failure is told again
    to.close()
    assert told == [line, line] and len(metrics.read(tmp_path)) == 4


class Closed:
    """A logger that cannot be opened, as one of a service that is away."""

    def __init__(self, folder, config, resume_at):
        raise ConnectionError("no answer\nfrom the service")

    write = Failing.write
    close = Failing.close


def test_a_logger_that_cannot_be_opened_is_named_in_one_line(tmp_path):
    name = f"{__name__}:Closed"
    told = f"^--loggers {name}: it cannot be opened: ConnectionError: no answer from"
    with pytest.raises(RunError, match=told) as error:
        log(tmp_path, loggers=(name,))
    assert "\n" not in str(error.value)


def test_tensorboard_shows_what_was_written_and_drops_what_comes_again(tmp_path):
    """A reader drops, at a session's start, what has its step or a later one."""
    from tensorboardX.proto import event_pb2

    first = log(tmp_path, loggers=("tensorboard",))
    for row in ROWS:
        first.write(row["env_steps"], {"training/loss": row["training/loss"]})
    first.close()
    time.sleep(1.1)  # a file's name has its second
    again = log(tmp_path, resume_at=64, loggers=("tensorboard",))
    again.write(96, {"training/loss": 9.0})
    again.close()
    shown = {}
    for path in sorted(tmp_path.glob("events*")):
        for record in records(path.read_bytes()):
            event = event_pb2.Event.FromString(record)
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {s: v for s, v in shown.items() if s < event.step}
            for value in event.summary.value:
                shown[event.step] = value.tag, value.simple_value
    losses = {0: 0.0, 32: 0.5, 64: 1.0, 96: 9.0}
    assert shown == {step: ("training/loss", loss) for step, loss in losses.items()}


def records(data):
    """TFRecords: a length, its checksum, the bytes, theirs."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]
