"""The Adroit hand against gymnasium-robotics' own environments."""

import contextlib
import functools
import importlib.metadata
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from iqmjx import envs
from iqmjx.envs import vector
from iqmjx.envs.physics import mjx as mjx_engine
from iqmjx.run import gymnasium_play
from tests import parity

TASKS = ("door", "hammer", "pen", "relocate")
SPARSE = tuple(f"{task}sparse" for task in TASKS)
REACHING = ("door", "hammer", "relocate")  # rewarded by the palm's distance
VERSION_1 = tuple(f"{task}-v1" for task in REACHING)
STATES, ACTIONS = 32, 20
# Largest difference in qpos of a warp step from MuJoCo C's, of all 640 and all entries.
# On door Warp finds other contacts where the hand is deep in cylinders and boxes.
WARP_MAXIMUM = {"door": 5e-2, "hammer": 5e-6, "pen": 1e-4, "relocate": 1e-5}


@functools.cache
def gym_env(task):
    env = gymnasium_play.make(envs.REGISTRY[task]).unwrapped
    env.reset(seed=0)  # which measures the pen
    return env


def qpos_of(env, joint):
    return env.model.joint(joint).qposadr[0]


def toward_success(task, env, rng):
    """Moves a played state to where the task's bonuses are near."""
    qpos, model = env.data.qpos, env.model
    if task == "door":
        qpos[qpos_of(env, "door_hinge")] = rng.uniform(0, 1.57)
    elif task == "hammer":
        qpos[qpos_of(env, "nail_dir")] = rng.uniform(0.06, 0.1)
        qpos[qpos_of(env, "OBJTz")] += rng.uniform(0, 0.2)
    elif task == "pen":
        quaternion = [0.7, 0, 0.7, 0] + rng.uniform(-0.2, 0.2, 4)  # as the pen lies
        model.body("target").quat[:] = quaternion / np.linalg.norm(quaternion)
    else:
        offset = model.site("target").pos - model.body("Object").pos
        for axis, joint in enumerate(("OBJTx", "OBJTy", "OBJTz")):
            qpos[qpos_of(env, joint)] = offset[axis] + rng.uniform(-0.1, 0.1)


def snapshot(env, names):
    """Copies of (qpos, qvel, model_fields)."""
    fields = {name: getattr(env.model, name).copy() for name in names}
    return env.data.qpos.copy(), env.data.qvel.copy(), fields


@functools.cache
def starts(task):
    """32 states of random play from random resets: (qpos, qvel, model_fields).

    Every other one is moved to where the bonuses are near.
    """
    env, rng = gym_env(task), np.random.default_rng(0)
    names = envs.REGISTRY[task].model_fields
    env.reset(seed=0)
    rows = []
    for state in range(STATES):
        env.reset()
        for _ in range(rng.integers(0, 20 if state % 2 else 200)):
            env.step(rng.uniform(-1, 1, env.model.nu))
        if state % 2:
            toward_success(task, env, rng)
        rows.append(snapshot(env, names))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), stacked)


def base(name):
    """The task that a name is a variant of: the same but for the reward."""
    return name.removesuffix("sparse").removesuffix("-v1")


class Outcome(NamedTuple):
    """What stepping each of the 640 pairs once led to."""

    first_obs: np.ndarray  # [640, O], before the step
    obs: np.ndarray  # [640, O]
    reward: np.ndarray  # [640]
    success: np.ndarray  # [640]
    qpos: np.ndarray  # [640, nq]


@functools.cache
def pairs(task):
    """The 640 (qpos, qvel, model_fields, ctrl) that are stepped once.

    Controls are drawn, not actions: each side rounds what it makes of an action.
    """
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, ACTIONS, 0), starts(task))
    low, high = gym_env(task).model.actuator_ctrlrange.T
    size = (STATES * ACTIONS, len(low))
    ctrl = np.random.default_rng(1).uniform(low, high, size).astype(np.float32)
    return *repeated, ctrl


@contextlib.contextmanager
def exact_control(env, ctrl):
    """Yields the action for a control, and lets the environment use just that.

    Its scaling loses the last bit, which a pen on fingertips may turn into 1e-4.
    """
    simulate = env.do_simulation

    def do_simulation(scaled, frames):
        np.testing.assert_allclose(scaled, ctrl, rtol=1e-12, atol=1e-12)
        simulate(ctrl, frames)

    env.do_simulation = do_simulation
    yield (ctrl - env.act_mean) / env.act_rng
    env.do_simulation = simulate


@functools.cache
def expected(name):
    """What gymnasium-robotics makes of `pairs`."""
    env = gym_env(name)
    qpos, qvel, model_fields, ctrl = pairs(base(name))
    rows = []
    for row in range(STATES * ACTIONS):
        for field, values in model_fields.items():
            getattr(env.model, field)[:] = values[row]
        first = parity.gym_place(env, qpos[row], qvel[row])
        with exact_control(env, ctrl[row]) as action:
            obs, reward, _, _, info = env.step(action)
        success = bool(info["success"])
        rows.append(Outcome(first, obs, float(reward), success, env.data.qpos.copy()))
    return Outcome(*(np.stack(column) for column in zip(*rows, strict=True)))


def make(name, engine, noslip=True):
    kind = envs.REGISTRY[name]
    if not noslip:

        class WithoutNoslip(kind):
            def spec(self):
                spec = super().spec()
                spec.option.noslip_iterations = 0
                return spec

        kind = WithoutNoslip
    return kind(engine, STATES * ACTIONS)


@functools.cache
def computed(name, engine, noslip=True):
    """What one of our engines makes of `pairs`, all in one vmapped call."""
    env = make(name, engine, noslip)

    def transition(qpos, qvel, model_fields, ctrl):
        start = parity.place(env, qpos, qvel, model_fields)
        before = start.pipeline_state
        after = env.physics.step(before, ctrl)
        reward, _, metrics = env.judge(before, after, ctrl)
        obs = env.observe(after)
        return Outcome(start.obs, obs, reward, metrics["success"], after.qpos)

    step = jax.jit(jax.vmap(transition))
    return jax.tree.map(np.asarray, step(*pairs(base(name))))


@pytest.mark.parametrize("task", TASKS)
def test_the_compiled_model_is_theirs(task):
    ours, theirs = make(task, "native").physics.model, gym_env(task).model
    arrays = 0
    for name in dir(theirs):
        want = getattr(theirs, name)
        drawn = name in envs.REGISTRY[task].model_fields  # by every reset
        if isinstance(want, np.ndarray) and not drawn:
            np.testing.assert_array_equal(getattr(ours, name), want, err_msg=name)
            arrays += 1
    assert arrays > 200


@pytest.mark.parametrize("name", TASKS + SPARSE + VERSION_1)
def test_native_transitions_are_theirs(name):
    want, found = expected(name), computed(name, "native")
    for column in ("first_obs", "obs", "reward"):
        theirs, ours = getattr(want, column), getattr(found, column)
        error, scale = np.abs(ours - theirs), np.abs(theirs).max(axis=0)
        assert (error <= 1e-5 * (np.abs(theirs) + scale)).all(), (column, error.max())
    np.testing.assert_array_equal(found.success, want.success)
    assert 0 < want.success.mean() < 1  # both happen


def palm_from_object(task, obs):
    """Where the palm is [B, 3], seen from what it is to reach, by observations."""
    if task == "hammer":
        return obs[:, 33:36] - obs[:, 36:39]
    return obs[:, 35:38] if task == "door" else obs[:, 30:33]


@pytest.mark.parametrize("task", REACHING)
def test_the_versions_differ_by_the_sign_of_one_term(task):
    """Version 1 pays 0.1 for each metre, version 2 takes it: by hand."""
    version_1, ours = expected(f"{task}-v1"), computed(task, "native")
    away = np.linalg.norm(palm_from_object(task, version_1.obs), axis=1)
    assert away.max() > 0.2
    by_hand = version_1.reward - 0.2 * away
    np.testing.assert_allclose(ours.reward, by_hand, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours.success, version_1.success)
    np.testing.assert_allclose(ours.obs, version_1.obs, rtol=1e-5, atol=1e-5)


def both_versions(task):
    return envs.make(task, "native"), envs.make(f"{task}-v1", "native")


def begin(env, key, offset):
    """A world at the start of an episode, its hand mounted `offset` [3] metres off."""
    start, forearm = env.initial(key), env.physics.model.body("forearm").id
    fields = dict(start.model_fields)
    fields["body_pos"] = fields["body_pos"].at[forearm].add(offset)
    return env.physics.init(start.qpos, start.qvel, fields)


@pytest.mark.parametrize("task", REACHING)
def test_random_play_is_paid_less_the_farther_the_hand_is_moved_away(task):
    """By version 2, and more by version 1; no other term differs as much."""
    versions = both_versions(task)
    env = versions[0]

    def returns(metres, key):
        """What each version pays for 50 steps."""
        reset_key, act_key = jax.random.split(key)
        world = begin(env, reset_key, jnp.array([0.0, -1.0, 0.0]) * metres)

        def step(world, key):
            control = jax.random.uniform(key, (env.action_size,), minval=-1)
            after = env.physics.step(world, env.ctrl(control))
            paid = [kind.judge(world, after, control)[0] for kind in versions]
            return after, jnp.stack(paid)

        return jax.lax.scan(step, world, jax.random.split(act_key, 50))[1].sum(axis=0)

    metres, keys = jnp.array([0.0, 0.5, 1.0]), jax.random.split(jax.random.key(0), 8)
    per_world = jax.jit(jax.vmap(jax.vmap(returns, (None, 0)), (0, None)))(metres, keys)
    ours, version_1 = np.asarray(per_world).mean(axis=1).T
    assert (np.diff(ours) < -1).all() and (np.diff(version_1) > 1).all()


@pytest.mark.parametrize("task", REACHING)
def test_a_hand_at_the_object_is_paid_more_than_one_a_metre_away(task):
    versions, key = both_versions(task), jax.random.key(0)
    env = versions[0]
    obs = np.asarray(env.observe(begin(env, key, np.zeros(3))))
    (away,) = palm_from_object(task, obs[None])
    near, far = (begin(env, key, -away + [0, 0, metres]) for metres in (0, 1))
    idle = np.zeros(env.action_size)
    more = [
        kind.judge(near, near, idle)[0] - kind.judge(far, far, idle)[0]
        for kind in versions
    ]
    np.testing.assert_allclose(more, [0.1, -0.1], atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_actions_span_the_controls_as_theirs(task):
    ours, theirs = envs.make(task, "native"), gym_env(task)
    np.testing.assert_allclose(ours._ctrl_center, theirs.act_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours._ctrl_scale, theirs.act_rng, rtol=1e-6)
    assert ours.episode_length == gymnasium.spec(ours.gymnasium_id).max_episode_steps


@pytest.mark.parametrize("task", TASKS)
def test_resets_are_drawn_as_theirs(task):
    theirs, draws = gym_env(task), 200
    theirs.reset(seed=0)
    names = envs.REGISTRY[task].model_fields
    rows = []
    for _ in range(draws):
        theirs.reset()
        rows.append(snapshot(theirs, names))
    want = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    env = envs.make(task, "native")
    start = jax.vmap(env.initial)(jax.random.split(jax.random.key(0), draws))
    drawn = 0
    leaves = zip(jax.tree.leaves(tuple(start)), jax.tree.leaves(want), strict=True)
    for ours, his in leaves:
        ours, his = np.asarray(ours).reshape(draws, -1), his.reshape(draws, -1)
        varied = np.ptp(his, axis=0) > 0
        np.testing.assert_array_equal(np.ptp(ours, axis=0) > 0, varied)
        np.testing.assert_allclose(ours[0, ~varied], his[0, ~varied], atol=1e-6)
        for column in np.flatnonzero(varied):
            test = scipy.stats.ks_2samp(ours[:, column], his[:, column])
            assert test.pvalue > 1e-3
            drawn += 1
    assert drawn == {"door": 3, "hammer": 1, "pen": 4, "relocate": 5}[task]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_warp_steps_are_mujocos(task):
    """README's table; -rP shows what is printed."""
    want, found = computed(task, "native"), computed(task, "warp")
    without = computed(task, "native", noslip=False)
    error = largest_difference(found, want)
    print(f"{task}: warp {described(error)}")
    print(f"  noslip's part in MuJoCo C {described(largest_difference(without, want))}")
    assert np.median(error) < 1e-5
    assert error.max() < WARP_MAXIMUM[task]


def largest_difference(one, other):
    """Of each step's qpos [640], of all entries."""
    return np.abs(one.qpos - other.qpos).max(axis=1)


def described(error):
    median, most, largest = np.quantile(error, [0.5, 0.9, 1.0])
    return f"median {median:.1e}, 90% {most:.1e}, largest {largest:.1e}"


@pytest.mark.parametrize("task", TASKS)
def test_worlds_keep_their_own_scene_and_are_reset_one_by_one(task):
    env, limit = envs.make(task, "native", 3), 3
    init_key, bank_key, step_key = jax.random.split(jax.random.key(0), 3)
    state = vector.init(env, init_key, 3, limit)
    state = state.replace(steps=jnp.array([0, 2, 0]))  # the second one ends first
    bank = vector.make_bank(env, bank_key, 3)
    before = jax.tree.map(np.asarray, state.worlds.pipeline_state.model_fields)
    step = jax.jit(functools.partial(vector.step, env, episode_length=limit))
    action = jnp.zeros((3, env.action_size))
    state, outcome = step(state, action, bank, step_key)
    assert outcome.truncated.tolist() == [False, True, False]
    for name, scenes in state.worlds.pipeline_state.model_fields.items():
        assert len(np.unique(before[name].reshape(3, -1), axis=0)) == 3
        np.testing.assert_array_equal(scenes[0], before[name][0])
        np.testing.assert_array_equal(scenes[2], before[name][2])
        fresh = np.asarray(bank.pipeline_state.model_fields[name])
        assert any((scenes[1] == scene).all() for scene in fresh)
    # What is read of the scene is where each world's own model has it.
    place = {"door": 34, "hammer": 44, "pen": 36, "relocate": 38}[task]
    assert len(np.unique(state.obs[:, place])) == 3


def test_mjx_refuses_what_it_cannot_collide():
    with pytest.raises(ValueError, match=r"^mjx cannot .*CYLINDER.*BOX.* warp"):
        envs.make("door", "mjx")


def test_the_engine_without_noslip_says_so_once():
    mjx_engine._warn_of_noslip.cache_clear()
    with pytest.warns(UserWarning, match="^mjx has no noslip solver"):
        envs.make("relocate", "mjx")
    envs.make("relocate", "mjx")  # any warning is an error here


def test_a_missing_package_is_named(monkeypatch):
    def missing(_name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match=r"pip install .gymnasium-robotics>=1\.2\.1"):
        envs.make("pen", "native")


@pytest.mark.parametrize("version", ["1.2.0", "1.4.3", "2.0"])
def test_a_version_with_other_rewards_is_refused(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: version)
    with pytest.raises(ValueError, match=f"gymnasium-robotics {version} are not those"):
        envs.make("pen", "native")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("door", "door"),
        ("AdroitHandDoor-v2", "door"),
        ("AdroitHandDoor-v1", "door-v1"),
        ("adroit_hand_hammer_v1", "hammer-v1"),
        ("AdroitHandRelocate-v2", "relocate"),
        ("AdroitHandPen-v1", "pen"),
        ("AdroitHandPen-v2", "pen"),
        ("AdroitHandDoorSparse-v2", "doorsparse"),
        ("adroit_hand_pen", "pen"),
        ("AdroitHandRelocateSparse-v1", "relocatesparse"),
        ("hammer", "hammer"),
    ],
)
def test_spellings(spelling, name):
    assert envs.resolve(spelling) == name
    assert envs.resolve(envs.versioned(name)) == name


@pytest.mark.parametrize("spelling", ["AdroitHandDoor-v3", "door-v0", "hopper-v1"])
def test_no_version_is_taken_for_another(spelling):
    with pytest.raises(ValueError, match="no such version; there is"):
        envs.resolve(spelling)


def test_success_at_any_step_is_reported_from_gymnasium():
    class Told(gymnasium.Env):
        """Three steps; success at the second, in every other episode."""

        episode = 0
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            self.episode, self.steps = self.episode + 1, 0
            return np.zeros(1), {}

        def step(self, action):
            self.steps += 1
            success = self.steps == 2 and self.episode % 2 == 0
            return np.zeros(1), 1.0, False, self.steps == 3, {"success": success}

    played = gymnasium_play.play_episodes(Told(), lambda *_: np.zeros(1), 4, seed=0)
    assert played.succeeded.tolist() == [False, True, False, True]
    assert played.returns.tolist() == [3.0] * 4 and played.lengths.tolist() == [3] * 4
