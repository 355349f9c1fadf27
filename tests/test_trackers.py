"""Services that keep runs: a stand-in here; the services themselves in slow tests."""

import importlib
import json
import os
import struct
import subprocess
import sys
import types

import pytest

from iqmjx.errors import UsageError
from iqmjx.registry import NotFoundError
from iqmjx.run import metrics
from tests import toys

PACKAGES = {"wandb": "wandb_run", "trackio": "trackio_run"}


class Service(types.ModuleType):
    """What both packages offer: init() returns a run that takes rows at their steps."""

    def __init__(self, name):
        super().__init__(name)
        self.begun, self.rows = [], []

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.rows.append("finished")


@pytest.fixture(params=PACKAGES)
def service(request, monkeypatch):
    """A package in place of the real one, whether or not that is installed."""
    fake = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    forget(monkeypatch, request.param)
    return fake


def forget(monkeypatch, package):
    module = f"iqmjx.run.trackers.{PACKAGES[package]}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr(f"iqmjx.run.trackers.{PACKAGES[package]}", raising=False)


def open_log(service, folder, resume_at=None):
    config = toys.config(loggers=(service.__name__,))
    return metrics.MetricsLog(folder, config, resume_at, pytest.fail)


def test_a_resume_goes_on_with_the_tracked_run_and_tells_nothing_twice(
    service, tmp_path
):
    first = open_log(service, tmp_path)
    first.write(32, {"a": 1.0})
    first.write(64, {"a": 2.0, "b": float("nan")})
    first.write(64, {"eval/a": 3.0})
    first.close()
    again = open_log(service, tmp_path, resume_at=32)
    again.write(64, {"a": 2.0})  # may have come but in part
    again.write(96, {"a": 4.0})
    again.close()
    third = open_log(service, tmp_path, resume_at=metrics.BEGINNING)
    third.write(32, {"a": 1.0})
    third.write(64, {"a": 2.0})
    third.close()
    sent = [(32, {"a": 1.0}), (64, {"a": 2.0}), (64, {"eval/a": 3.0}), "finished"]
    sent += [(64, {"a": 2.0}), (96, {"a": 4.0}), "finished", "finished"]
    assert service.rows == sent
    names = {options["name"] for options in service.begun}
    (name,) = names  # of all three
    assert name.startswith("hopper-iq-0-")
    for options in service.begun:
        assert options["resume"] == "allow" and options["project"] == "iqmjx"
        assert options["config"]["num_envs"] == 8


def test_every_run_has_a_name_of_its_own(service, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_log(service, tmp_path / name).close()
    assert len({options["name"] for options in service.begun}) == 2


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_missing_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    forget(monkeypatch, package)
    fix = rf"pip install 'iqmjx\[{package}\]'"
    told = rf"^--loggers {package}: {package} is not installed: {fix}$"
    with pytest.raises(NotFoundError, match=told) as error:
        metrics.find_loggers(toys.config(loggers=(package,)))
    assert isinstance(error.value, UsageError)


ROWS = {32: {"a": 1.0}, 64: {"a": 2.0}, 96: {"a": 3.0}}
TWO_PROCESSES = """
import sys
from pathlib import Path
from iqmjx.run import metrics
from tests import toys, test_trackers
folder, package, last, resume_at = sys.argv[1:]
resume_at = int(resume_at) or None
log = metrics.MetricsLog(Path(folder), toys.config(loggers=(package,)), resume_at)
for step, row in test_trackers.ROWS.items():
    if (resume_at or 0) < step <= int(last):
        log.write(step, row)
log.close()
"""


def track(folder, package, **environment):
    """Two rows, then a resume at the first and the other two; each in a process."""
    for last, resume_at in ((64, 0), (96, 32)):
        arguments = [str(folder), package, str(last), str(resume_at)]
        subprocess.run(
            [sys.executable, "-c", TWO_PROCESSES, *arguments],
            env=os.environ | environment,
            check=True,
        )


def log_records(data):
    """The records of a .wandb file: LevelDB's log format, after 7 bytes of its own."""
    place, whole = 7, b""
    while place < len(data):
        if (left := -place % 2**15) < 7:  # no header fits into the rest of a block
            place += left
        length, kind = struct.unpack_from("<HB", data, place + 4)  # after a checksum
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_keeps_the_rows_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    track(tmp_path, "wandb", WANDB_MODE="offline")
    name = json.loads((tmp_path / "wandb.json").read_text())["name"]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    assert len(files) == 2  # one for each process, of the same run
    kept = {}
    for path in files:
        for data in log_records(path.read_bytes()):
            record = pb.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert (record.run.run_id, record.run.project) == (name, "iqmjx")
            elif kind == "history":
                items = record.history.item
                row = {(i.key or i.nested_key[0]): i.value_json for i in items}
                kept[int(row["_step"])] = {"a": float(row["a"])}
    assert kept == ROWS


@pytest.mark.slow
def test_trackio_keeps_the_rows_on_this_machine(tmp_path):
    pytest.importorskip("trackio")
    run = tmp_path / "run"
    run.mkdir()
    track(run, "trackio", TRACKIO_DIR=str(tmp_path / "kept"))
    name = json.loads((run / "trackio.json").read_text())["name"]
    script = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"print(json.dumps([S.get_runs('iqmjx'), S.get_logs('iqmjx', {name!r})]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "kept")},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    runs, logs = json.loads(told.splitlines()[-1])
    assert runs == [name]
    assert {log["step"]: {"a": log["a"]} for log in logs} == ROWS
