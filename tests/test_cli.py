"""The commands as a user runs them, each in its own process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import jax
import pytest
from absl import flags
from PIL import Image

from iqmjx import command_line, cpu, envs
from iqmjx.commands import cli
from iqmjx.run import gymnasium_play, metrics
from tests import commands, toys

SETTINGS = [f"--{name}={value}" for name, value in toys.SMALL.items()]
SETTINGS = [s.replace("(16, 16)", "16,16") for s in SETTINGS]


def command(name, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", f"iqmjx.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def assert_refused(result, *words):
    """Exit code 2 and one line on stderr that begins with `error:`."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = command("train", *SETTINGS, "--logdir", folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_train_reports_settings_memory_compile_time_and_returns(run):
    folder, output = run
    assert "batch_size" in output and "flag" in output and "default" in output
    assert "memory: replay" in output and "compiled the training step in" in output
    assert "evaluation: return" in output and "env steps/s" in output
    assert (folder / "config.json").exists() and list(folder.glob("events*"))
    assert metrics.read(folder)[-1]["env_steps"] == 192


def test_the_glossary_has_every_metric(run):
    page = Path(__file__).parents[1] / "docs" / "metrics.md"
    known = set(re.findall(r"`([\w/.]+)`", page.read_text()))
    told = {name for row in metrics.read(run[0]) for name in row} - {"env_steps"}
    assert {name for name in told - known if not name.startswith("task/")} == set()


JOIN = "--coordinator=localhost:65536 --num_processes=2 --process_id=0"


BAD_INPUT = [
    ("train", "--env humanoyd", "--env humanoyd", "humanoid"),
    ("train", "--env CartPole-v1", "--env CartPole-v1", "hopper, walker2d"),
    ("train", "--env Humanoid-v4", "--env Humanoid-v4", "Humanoid-v5"),
    ("train", "--env AdroitHandDoor-v3", "there is AdroitHandDoor-v2"),
    ("train", "--env hopper --num_envs 100", "--num_envs 100", "such as 32700"),
    ("train", "--enb hopper", "--enb: ", "did you mean --env?"),
    ("train", "--lr 1", "--lr: ", "did you mean --learning_rate"),
    ("train", "--gamma 1", "--gamma: ", "did you mean --discounting?"),
    ("train", "--tau=1", "--tau: ", "--temperature"),
    ("train", "--n-envs 5", "--n-envs: ", "--num_envs"),
    ("train", "--nolayernorm", "--nolayernorm: ", "did you mean --layer_norm?"),
    ("train", "--log_dir here", "--log_dir: ", "did you mean --logdir?"),
    ("train", "--verbosity 1", "--verbosity: there is no such flag"),
    ("train", "--num_envs many", "--num_envs many: give a whole number"),
    ("train", "--num_envs 1.5", "--num_envs 1.5: give a whole number"),
    ("train", "--num_envs 1e999999999999", "give a whole number"),
    ("train", "--env hopper --seed", "seed"),
    ("train", "--hidden_sizes 256,wide", "--hidden_sizes 256,wide"),
    ("train", "hopper", "unexpected argument 'hopper'"),
    ("train", f"--env hopper --max_replay_size {2**40}", "--max_replay_size"),
    ("train", "--resume", "--resume", "--logdir"),
    ("train", "--loggers csv", "--loggers csv", "tensorboard, wandb, trackio"),
    ("train", f"--env hopper --logdir {__file__}", "--logdir", "it is a file"),
    ("train", f"--resume --logdir {__file__}", "--logdir", "it is a file"),
    ("train", "--env hopper --logdir=", "--logdir", "give a folder"),
    ("train", JOIN, "--coordinator localhost:65536", "host:port"),
    ("evaluate", "", "--checkpoint"),
    ("evaluate", "nowhere", "--checkpoint", "no saved policy"),
    ("evaluate", "--checkpoint RUN RUN", "unexpected argument"),
    ("evaluate", "--checkpoint nowhere", "--checkpoint", "no saved policy"),
    ("evaluate", "--checkpoint RUN --episodes 0", "--episodes 0"),
    ("evaluate", f"--checkpoint RUN --episodes {2**31}", "--episodes", "from 1"),
    ("evaluate", "--checkpoint RUN --seed -1", "--seed -1: ", "from 0"),
    ("evaluate", "--checkpoint RUN --sim bullet", "sim", "bullet"),
    ("evaluate", "--checkpoint RUN --video a.avi", "--video a.avi", ".mp4"),
    ("evaluate", "--checkpoint RUN --video=", "--video ''", ".mp4"),
    ("evaluate", "--checkpoint RUN --video /dev/null/a.mp4", "--video /dev/null"),
    ("play", "", "--checkpoint"),
    ("play", "--checkpoint=", "--checkpoint"),
    ("play", "--checkpoint RUN, --video a.mp4", "--checkpoint ''"),
    ("play", "--checkpoint RUN,nowhere --video a.mp4", "nowhere", "no saved policy"),
    ("play", "--checkpoint RUN --video a.avi", "--video a.avi", ".mp4 or .gif"),
    ("play", "--checkpoint RUN --video=", "--video ''", ".mp4 or .gif"),
    ("play", "--checkpoint RUN --video /dev/null/a.mp4", "--video /dev/null"),
    ("play", "--checkpoint RUN --video a.mp4 --episodes 0", "--episodes 0: give"),
    ("play", "--checkpoint RUN --seconds 0", "--seconds 0.0: give", "above 0"),
    ("play", "--checkpoint RUN --seconds nan", "--seconds nan: give"),
    ("play", "--checkpoint RUN --episodes 1 --seconds 1", "--episodes, --seconds"),
    ("play", "--checkpoint RUN --width 481", "--width 481", "such as 482"),
    ("play", "--checkpoint RUN --height 8", "--height 8: give", "from 64 to 4096"),
    ("play", "--checkpoint RUN --fps 0.5", "--fps 0.5: give", "from 1 to 240"),
    ("play", "--checkpoint RUN --seed -1", "--seed -1: give", "from 0"),
    ("play", "--checkpoint RUN --sim bullet", "--sim bullet", "gymnasium"),
    ("export", "", "--checkpoint"),
    ("export", "--checkpoint nowhere", "--checkpoint", "no saved policy"),
    ("export", "--checkpoint RUN --format keras", "--format keras", "stablehlo"),
    ("export", "--checkpoint RUN --out a/policy.npz", "--out a/policy.npz", ".onnx"),
    ("benchmark", "SETTINGS --sweep 8,²", "--sweep ²"),
    ("benchmark", "SETTINGS --sweep 8,0", "--sweep 0: --num_envs 0: give"),
]


@pytest.fixture(scope="module")
def refusals(run, tmp_path_factory):
    """The answers to BAD_INPUT, given in an empty folder, and that folder."""
    places = {"RUN": str(run[0]), "SETTINGS": " ".join(SETTINGS)}
    lines = [
        (name, re.sub("RUN|SETTINGS", lambda found: places[found[0]], line).split())
        for name, line, *_ in BAD_INPUT
    ]
    folder = tmp_path_factory.mktemp("empty")
    return commands.outcomes(lines, cwd=folder, env=environment()), folder


@pytest.mark.parametrize(
    ("index", "words"),
    [(index, words) for index, (_, _, *words) in enumerate(BAD_INPUT)],
)
def test_bad_input_is_refused(refusals, index, words):
    answers, folder = refusals
    assert_refused(answers[index], *words)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("ask", ["--help", "-h", "--helpfull"])
def test_help_tells_the_settings_of_the_run_that_is_described(ask, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    asked = ["--env", "walker2d-v5", "--algo=m_iq", "--preset=cpu", ask]
    code, said = commands.printed("train", asked)
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    words = " ".join(said.split())
    for flag in ("--env NAME", "--logdir PATH", "--[no]layer_norm", "--num_envs N"):
        assert flag in words
    assert "[walker2d: flag; default humanoid]" in words
    assert "[0.9: algo m_iq]" in words
    assert "[131072: preset cpu, task walker2d; default 1048576]" in words
    assert not re.search("absl|chex|orbax|--log_dir|--pdb", words)


def test_help_shows_what_the_algorithm_has(monkeypatch):
    _, said = commands.printed("train", ["--algo", "sac", "--help"])
    assert "--temperature" in said and "--munchausen" not in said
    assert "--policy" not in said


def test_help_is_there_however_wrong_the_rest_is():
    code, said = commands.printed("train", ["--num_envs", "many", "--help"])
    assert code == 0 and "--num_envs N" in said


@pytest.mark.parametrize("name", sorted(commands.COMMANDS))
def test_every_command_has_help(name):
    code, said = commands.printed(name, ["--help"])
    assert code == 0 and f"usage: iqmjx {name}" in said


def test_numbers_and_paths_are_read_as_people_write_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    own = flags.FlagValues()
    command_line.settings(own, [])
    folder = command_line.path(own, "logdir", None, "")
    written = ["--num_timesteps=1e6", "--num_envs=1_024", "--seed=2.0"]
    command_line.parse(own, [*written, "--logdir=~/runs"])
    given = {"num_timesteps": 1_000_000, "num_envs": 1024, "seed": 2}
    assert command_line.given_settings(own) == given
    assert folder.value == "/home/someone/runs"


def test_the_program_lists_its_commands():
    lists = [sys.executable, "-m", "iqmjx"]
    for line in ([], ["--help"]):
        done = subprocess.run([*lists, *line], capture_output=True, text=True)
        assert done.returncode == 0
        for name in commands.COMMANDS:
            assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)
    wrong = subprocess.run([*lists, "trian"], capture_output=True, text=True)
    assert_refused(wrong, "trian", "did you mean train?")


def test_tasks_are_listed_with_their_sizes():
    code, said = commands.printed("tasks", ["--json"])
    listed = json.loads(said)
    tasks = {row["env"]: row for row in listed["tasks"]}
    assert code == 0 and tasks.keys() == envs.REGISTRY.keys()
    for row in tasks.values():
        if row["gymnasium"] in gymnasium.registry:
            twin = gymnasium_play.make(envs.task_class(row["env"]))
            assert (row["obs"],) == twin.observation_space.shape
            assert (row["act"],) == twin.action_space.shape
            assert row["steps"] == twin.spec.max_episode_steps
    assert "mjx" in tasks["hopper"]["engines"] and "mjx" not in tasks["pen"]["engines"]


def test_bad_input_ends_a_process_with_one_line(tmp_path):
    result = command("train", "--env", "humanoyd", cwd=tmp_path, env=environment())
    assert_refused(result, "--env humanoyd", "humanoid")


@pytest.mark.slow
def test_a_package_called_envs_in_the_working_directory_is_left_alone(tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    folder = tmp_path / "run"
    short = [s for s in SETTINGS if "num_evals" not in s] + ["--num_evals=0"]
    trained = command("train", *short, "--logdir", folder, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    played = command("evaluate", "--checkpoint", folder, "--episodes", 1, cwd=tmp_path)
    assert played.returncode == 0, played.stderr


def environment():
    root = Path(__file__).parents[1]
    return os.environ | {"PYTHONPATH": str(root)}


def test_train_refuses_an_existing_run_folder_and_leaves_it_alone(run):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert_refused(
        command("train", *SETTINGS, "--logdir", folder), "--logdir", "--resume"
    )
    conflict = command(
        "train", "--resume", "--logdir", folder, "--learning_rate", "0.1"
    )
    assert_refused(conflict, "learning_rate was 0.0003, given 0.1")
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before == after


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loggers", ["paper"], "config.json: loggers paper: choose one of"),
        ("num_timesteps", 64, "config.json: num_timesteps 64: .* give at least 192"),
    ],
)
def test_what_a_run_s_file_says_is_not_blamed_on_a_flag(run, name, value, message):
    path = run[0] / "config.json"
    before = path.read_text()
    content = json.loads(before)
    del content["digest"]
    content["config"][name] = value
    path.write_text(json.dumps(content))
    result = command("train", "--resume", "--logdir", run[0])
    path.write_text(before)
    assert result.returncode == 2 and re.search(message, result.stderr), result.stderr
    assert "--" not in result.stderr


def test_a_resume_that_does_not_fit_its_state_leaves_the_run_s_file_as_it_is(
    run, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["config"]["algorithm"]["hidden_sizes"] = [16]
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    result = command("train", "--resume", "--logdir", folder)
    assert result.returncode == 1 and "with other settings" in result.stderr
    assert path.read_bytes() == before


def test_resume_needs_a_run_or_the_task_to_begin_one_with(tmp_path):
    nothing = command("train", "--resume", "--logdir", tmp_path / "run")
    assert_refused(nothing, "there is no run in --logdir", "--env")
    (tmp_path / "notes.txt").touch()
    other = command("train", "--resume", "--logdir", tmp_path, *SETTINGS)
    assert_refused(other, "not a run folder")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_of_a_finished_run_compiles_nothing(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    again = command("train", "--resume", "--logdir", folder)
    assert again.returncode == 0, again.stderr
    assert "has taken its 192 env steps already" in again.stdout
    assert "compiled" not in again.stdout and "done;" in again.stdout
    fewer = command("train", "--resume", "--logdir", folder, "--num_timesteps", 96)
    assert_refused(fewer, "--num_timesteps 96", "give at least 192")
    assert rows_of(folder) == rows_of(run[0])


def rows_of(folder):
    return (folder / metrics.FILE).read_text()


@pytest.mark.parametrize(
    "arguments", [SETTINGS, pytest.param(["--resume"], marks=pytest.mark.slow)]
)
def test_of_two_processes_in_one_folder_one_runs(run, tmp_path, arguments):
    folder = tmp_path / "run"
    if arguments == ["--resume"]:
        shutil.copytree(run[0], folder)
        arguments = ["--resume", "--num_timesteps", "224"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "iqmjx.train", *arguments, "--logdir", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=300), process.returncode) for process in both]
    (_, error, code), (_, refusal, other_code) = sorted(ends, key=lambda end: end[2])
    assert (code, other_code) == (0, 2), error
    assert len(refusal.strip().splitlines()) == 1 and "--logdir" in refusal
    steps = [row["env_steps"] for row in metrics.read(folder) if "training/sps" in row]
    assert steps == list(range(32, steps[-1] + 1, 32))


def test_a_run_goes_on_when_its_reader_goes_away(tmp_path):
    folder = tmp_path / "run"
    result = subprocess.run(
        f"{sys.executable} -m iqmjx.train {' '.join(SETTINGS)} --logdir {folder} "
        f"| head -3; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert metrics.read(folder)[-1]["env_steps"] == 192


BUG = """
from iqmjx.envs.locomotion.hopper import Hopper

class Buggy(Hopper):
    def observe(self, state):
        raise ValueError("a bug in here")
"""


def test_an_error_in_a_users_task_shows_where_it_is(tmp_path):
    (tmp_path / "buggy.py").write_text(BUG)
    rest = [s for s in SETTINGS if "--env" not in s]
    result = command(
        "train", "--env=buggy:Buggy", *rest, cwd=tmp_path, env=environment()
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "a bug in here" in result.stderr
    assert "in observe" in result.stderr


def test_text_in_a_config_file_is_printed_as_text(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["sources"]["seed"] = "[bold]here[/bold] \x1b[2J"
    path.write_text(json.dumps(content))
    result = command("train", "--resume", "--logdir", folder)
    assert result.returncode == 0, result.stderr
    assert "[bold]here[/bold] \\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout


RICH = """
from iqmjx.envs.locomotion.hopper import Hopper

class Rich(Hopper):
    def judge(self, *told):
        reward, terminated, metrics = super().judge(*told)
        return reward * 1e25, terminated, metrics  # its square is no float32
"""


def test_training_that_diverges_stops_and_keeps_what_was_saved(tmp_path):
    (tmp_path / "wealth.py").write_text(RICH)
    folder = tmp_path / "run"
    rest = [s for s in SETTINGS if "--env" not in s]
    flags = ["--env=wealth:Rich", *rest, "--logdir", folder]
    result = command("train", *flags, cwd=tmp_path, env=environment())
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: training of seed 0 diverged between ")
    assert "--learning_rate" in line
    last = metrics.read(folder)[-1]
    assert last["training/loss"] is None and last["env_steps"] < 192
    assert not list((folder / "checkpoints").iterdir())
    assert not list((folder / "policy").iterdir())


def test_a_signal_saves_and_the_run_can_go_on(tmp_path):
    folder = tmp_path / "run"
    long = [s for s in SETTINGS if "num_timesteps" not in s]
    process = subprocess.Popen(
        [sys.executable, "-m", "iqmjx.train", *long]
        + ["--num_timesteps=100000000", "--logdir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and len(metrics_rows(folder)) < 4:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "state saved" in output and "--resume" in output
    taken = metrics_rows(folder)[-1]["env_steps"]
    assert [int(p.name) for p in (folder / "checkpoints").iterdir()] == [taken]
    more = command(
        "train", "--resume", "--logdir", folder, "--num_timesteps", taken + 32
    )
    assert more.returncode == 0, more.stderr
    assert metrics_rows(folder)[-1]["env_steps"] == taken + 32


def metrics_rows(folder):
    path = folder / metrics.FILE
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # the last one may not be whole yet
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("sim", ["gymnasium", "native"])
def test_evaluate_prints_one_json_object(run, sim):
    folder, _ = run
    result = command(
        "evaluate", "--checkpoint", folder, "--sim", sim, "--episodes", 3, "--json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["env"] == "Hopper-v5" and report["sim"] == sim
    assert report["episodes"] == 3 == len(report["returns"])
    assert report["min"] <= report["mean"] <= report["max"] and report["std"] >= 0
    assert report["mean_length"] > 1 and report["env_steps"] == 192


def test_evaluate_samples_and_takes_one_step(run):
    folder, _ = run
    step = next((folder / "policy").iterdir())
    result = command(
        "evaluate", "--checkpoint", step, "--episodes", 2, "--nodeterministic"
    )
    assert result.returncode == 0, result.stderr
    assert f"trained for {int(step.name):,} env steps" in result.stdout


def test_a_video_without_gl_is_refused_in_one_line(run, tmp_path):
    without = environment() | {"MUJOCO_GL": "glfw", "DISPLAY": ""}
    video = tmp_path / "a.mp4"
    result = command("evaluate", "--checkpoint", run[0], "--video", video, env=without)
    assert_refused(result, "--video", "MUJOCO_GL=glfw", "unset it")
    assert not video.exists()


def test_play_shows_checkpoints_side_by_side(run, tmp_path):
    folder, _ = run
    both = f"{folder},{next((folder / 'best').iterdir())}"
    size = "--width 80 --height 64 --seconds 0.5 --fps 10"
    line = f"--checkpoint {both} --video {tmp_path / 'a.gif'} {size}"
    code, out, said = commands.outcome("play", line.split())
    if "MuJoCo cannot render" in said:
        pytest.skip("no GL library")
    assert code == 0, said
    assert "run: return" in out and "run/best: return" in out
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (160, 64) and gif.n_frames == 5


def test_all_commands_can_be_imported_into_one_process():
    names = "train, evaluate, play, benchmark, report, tabular"
    script = f"from iqmjx.commands import {names}; print(train.FLAGS is not None)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_programs_are_kept_apart_by_what_the_cpu_can_do(tmp_path, monkeypatch):
    folders = []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", lambda _, value: folders.append(value))
    for line in ("flags: avx2", "flags: avx2 amx_bf16", "Features: asimd", "none"):
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor: 0\n{line}\n")
        monkeypatch.setattr(cpu, "_INFO", info)
        cli.use_compilation_cache()
    assert len(set(folders)) == 4
    assert all(folder.startswith(f"{tmp_path}/iqmjx/xla-") for folder in folders)


def test_benchmark_prints_one_json_object():
    result = command("benchmark", *SETTINGS, "--rounds", 1, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    for key in (
        "compile_seconds",
        "env_steps_per_second",
        "physics_steps_per_second",
        "acting_env_steps_per_second",
        "updates_only_per_second",
        "samples_per_second",
        "rollout_ratio",
        "peak_memory_bytes",
    ):
        assert report[key] > 0, key
    ideal = 1 / (
        8 / report["physics_only_env_steps_per_second"]
        + 2 / report["updates_only_per_second"]
    )
    rate = report["env_steps_per_second"] / 8
    assert report["efficiency"] == pytest.approx(rate / ideal)
    assert report["physics"] == "native" and report["versions"]["mujoco"]
    assert report["replay_ratio"] == 2 * 16 / 8


@pytest.mark.parametrize("name", ["train", "evaluate", "benchmark"])
def test_a_renderer_that_there_is_not_is_refused_in_one_line(name):
    result = command(name, env=environment() | {"MUJOCO_GL": "paint"})
    assert_refused(result, "MUJOCO_GL", "paint")
