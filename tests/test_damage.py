"""A run folder damaged in one place: what is read of it is right, or refused."""

import json
import random
import shutil

import chex
import jax
import pytest

from iqmjx import loop
from iqmjx.run import checkpoint, metrics, run_folder, saved_policy, trainer
from tests import toys
from tests.test_checkpoint import CHUNK, start
from tests.test_cli import command

DAMAGES, BY_COMMANDS = 400, 24
KINDS = ("flip", "truncate", "remove", "zero")


def damage(path, kind, draw):
    """Damages one file, and says how."""
    data = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
        return "removed"
    if kind == "truncate":
        length = draw.randrange(len(data))
        path.write_bytes(data[:length])
        return f"cut to {length} of {len(data)} bytes"
    if kind == "zero":
        path.write_bytes(bytes(len(data)))
        return "filled with zeros"
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} flipped"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run, its setup, and what it holds by kind and step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = start(folder)
    trainer.train(config, folder)
    setup = loop.make_setup(config)
    held = {("config.json", 0): run_folder.load(folder)}
    for name in ("checkpoints", "policy", "best"):
        for path in (folder / name).iterdir():
            alone = folder.with_name("alone")
            shutil.copytree(path, alone / name / path.name)
            held[name, int(path.name)] = read(name, alone, setup)[1]
            shutil.rmtree(alone)
    return folder, setup, held


def read(name, folder, setup):
    """The step read of one kind of them, what it holds, and what was told."""
    if name == "checkpoints":
        step, state, told = checkpoint.restore(folder, setup)
        return step, toys.comparable(state), told
    saved = saved_policy.load(folder / name)
    return saved.env_steps, (saved.config, saved.actor), saved.unreadable


def read_all(folder, setup, held):
    """Reads all that a resume and an evaluation read; names what was noticed."""
    noticed = []
    try:
        resolved = run_folder.load(folder)
        assert resolved == held["config.json", 0], "other settings, in silence"
    except ValueError as error:
        noticed.append(str(error))
    for name in ("checkpoints", "policy", "best"):
        try:
            step, found, told = read(name, folder, setup)
        except ValueError as error:
            noticed.append(str(error))
            continue
        chex.assert_trees_all_equal(found, held[name, step])
        newest = max(s for kind, s in held if kind == name)
        assert step == newest or told, f"{name}: step {step} was read in silence"
        noticed += told
    log = metrics.MetricsLog(folder, setup.config, 192, noticed.append)
    log.close()
    store = saved_policy.PolicyStore(folder, setup.config, (11, 3))
    store.close()
    noticed += store.unreadable
    assert all("\n" not in line for line in noticed), noticed
    return noticed


@pytest.mark.slow
def test_single_damages_are_noticed_or_do_no_harm(whole, tmp_path):
    folder, setup, held = whole
    draw = random.Random(0)
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    # As many of each kind of file, whether a kind has one or fifty.
    kinds = sorted({kind_of(path) for path in files})
    unnoticed = []
    for count in range(DAMAGES):
        kind = kinds[count % len(kinds)]
        path = draw.choice(sorted(f for f in files if kind_of(f) == kind))
        run = tmp_path / "run"
        shutil.copytree(folder, run)
        how = draw.choice(KINDS)
        what = f"{path}: {damage(run / path, how, draw)}"
        try:
            if not read_all(run, setup, held):
                unnoticed.append(what)
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        shutil.rmtree(run)
    print(f"{DAMAGES} damages of {len(kinds)} kinds of files; not noticed:")
    print("\n".join(unnoticed))
    # Nobody reads these: loggers' files, the lock, steps before a newer whole one.
    unread = ("events", ".lock", "checkpoints/160/", "policy/160/")
    # A digit of a number in a row may become another: rows have no checksums.
    unread += ("metrics.jsonl: bit",)
    assert all(what.startswith(unread) for what in unnoticed)


@pytest.mark.slow
def test_commands_end_as_without_the_damage_or_say_what_they_met(whole, tmp_path):
    """Each in a process of its own, which must not be aborted either."""
    folder, setup, _ = whole
    draw = random.Random(1)
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    read_by_commands = ("config.json", "metrics", "policy/192", "checkpoints/192")
    kinds = sorted({kind_of(f) for f in files if str(f).startswith(read_by_commands)})
    wanted = outcomes(shutil.copytree(folder, tmp_path / "reference"), setup)
    assert not any(told for _, told in wanted)
    noticed = 0
    for kind in draw.sample(kinds, BY_COMMANDS):
        path = draw.choice(sorted(f for f in files if kind_of(f) == kind))
        run = shutil.copytree(folder, tmp_path / "run")
        what = f"{path}: {damage(run / path, draw.choice(KINDS), draw)}"
        for (found, told), (right, _) in zip(outcomes(run, setup), wanted, strict=True):
            refused = found is None
            noticed += bool(told)
            assert told if refused else told or found == right, what
            assert len(told) <= (1 if refused else 4), (what, told)
        shutil.rmtree(run)
    print(f"{BY_COMMANDS} damages met by two commands each; {noticed} times told")


def outcomes(run, setup):
    """What an evaluation and a resume of a run give, and the lines they are told in.

    None where a command refuses to run. The resume starts from whichever step is
    whole, and ends in the same state.
    """
    played = command("evaluate", "--checkpoint", run, "--sim=native", "--json")
    told = played.stderr.splitlines()
    assert played.returncode in (0, 2) and "Traceback" not in played.stderr, told
    evaluation = None if played.returncode else json.loads(played.stdout)["returns"]
    resume = "--resume", "--logdir", run, "--num_timesteps", 8 * CHUNK
    went_on = command("train", *resume)
    lines = (went_on.stdout + went_on.stderr).splitlines()
    warnings = [line for line in lines if line.startswith(("warning: ", "error: "))]
    assert went_on.returncode in (0, 1, 2) and "Traceback" not in went_on.stderr, lines
    end = None
    if went_on.returncode == 0:
        step, state, _ = checkpoint.restore(run, setup)
        assert step == 8 * CHUNK
        state = jax.device_get(toys.comparable(state))
        end = [leaf.tobytes() for leaf in jax.tree.leaves(state)]
    return (evaluation, told), (end, warnings)


def kind_of(path):
    """A file's place in a run, without the numbers of steps and chunks."""
    return path.as_posix().translate(str.maketrans("", "", "0123456789"))
