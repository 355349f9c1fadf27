"""Worlds that diverge, wherever they are stepped."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from iqmjx import envs, evaluation, loop, strict_json
from iqmjx.envs import outside, vector
from iqmjx.envs.base import Start
from iqmjx.envs.locomotion.hopper import Hopper
from iqmjx.envs.physics import BAD_STATE, FAULT_STATE, silence
from iqmjx.run import gymnasium_play, metrics, offenders, progress, trainer
from tests import parity, test_checkpoint, test_cli, toys

SPOILT = list(itertools.product(["qpos", "qvel", "control"], [np.nan, np.inf, 1e12]))
WORLD = 5  # the one that is spoilt
ENGINES = [
    ("native", "hopper", 64),
    ("native", "ant", 64),  # contact forces are another way through it
    pytest.param("mjx", "hopper", 8, marks=pytest.mark.slow),
    pytest.param("warp", "hopper", 8, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, in which MuJoCo would leave its log."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def spoil(env, state, **places):
    """The state of N worlds with numbers of WORLD's replaced: `qvel=(index, value)`."""
    world, physics = state.worlds.pipeline_state, env.physics
    for name, (index, value) in places.items():
        array = getattr(world, name).at[WORLD, index].set(value)
        world = world.replace(**{name: array})
        if physics.name == "native":  # what it goes on from is in its carry
            numbers = np.array(world.carry).view(np.float64)
            starts = {"qpos": physics._qpos.start, "qvel": physics._qvel.start}
            numbers[WORLD, starts[name] + index] = value
            world = world.replace(carry=jnp.asarray(numbers.view(np.uint32)))
    return state.replace(worlds=state.worlds.replace(pipeline_state=world))


def compiled(env, function):
    quick = parity.QUICK_COMPILE if env.physics.name == "mjx" else None
    return jax.jit(function, compiler_options=quick)


def others(tree):
    return jax.tree.map(lambda leaf: np.delete(leaf, WORLD, axis=0), tree)


@pytest.mark.parametrize(("engine", "task", "worlds"), ENGINES)
def test_one_spoilt_world_is_counted_and_reset_and_no_other_changes(
    engine, task, worlds
):
    env = envs.make(task, engine, worlds)
    init = compiled(env, lambda key: vector.init(env, key, worlds, 1000))
    state = init(jax.random.key(0))
    make_bank = compiled(env, lambda key: vector.make_bank(env, key, worlds))
    bank = make_bank(jax.random.key(1))
    shape = worlds, env.action_size
    control = jax.random.uniform(jax.random.key(2), shape, minval=-1)
    step = compiled(
        env,
        lambda state, control: vector.step(
            env, state, control, bank, jax.random.key(3), 1000
        ),
    )
    calm, expected = step(state, control)
    assert not expected.diverged.any() and not expected.offender.found
    for what, value in SPOILT:
        before, given = state, control
        if what == "control":
            given = control.at[WORLD, 1].set(value)
        else:
            before = spoil(env, state, **{what: (2, value)})
        after, outcome = step(before, given)
        np.testing.assert_array_equal(outcome.diverged, np.arange(worlds) == WORLD)
        assert outcome.terminated[WORLD] and outcome.reward[WORLD] == 0
        assert not outcome.counted[WORLD] and not outcome.overflowed.any()
        np.testing.assert_array_equal(outcome.next_obs[WORLD], state.obs[WORLD])
        assert after.steps[WORLD] == 0
        assert (after.obs[WORLD] == bank.obs).all(1).any()
        for name in ("qpos", "qvel"):
            value_before = getattr(before.worlds.pipeline_state, name)[WORLD]
            np.testing.assert_array_equal(getattr(outcome.offender, name), value_before)
        np.testing.assert_array_equal(outcome.offender.control, given[WORLD])
        # A sum over worlds is no world's own.
        same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
        if engine == "native":
            same = np.testing.assert_array_equal
        told = dataclasses.replace(outcome, offender=None)
        want = dataclasses.replace(expected, offender=None)
        jax.tree.map(same, others((after, told)), others((calm, want)))


def test_a_cheetah_that_blows_up_is_not_paid_for_its_way_home():
    """MuJoCo C puts it back to 0, from -40: 800 m/s, if it were true."""
    env = envs.make("halfcheetah", "native", 8)
    state = vector.init(env, jax.random.key(0), 8, 1000)
    state = spoil(env, state, qpos=(0, -40), qvel=(3, 1e12))
    bank = vector.make_bank(env, jax.random.key(1), 8)
    control, key = jnp.zeros((8, 6)), jax.random.key(2)
    assert jax.jit(jax.vmap(env.step))(state.worlds, control).reward[WORLD] > 700
    step = jax.jit(vector.step, static_argnums=(0, 5))
    _, outcome = step(env, state, control, bank, key, 1000)
    np.testing.assert_array_equal(outcome.diverged, np.arange(8) == WORLD)
    assert outcome.reward[WORLD] == 0 and (jnp.abs(outcome.reward) < 5).all()
    assert outcome.metrics["x_velocity"][WORLD] == 0


@pytest.mark.parametrize(
    ("place", "diverged"),
    [
        ({"qpos": 0.999e5}, False),
        ({"qpos": -1.001e5}, True),
        ({"qvel": 499.0}, False),
        ({"qvel": -502.0}, True),
    ],
)
def test_a_state_beyond_the_tasks_bounds_is_none(place, diverged):
    """Of a hopper's slide along the floor, high above it."""
    env = envs.make("hopper", "native")
    qpos, qvel = env._init_qpos.at[1].set(50), jnp.zeros(6)
    qpos = qpos.at[0].set(place.get("qpos", 0.0))
    qvel = qvel.at[0].set(place.get("qvel", 0.0))
    state = env.step(parity.place(env, qpos, qvel), jnp.zeros(3))
    assert (state.info["faults"] == FAULT_STATE) == diverged
    assert state.pipeline_state.faults == state.info["faults"]


def test_a_task_from_outside_says_that_a_world_is_lost(folder):
    class Lost(toys.Toy):
        """Has brax's interface; lost where it is told to be."""

        action_size = 1

        def reset(self, rng):
            return self.at(jnp.zeros((), jnp.int32))

        def step(self, state, action):
            return self.at(jnp.where(action[0] > 0, 4, 2))

        def at(self, faults):
            state = self.state(jnp.zeros(1), 1.0, jnp.zeros(()), jnp.zeros(()))
            return state.replace(info={"faults": faults, "more": faults})

    env = outside.Outside(Lost(), "lost")
    state = vector.init(env, jax.random.key(0), 3, 10)
    bank = vector.make_bank(env, jax.random.key(1), 3)
    control = jnp.array([[-1.0], [1.0], [-1.0]])
    _, outcome = vector.step(env, state, control, bank, jax.random.key(2), 10)
    assert outcome.diverged.tolist() == [False, True, False]
    assert outcome.overflowed.tolist() == [True, False, True]
    assert outcome.reward.tolist() == [1, 0, 1] and outcome.offender is None


# In training.


def test_training_beside_a_spoilt_world(folder):
    """Its row has weight 0; the rows of the others are what they are without it."""
    config = toys.config(num_envs=64, min_replay_size=64 * 4)
    setup = loop.make_setup(config)
    found = []
    for values in ({}, {"qvel": (2, 1e12)}):
        state = loop.init(setup)
        alone = jax.tree.map(lambda leaf: leaf[0, 0], state.envs)
        alone = spoil(setup.env, alone, **values)
        worlds = jax.tree.map(lambda leaf: leaf[None, None], alone)
        worlds = jax.device_put(worlds, jax.tree.map(lambda x: x.sharding, state.envs))
        state, steps = loop.warm_up(setup, dataclasses.replace(state, envs=worlds))
        rows = jax.tree.map(
            lambda leaf: np.array(leaf[0, 0, : 64 * 4]).reshape(4, 64, *leaf.shape[3:]),
            state.replay.data,
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
        assert steps.diverged[0] == len(values)
        assert (rows.weight == 0).sum() == len(values)
        found.append((state, steps, rows))
    (_, _, calm), (state, steps, rows) = found
    assert rows.weight[0, WORLD] == 0 and rows.reward[0, WORLD] == 0
    for want, got in zip(jax.tree.leaves(calm), jax.tree.leaves(rows), strict=True):
        np.testing.assert_array_equal(
            np.delete(got, WORLD, axis=1), np.delete(want, WORLD, axis=1)
        )
    np.testing.assert_allclose(  # the population's, over all that worlds showed
        state.normalizer.variance[0],
        rows.obs.reshape(-1, 11).var(0),
        rtol=1e-3,
        atol=1e-7,
    )
    offender = jax.tree.map(lambda leaf: leaf[0, 0], steps.offender)
    assert offender.found and offender.qvel[2] == np.float32(1e12)
    control = setup.agent.policy.control(jnp.asarray(rows.action[0, WORLD]))
    np.testing.assert_array_equal(offender.control, control)
    state, (steps, learning) = loop.train_chunk(setup, state)
    assert steps.diverged[0] == 0 and not steps.offender.found.any()
    assert jnp.isfinite(learning.loss).all()


def test_replay_holds_no_control_that_was_none():
    setup = toys.toy_setup(toys.Commanded(), policy="gaussian")

    class Broken(type(setup.agent.policy)):
        """Three of four actions are of no numbers."""

        def random(self, key, count):
            values = jnp.array([np.nan, np.inf, 1e12, 0.5])
            drawn = jax.random.randint(key, (count,), 0, 4)
            return super().random(key, count).at[:].set(values[drawn, None])

        def control(self, action):
            return action

    fields = dataclasses.fields(setup.agent.policy)
    policy = Broken(**{f.name: getattr(setup.agent.policy, f.name) for f in fields})
    agent = dataclasses.replace(setup.agent, policy=policy)
    setup = dataclasses.replace(setup, agent=agent)
    state, steps = loop.warm_up(setup, loop.init(setup))
    data = jax.tree.map(lambda leaf: leaf[0, 0, :32], state.replay.data)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(data))
    sound = (data.action == 0.5).all(-1)
    np.testing.assert_array_equal(data.weight, sound)
    assert steps.diverged[0] == (data.weight == 0).sum()
    assert 16 < steps.diverged[0] < 32
    assert jnp.isfinite(state.normalizer.variance).all()


class Unsound(Hopper):
    """A hopper of which about half the starts are none: a hinge turns too fast."""

    episode_length = 6
    speeds = (1e5,)  # rad/s

    def initial(self, key):
        start = super().initial(key)
        speed = jax.random.choice(jax.random.fold_in(key, 2), jnp.array(self.speeds))
        wrong = jnp.where(self.is_sound(key), start.qvel[2], speed)
        return Start(start.qpos, start.qvel.at[2].set(wrong))

    @staticmethod
    def is_sound(key):
        return jax.random.bernoulli(jax.random.fold_in(key, 1))


NAME = f"{__name__}:Unsound"


@pytest.fixture(scope="module")
def unsound_run(tmp_path_factory):
    """A run of which half the worlds diverge."""
    folder = tmp_path_factory.mktemp("runs") / "unsound"
    config = test_checkpoint.start(folder, env=NAME, num_envs=32, episode_length=6)
    assert trainer.train(config, folder)
    return folder


def test_a_run_goes_on_and_says_what_it_left_out(unsound_run):
    lines = (unsound_run / metrics.FILE).read_text().splitlines()
    assert not any("NaN" in line or "Infinity" in line for line in lines)
    rows = [json.loads(line) for line in lines]
    assert sum(row.get("physics/diverged", 0) for row in rows) > 32
    assert all(row["training/loss"] < 100 for row in rows if "training/loss" in row)
    played = [row["eval/diverged"] for row in rows if "eval/diverged" in row]
    assert len(played) == 2 and 0 < max(played) <= 4
    files = list((unsound_run / offenders.FOLDER).iterdir())
    assert 1 <= len(files) <= 5


def test_an_offender_can_be_looked_at_in_mujoco(unsound_run):
    path = next((unsound_run / offenders.FOLDER).iterdir())
    model, data = offenders.load(path)
    assert data.qvel[2] == 1e5 and data.qpos[1] > 1
    assert (np.abs(data.ctrl) <= 1).all() and data.ctrl.any()
    with silence:
        mujoco.mj_step(model, data, 4)
    assert data.warning.number[list(BAD_STATE)].any()
    assert not np.abs(data.qvel).max() < 1e4  # not put back


def test_only_the_first_few_offenders_are_kept(folder):
    door = envs.make("door", "native", 2)
    state = jax.vmap(door.reset)(jax.random.split(jax.random.key(0), 2))
    worlds = state.pipeline_state
    lost = vector.Offender(
        np.array([False, True]),
        np.asarray(worlds.qpos),
        np.asarray(worlds.qvel),
        {name: np.asarray(each) for name, each in worlds.model_fields.items()},
        np.zeros((2, door.action_size), np.float32),
    )
    calm = dataclasses.replace(lost, found=np.zeros(2, bool))
    assert offenders.write(folder, 1, None) is offenders.write(folder, 1, calm) is None
    paths = [offenders.write(folder, steps, lost) for steps in range(7)]
    assert paths[5:] == [None, None] and paths[4] == folder / "diverged/4.npz"
    test_checkpoint.start(folder, env="door")
    model, _ = offenders.load(paths[4])
    np.testing.assert_array_equal(
        model.body_pos.astype(np.float32), worlds.model_fields["body_pos"][1]
    )


# In evaluation.


@pytest.mark.parametrize(
    "engine",
    [
        "native",
        pytest.param("mjx", marks=pytest.mark.slow),
        pytest.param("warp", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_leaves_out_the_worlds_that_are_lost(engine):
    class Wild(Unsound):
        speeds = (np.nan, np.inf, 1e12, 1e5)

    worlds = 16
    setup = toys.toy_setup(Wild(engine, worlds), episode_length=6)
    greedy = evaluation.both_modes(worlds // 2)
    keys = jax.random.split(jax.random.key(0), worlds)
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: leaf[0], actors)
    game = evaluation.Game(setup.env, setup.agent.policy, 6)
    play = compiled(setup.env, functools.partial(evaluation.play, game, actor, greedy))
    episodes = play(keys)
    sound = jax.vmap(lambda key: Wild.is_sound(jax.random.split(key)[0]))(keys)
    sound = np.asarray(sound)
    np.testing.assert_array_equal(episodes.valid, sound)
    assert 0 < sound[greedy].sum() < 8
    np.testing.assert_array_equal(episodes.lengths[~sound], 1)
    np.testing.assert_array_equal(episodes.returns[~sound], 0)
    assert (np.asarray(episodes.lengths)[sound] == 6).all()
    assert (np.asarray(episodes.returns)[sound] > 0.5).all()
    row = evaluation.summarize(episodes, greedy)
    assert row["eval/diverged"] == (~sound).sum()
    mean = np.asarray(episodes.returns)[greedy & sound].mean()
    assert row["eval/episode_reward"] == pytest.approx(mean)
    assert row["eval/avg_episode_length"] == 6


def test_an_evaluation_leaves_out_controls_that_are_none():
    setup = toys.toy_setup(envs.make("halfcheetah", "native", 4))

    class Broken(type(setup.agent.policy)):
        def control(self, action):
            values = jnp.array([[np.nan], [np.inf], [1e12]])
            return super().control(action).at[1:].set(values)

    fields = dataclasses.fields(setup.agent.policy)
    policy = Broken(**{f.name: getattr(setup.agent.policy, f.name) for f in fields})
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: leaf[0], actors)
    game = evaluation.Game(setup.env, policy, 3)
    keys = jax.random.split(jax.random.key(0), 4)
    episodes = evaluation.play(game, actor, np.ones(4, bool), keys)
    assert episodes.valid.tolist() == [True, False, False, False]
    assert episodes.lengths.tolist() == [3, 1, 1, 1]


def test_of_no_episode_there_is_no_mean(capsys):
    episodes = evaluation.Episodes(
        np.ones(4), np.ones(4, int), np.array([False, False, True, True]), np.ones(4)
    )
    row = evaluation.summarize(episodes, evaluation.both_modes(2))
    assert np.isnan(row["eval/episode_reward"]) and np.isnan(row["eval/success"])
    assert row["eval/sampled_episode_reward"] == 1 and row["eval/diverged"] == 2
    with progress.Progress(10) as shown:
        shown.evaluated(5, [row, row | {"eval/episode_reward": 7.0}])
    assert "4 episodes left out" in capsys.readouterr().out


def test_evaluate_prints_null_and_says_how_many_are_left_out(unsound_run):
    root = Path(__file__).parents[1]
    play = ["evaluate", "--checkpoint", unsound_run, "--episodes", 16]
    result = test_cli.command(*play, "--json", cwd=root)
    assert result.returncode == 0, result.stderr
    assert "NaN" not in result.stdout
    report = json.loads(result.stdout)
    kept = [value for value in report["returns"] if value is not None]
    assert report["diverged"] == 16 - len(kept) and 0 < len(kept) < 16
    assert report["mean"] == pytest.approx(np.mean(kept))
    assert report["min"] > 0
    said = test_cli.command(*play, cwd=root).stdout
    assert f"over {len(kept)} episodes" in said
    assert f"; {16 - len(kept)} more diverged" in said


# In Gymnasium.


class Spoiling(gymnasium.Wrapper):
    """Spoils one number of the world's state in the third step of an episode."""

    def __init__(self, env, episode, what, value):
        super().__init__(env)
        self.spoilt, self.what, self.value = episode, what, value
        self.episode = -1

    def reset(self, **kwargs):
        self.episode, self.steps = self.episode + 1, 0
        return super().reset(**kwargs)

    def step(self, action):
        self.steps += 1
        if self.episode == self.spoilt and self.steps == 3 and self.what != "control":
            getattr(self.unwrapped.data, self.what)[2] = self.value
        return super().step(action)


@pytest.mark.parametrize(("what", "value"), SPOILT)
def test_gymnasium_goes_on_after_a_world_that_is_lost(what, value):
    def played(spoilt):
        task = envs.REGISTRY["halfcheetah"]
        env = gymnasium_play.make(task, max_episode_steps=5)
        env = Spoiling(env, spoilt, what, value)

        def choose(episode, _obs):
            control = np.linspace(-1, 1, 6) / (1 + episode)
            if (episode, env.steps, what) == (spoilt, 2, "control"):
                control[1] = value
            return control

        return gymnasium_play.play_episodes(env, choose, 3, seed=0)

    calm, episodes = played(None), played(1)
    assert episodes.valid.tolist() == [True, False, True]
    assert episodes.lengths.tolist() == [5, 3, 5]
    assert np.isfinite(episodes.returns).all() and abs(episodes.returns[1]) < 5
    np.testing.assert_array_equal(episodes.returns[::2], calm.returns[::2])
    assert calm.valid.all()


# MuJoCo's own log, which the fixture looks for, and other outputs.


def test_mujoco_is_silent_inside_and_says_what_it_did_before_outside(capfd):
    model = parity.TASKS["hopper"]("native").physics.model
    said = []

    def step():
        data = mujoco.MjData(model)
        data.qvel[2] = np.nan
        mujoco.mj_step(model, data)

    with silence:
        with silence:
            step()
        step()
    before = mujoco.get_mju_user_warning()
    try:
        mujoco.set_mju_user_warning(said.append)
        with silence:
            step()
        assert not said
        step()
        assert len(said) == 1 and "QVEL" in said[0]
        with silence:
            mujoco.set_mju_user_warning(said.extend)
        step()
        assert len(said) > 20  # letters: what was set inside stays
    finally:
        mujoco.set_mju_user_warning(before)
    assert capfd.readouterr() == ("", "")


def test_json_has_null_for_what_is_no_number():
    value = {"a": float("nan"), "b": [1.5, float("-inf")], "c": (np.float64("nan"), 1)}
    assert strict_json.dumps(value) == '{"a": null, "b": [1.5, null], "c": [null, 1]}'
