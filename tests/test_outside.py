"""Tasks from outside: one's own classes, brax's and MuJoCo Playground's tasks."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from absl import flags

from iqmjx import envs, evaluation, loop
from iqmjx.commands import cli
from iqmjx.envs import outside, vector
from iqmjx.envs.locomotion.hopper import Hopper
from tests import parity, test_cli, toys

OWN_TASK = Path(__file__).parents[1] / "docs" / "own_task"
# Every liberty that brax's interface leaves: a dict of observations with more axes than
# one, numbers of other types than float32, weak types, an empty array, a limit of its
# own, and a state class of its own.
WALK = """
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class State:
    position: jax.Array
    count: jax.Array
    nothing: jax.Array
    obs: dict
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Walk:
    action_size = 1
    episode_length = 30

    def reset(self, rng):
        return self.at(jax.random.uniform(rng), 0, rng)

    def step(self, state, action):
        return self.at(state.position + action[0], state.count + 1, state.info["rng"])

    def at(self, position, count, rng):
        seen = {"state": jnp.array([[position], [count * 1.0]]), "all": jnp.zeros(9)}
        far, late = jnp.abs(position) > 3, count >= 20
        return State(
            position, count, jnp.zeros((0, 3)), seen,
            jnp.where(far, -1, 2), far | late,
            {"distance": jnp.abs(position), "success": far, "row": jnp.zeros(4)},
            {"rng": rng, "truncation": late & ~far, "more": {"count": count}},
        )


class Grows(Walk):
    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(info=state.info | {"new": jnp.zeros(())})


class Widens(Walk):
    def step(self, state, action):
        return super().step(state, action).replace(position=jnp.zeros(2))


class Blind(Walk):
    def at(self, position, count, rng):
        state = super().at(position, count, rng)
        return state.replace(obs={"pixels": jnp.zeros(3)})


class Idle:
    def reset(self, rng):
        pass


LIMIT = 3
"""
UNLIMITED = """
<mujoco>
  <worldbody><body><joint name="slide" type="slide"/><geom size="1"/></body></worldbody>
  <actuator><motor name="push" joint="slide"/></actuator>
</mujoco>
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a module `walk` of which nothing else knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    (tmp_path / "walk.py").write_text(WALK)
    (tmp_path / "torn.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    yield tmp_path
    for name in ("walk", "torn", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def own(monkeypatch):
    """The documented task's name, from its folder."""
    monkeypatch.chdir(OWN_TASK)
    return "cartpole:CartPole"


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_a_task_with_braxs_interface_is_worn(folder):
    walk = envs.make("walk:Walk", num_worlds=3)
    assert (walk.observation_size, walk.action_size) == (2, 1)
    assert (walk.name, walk.gymnasium_id) == ("walk:Walk", None)
    assert walk.terminates and walk.episode_length == 30
    assert walk.frame_skip is None and walk.physics.scratch_bytes(8) == 0
    state = jax.vmap(walk.reset)(keys(3))
    start = np.asarray(state.obs[:, 0])
    assert len(np.unique(start)) == 3
    action = jnp.array([[0.5], [1.0], [-1.0]])
    for _ in range(4):
        state = jax.vmap(walk.step)(state, action)
    expected = start + 4 * np.array([0.5, 1, -1])
    np.testing.assert_allclose(state.obs, np.stack([expected, [4, 4, 4]], 1), rtol=1e-6)
    far = np.abs(expected) > 3
    np.testing.assert_array_equal(state.done, far)
    np.testing.assert_array_equal(state.reward, np.where(far, -1, 2))
    np.testing.assert_array_equal(state.metrics["success"], far)
    assert set(state.metrics) == {"distance", "success"}  # what is a number
    assert set(state.info) == {"truncation"}


def test_a_state_from_outside_can_be_scanned_selected_and_saved(folder):
    walk = envs.make("walk:Walk")
    assert_recurs(walk)
    start = jax.vmap(walk.reset)(keys(4))
    moved = jax.vmap(walk.step)(start, jnp.ones((4, 1)))
    done = jnp.array([True, False, False, True])
    mixed = vector.where(done, start, moved)
    after = jax.vmap(walk.step)(mixed, jnp.ones((4, 1)))
    np.testing.assert_array_equal(after.obs[:, 1], [1, 2, 2, 1])


def assert_recurs(task):
    """A step returns the types it was given, none weak, none empty, all by world."""
    quick = {} if task.physics.name == "warp" else parity.QUICK_COMPILE
    reset = jax.jit(jax.vmap(task.reset), compiler_options=quick)
    step = jax.jit(jax.vmap(task.step), compiler_options=quick)
    first = reset(keys(3))
    after = step(first, jnp.zeros((3, task.action_size)))
    types = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
        for state in (first, after)
    ]
    assert types[0] == types[1]
    for leaf in jax.tree.leaves(after):
        assert leaf.size and leaf.shape[0] == 3 and not leaf.weak_type
    for leaf in (after.obs, after.reward, after.done, *after.metrics.values()):
        assert leaf.dtype == jnp.float32


def test_a_limit_of_the_tasks_own_is_told_beside_done(folder):
    walk = envs.make("walk:Walk")
    state, step = walk.reset(jax.random.key(0)), jax.jit(walk.step)
    for _ in range(20):
        assert state.done == 0 and state.info["truncation"] == 0
        state = step(state, jnp.zeros(1))
    assert state.done == 1 and state.info["truncation"] == 1


def test_settings_take_the_tasks_time_limit_and_keep_its_name(folder):
    config = toys.config(env="walk:Walk", physics="auto")
    assert config.env == "walk:Walk" and config.physics == "auto"
    assert config.episode_length == 30
    with pytest.raises(
        ValueError, match=r"^--physics native: walk:Walk brings its own"
    ):
        toys.config(env="walk:Walk", physics="native")


def test_evaluation_plays_a_task_from_outside(folder):
    setup = loop.make_setup(toys.config(env="walk:Walk", physics="auto"))
    actors = loop.average_actors(setup, loop.init(setup))
    actor = jax.tree.map(lambda leaf: leaf[0], actors)
    game = evaluation.Game(setup.env, setup.agent.policy, 30)
    greedy = np.arange(6) < 3
    episodes = evaluation.play(game, actor, greedy, keys(6))
    assert (episodes.lengths <= 20).all() and (episodes.lengths > 1).all()
    ends = np.where(episodes.succeeded, -1, 2)  # the last step's reward
    np.testing.assert_allclose(episodes.returns, 2 * (episodes.lengths - 1) + ends)


def test_a_task_from_outside_trains(folder):
    setup = loop.make_setup(
        toys.config(env="walk:Walk", physics="auto", chunk_steps=16)
    )
    state, _ = loop.warm_up(setup, loop.init(setup))
    for _ in range(2):  # past the task's limit of 20 steps
        state, (metrics, learning) = loop.train_chunk(setup, state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(learning))
    assert metrics.task["distance"] > 0 and metrics.diverged == 0
    data = jax.tree.map(lambda leaf: np.asarray(leaf[0, 0]), state.replay.data)
    written = (data.reward != 0) & (data.weight > 0)
    far = np.abs(data.next_obs[:, 0]) > 3
    np.testing.assert_array_equal(data.discount[written] == 0, far[written])
    at_limit = written & (data.next_obs[:, 1] == 20)
    assert at_limit.any() and (data.next_obs[:, 1] <= 20).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Walk", "there is no module nowhere; it must be installed"),
        ("walk.inner:Walk", "there is no module walk.inner"),
        ("walk:Wlak", "walk has no Wlak; did you mean Walk"),
        ("walk:LIMIT", "LIMIT of walk is no class; choose one of State, Walk"),
        ("walk:", "give package.module:Class"),
        (":Walk", "give package.module:Class"),
        ("torn:Task", "torn cannot be imported: ModuleNotFoundError.*nowhere_to_be"),
        ("broken:Task", "broken cannot be imported: SyntaxError"),
        ("brax:antt", "brax has no 'antt'; did you mean ant"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # brax's own imports
def test_unknown_tasks_are_refused_in_one_line(folder, name, message):
    with pytest.raises(ValueError, match=message) as error:
        envs.resolve(name)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    with pytest.raises(ValueError, match=f"^--env {name}: ") as error:
        toys.config(env=name, physics="auto")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walk:Grows", "^step.. returns a state of another structure"),
        ("walk:Widens", r"^step.. changes the shape of position from \(\) to \(2,\)"),
        ("walk:Blind", "^of its observations pixels, none is called state"),
        ("walk:Idle", "^it is no task: it has no step"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(folder, name, message):
    with pytest.raises(ValueError, match=message) as error:
        envs.make(name)
    assert "\n" not in str(error.value)
    config = toys.config(env=name, physics="auto")
    with pytest.raises(ValueError, match=f"^--env {name}: {message.lstrip('^')}"):
        loop.make_setup(config)


@pytest.mark.parametrize(
    ("module", "name", "install"),
    [
        ("brax", "brax:ant", r"pip install 'brax>=0\.14\.2'"),
        ("mujoco_playground", "playground:CheetahRun", "pip install 'playground>=0.2'"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, name, install):
    for each in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)
    outside._package.cache_clear()
    with pytest.raises(ValueError, match=f"{module} is not installed: {install}"):
        envs.resolve(name)


@pytest.mark.parametrize("engine", ["native", "warp", "mjx"])
def test_the_documented_task_moves_as_in_mujoco_with_each_worlds_weight(own, engine):
    task = envs.make(own, engine, 3)
    assert (task.name, task.gymnasium_id, task.episode_length) == (own, None, 500)
    assert (task.observation_size, task.action_size) == (5, 1)

    def run(keys):
        first = jax.vmap(task.reset)(keys)
        push = jnp.ones((3, 1))
        return first, jax.lax.fori_loop(
            0, 10, lambda _, state: jax.vmap(task.step)(state, push), first
        )

    quick = parity.QUICK_COMPILE if engine == "mjx" else None
    first, after = jax.jit(run, compiler_options=quick)(keys(3))
    assert_recurs(task)
    fields = first.pipeline_state.model_fields
    assert len(np.unique(fields["body_mass"][:, task._pole])) == 3
    moved = after.pipeline_state.qpos
    for world in range(3):
        model = mujoco.MjModel.from_xml_path(str(OWN_TASK / "cartpole.xml"))
        unlike = alone(model, first, world)
        for name, values in fields.items():
            getattr(model, name)[:] = values[world]
        np.testing.assert_allclose(moved[world], alone(model, first, world), atol=1e-6)
        assert np.abs(moved[world] - unlike).max() > 1e-3


def alone(model, first, world):
    """Where one world is after 20 substeps in MuJoCo C."""
    data = mujoco.MjData(model)
    data.qpos[:] = first.pipeline_state.qpos[world]
    data.qvel[:] = first.pipeline_state.qvel[world]
    data.ctrl[:] = 1
    mujoco.mj_step(model, data, 20)
    return data.qpos


def test_the_documented_task_rewards_what_it_says(own):
    task = envs.make(own, "native")
    start = task.reset(jax.random.key(0))
    for angle, place, over in [(0.0, 0.0, 0), (0.6, 0.0, 1), (0.0, 1.05, 1)]:
        world = task.physics.init(
            jnp.array([place, angle]), jnp.zeros(2), start.pipeline_state.model_fields
        )
        state = task.step(start.replace(pipeline_state=world), jnp.zeros(1))
        assert state.done == over
        place, angle = state.pipeline_state.qpos
        assert state.reward == pytest.approx(np.cos(angle) - 0.1 * place**2)
    assert start.obs[2] == pytest.approx(1, abs=2e-3)


def test_a_class_of_ours_says_what_is_wrong_with_it(tmp_path):
    class Unlimited(Hopper):
        def spec(self):
            return mujoco.MjSpec.from_string(UNLIMITED)

    class Undeclared(Hopper):
        model_fields = ("body_mass",)

    class Modelless(envs.Env):
        initial = observe = judge = Hopper.observe

    with pytest.raises(ValueError, match="actuator push needs a ctrlrange"):
        Unlimited("native")
    with pytest.raises(ValueError, match=r"names \['body_mass'\].* draws \[\]"):
        jax.eval_shape(Undeclared("native").reset, jax.random.key(0))
    with pytest.raises(ValueError, match=r"^set xml"):
        Modelless("native")
    # One who changes a task of ours has none of its twins.
    assert Undeclared.gymnasium_id is None
    assert Undeclared.name == f"{__name__}:{Undeclared.__qualname__}"


def test_a_task_of_ones_own_from_train_to_evaluate(tmp_path):
    settings = [s for s in test_cli.SETTINGS if "env=" not in s]
    here = {"cwd": OWN_TASK, "env": test_cli.environment()}
    run = tmp_path / "run"
    task = ["--env", "cartpole:CartPole"]
    result = test_cli.command("train", *settings, *task, "--logdir", run, **here)
    assert result.returncode == 0, result.stderr
    assert "engine: native" in result.stdout
    result = test_cli.command("evaluate", "--checkpoint", run, "--json", **here)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["env"], report["sim"]) == ("cartpole:CartPole", "native")
    wish = ["--sim", "gymnasium"]
    result = test_cli.command("evaluate", "--checkpoint", run, *wish, **here)
    test_cli.assert_refused(
        result, wish[0], "Gymnasium has no environment for cartpole:CartPole"
    )


@pytest.mark.parametrize(
    ("given", "saved", "expected"),
    [
        ({"env": "hopper", "physics": None}, None, False),
        ({"env": "hopper", "physics": "mjx"}, None, True),
        ({"env": "brax:ant", "physics": None}, None, True),
        ({"env": None, "logdir": "."}, {"env": "hopper", "physics": "mjx"}, True),
        ({"sim": None, "checkpoint": "policy/5"}, {"env": "a:B"}, True),
        ({"sim": "native", "checkpoint": "policy/5"}, {"env": "hopper"}, False),
    ],
)
def test_threads_are_given_where_mjx_may_run(
    monkeypatch, tmp_path, given, saved, expected
):
    monkeypatch.chdir(tmp_path)
    if saved:
        Path("config.json").write_text(json.dumps({"config": saved}))
    told = flags.FlagValues()
    for name, value in given.items():
        flags.DEFINE_string(name, value, "", flag_values=told)
    assert cli._may_run_mjx(told) == expected


@pytest.mark.filterwarnings("ignore")  # brax's own imports
def test_braxs_smallest_task():
    assert envs.resolve("brax:Fast") == "brax:fast"
    fast = envs.make("brax:fast")
    assert (fast.observation_size, fast.action_size) == (2, 1)
    assert fast.physics.name == "brax" and fast.episode_length == 1000
    assert_recurs(fast)


needs_playground = pytest.mark.skipif(
    importlib.util.find_spec("mujoco_playground") is None,
    reason="the extra `playground` is not installed",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brax_ant():
    ant = envs.make("brax:ant")
    assert (ant.observation_size, ant.action_size) == (27, 8)
    assert ant.physics.name == "brax generalized" and ant.frame_skip == 5
    assert_recurs(ant)


@pytest.mark.slow
@needs_playground
@pytest.mark.filterwarnings("ignore")
def test_playgrounds_cheetah():
    assert envs.resolve("playground:cheetahrun") == "playground:CheetahRun"
    assert envs.episode_length("playground:CheetahRun") == 1000
    cheetah = envs.make("playground:CheetahRun")
    assert (cheetah.observation_size, cheetah.action_size) == (17, 6)
    assert cheetah.physics.name == "mjx jax" and cheetah.frame_skip == 1
    assert not cheetah.terminates
    assert_recurs(cheetah)
    assert_as_unworn(cheetah, cheetah._env)


@pytest.mark.slow
@needs_playground
@pytest.mark.filterwarnings("ignore")
def test_playground_on_warp_keeps_no_contacts_between_steps():
    from mujoco_playground import registry

    theirs = registry.load(
        "CheetahRun", config_overrides={"impl": "warp", "naconmax": 96, "njmax": 64}
    )
    cheetah = outside._wear_playground("playground:CheetahRun", theirs)
    assert cheetah.physics.name == "mjx warp"
    assert_recurs(cheetah)
    state = assert_as_unworn(cheetah, theirs)
    assert state.info["faults"].tolist() == [0, 0, 0]
    small = registry.load(
        "CheetahRun", config_overrides={"impl": "warp", "naconmax": 96, "njmax": 4}
    )
    tight = outside._wear_playground("playground:CheetahRun", small)
    state = jax.jit(jax.vmap(tight.step))(state, jnp.zeros((3, 6)))
    assert (state.info["faults"] > 0).all()


def assert_as_unworn(worn, theirs):
    """Steps a task as it is, and worn; returns the worn one's last state."""

    def play(task, keys):
        def step(state, _):
            state = jax.vmap(task.step)(state, jnp.full((3, task.action_size), 0.3))
            return state, (state.obs, state.reward)

        return jax.lax.scan(step, jax.vmap(task.reset)(keys), length=20)

    state, ours = jax.jit(lambda keys: play(worn, keys))(keys(3))
    _, unworn = jax.jit(lambda keys: play(theirs, keys))(
        jax.vmap(jax.random.key_data)(keys(3))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        ours,
        unworn,
    )
    return state


@pytest.mark.slow
@needs_playground
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_fetched_are_named(monkeypatch, tmp_path):
    from mujoco_playground._src import mjx_env

    monkeypatch.setattr(mjx_env, "EXTERNAL_DEPS_PATH", tmp_path)
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", tmp_path / "mujoco_menagerie")
    monkeypatch.setenv("PATH", "")  # no git: as without a network
    with pytest.raises(
        ValueError, match="robots' models could not be fetched"
    ) as error:
        envs.make("playground:Go1JoystickFlatTerrain")
    assert "\n" not in str(error.value)
