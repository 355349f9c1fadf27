"""launch/jobset.yaml: its parts agree, and its script does right by a stand-in."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

MANIFEST = Path(__file__).parents[1] / "launch" / "jobset.yaml"

# Writes down its arguments, takes 64 of 128 steps, or all of them when STOP is not set.
STAND_IN = """#!/usr/bin/env bash
echo "$@" > "$LOGDIR/arguments"
trap 'stopped=1' TERM
touch "$LOGDIR/ready"
while [[ -n ${STOP:-} && -z ${stopped:-} ]]; do sleep 0.05; done
echo '{"config": {"num_timesteps": 128}}' > "$LOGDIR/config.json"
echo "{\\"env_steps\\": $((stopped ? 64 : 128))}" >> "$LOGDIR/metrics.jsonl"
exit ${CODE:-0}
"""


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load(MANIFEST.read_text())


@pytest.fixture(scope="module")
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    (container,) = job["template"]["spec"]["containers"]
    return container


def test_the_coordinator_is_the_first_pod(jobset, container):
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    pod = f"{jobset['metadata']['name']}-{replicated['name']}-0-0"
    host, port = flags(container)["coordinator"].split(":")
    assert host == f"{pod}.{jobset['spec']['network']['subdomain']}"
    assert [p["containerPort"] for p in container["ports"]] == [int(port)]
    assert jobset["spec"]["network"]["enableDNSHostnames"]


def test_every_pod_is_one_process_with_one_device(job, container):
    count = int(flags(container)["num_processes"])
    assert job["completions"] == job["parallelism"] == count
    assert job["completionMode"] == "Indexed"
    assert flags(container)["process_id"] == "$(JOB_COMPLETION_INDEX)"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_a_stop_restarts_all_processes_and_is_not_counted(jobset, job, container):
    policy = jobset["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    disruption, code = job["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert code["onExitCodes"]["containerName"] == container["name"]
    assert {disruption["action"], code["action"]} == {"FailJob"}
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_every_mount_is_a_volume_and_the_run_is_on_one(job, container):
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes == set(mounts)
    (logdir,) = [e["value"] for e in container["env"] if e["name"] == "LOGDIR"]
    assert Path(logdir).parent == Path(mounts["runs"])


def test_a_pod_trains_to_the_end(container, tmp_path):
    process = start(container, tmp_path)
    assert process.wait(20) == 0
    assert "-m iqmjx.train --resume --coordinator=" in arguments(tmp_path)
    assert "--env" in arguments(tmp_path)  # without which --resume begins no run


def test_a_pod_that_is_stopped_saves_and_says_so_then_goes_on(container, tmp_path):
    process = start(container, tmp_path, STOP="1")
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    again = start(container, tmp_path)
    assert again.wait(20) == 0
    assert arguments(tmp_path).endswith(f"--logdir {tmp_path}")


def test_a_pod_that_fails_passes_its_exit_code_on(container, tmp_path):
    assert start(container, tmp_path, CODE="2").wait(20) == 2


def start(container, folder, **environment):
    """Runs the container's command with a stand-in for Python."""
    stand_in = folder / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | environment | {"LOGDIR": str(folder), "PATH": path}
    command = container["command"] + container["args"]
    return subprocess.Popen(command, env=environment)


def arguments(folder):
    return (folder / "arguments").read_text().strip()


def flags(container):
    return dict(arg.removeprefix("--").split("=", 1) for arg in container["args"])
