"""One control step of each engine against Gymnasium's own environments.

The statistic is always the largest error over 1280 transitions and all entries (see
`parity.worst_errors`); there are no percentiles.
"""

import functools

import jax
import mujoco
import numpy as np
import pytest

from tests import parity

TOLERANCE = {
    "qpos": 1e-5,
    "qvel": 1e-3,
    "reward": 1e-3,
    "terminated": 0,
    "cfrc_ext": 1e-2,
    "cinert": 1e-5,
    "cvel": 1e-4,
    "qfrc_actuator": 1e-5,
    "xipos": 1e-5,
    "xpos": 1e-5,
}
# The half-cheetah's stiff feet amplify float32 rounding: moving the start by 6e-8,
# MuJoCo itself in double precision moves by up to 1.1e-5 in qpos and 5.9e-4 in qvel.
# MJX loses more than Warp does (a handful of the 1280 exceed the common tolerance),
# and neither more solver iterations nor a solver tolerance of zero change it.
TOLERANCE_OF = {
    ("warp", "halfcheetah"): TOLERANCE | {"qpos": 2e-5},
    ("mjx", "halfcheetah"): TOLERANCE | {"qpos": 1e-4, "qvel": 4e-3},
}
TASKS = tuple(parity.TASKS)


def pairs(*engines):
    """Engines and tasks; MJX takes most of a minute to compile the humanoid."""
    return [
        pytest.param(e, t, marks=[pytest.mark.slow] * ((e, t) == ("mjx", "humanoid")))
        for e in engines
        for t in TASKS
    ]


TRAJECTORY_STEPS = 200


@functools.cache
def transitions(engine: str, task: str, mutation: str) -> parity.Transitions:
    """What an engine makes of the task's 1280 starts, possibly broken on purpose."""
    kind = parity.TASKS[task]
    if mutation == "euler":

        class Euler(kind):
            def spec(self):
                spec = super().spec()
                spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
                return spec

        kind = Euler
    env = kind(engine, parity.STATES * parity.ACTIONS)
    if mutation == "no_contact_forces":
        env.physics._mjx_model = env.physics._mjx_model.tree_replace(
            {"opt._impl.run_rne_postconstraint": False}
        )
    return parity.computed(env, task)


def excess(engine: str, task: str, mutation: str = "") -> dict[str, float]:
    """The errors that are beyond the tolerance."""
    errors = parity.worst_errors(task, transitions(engine, task, mutation))
    tolerance = TOLERANCE_OF.get((engine, task), TOLERANCE)
    return {name: error for name, error in errors.items() if error > tolerance[name]}


def assert_close(found, want, tolerance):
    """Relative, or absolute in units of each entry's largest value in the set."""
    scale = np.abs(want).max(axis=0)
    error = np.abs(found - want)
    assert (error <= tolerance * (np.abs(want) + scale)).all(), error.max()


@pytest.mark.parametrize("task", TASKS)
def test_states_are_varied(task):
    want = parity.expected(task)
    assert len(want.reward) == 1280
    env = parity.gym_env(task)
    touching = 0
    for qpos, qvel in zip(*parity.played_states(task), strict=True):
        parity.gym_place(env, qpos, qvel)
        touching += env.data.ncon > 0
    assert touching >= parity.STATES // 2
    if parity.TASKS[task].terminates:
        assert 0 < want.terminated.mean() < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_native_transitions_equal_gymnasium(task):
    found, want = transitions("native", task, ""), parity.expected(task)
    assert_close(found.obs, want.obs, 1e-5)
    assert_close(found.reward, want.reward, 1e-5)
    np.testing.assert_array_equal(found.terminated, want.terminated)


@pytest.mark.parametrize("task", TASKS)
def test_native_trajectory_equals_gymnasium(task):
    env, theirs = parity.TASKS[task]("native"), parity.gym_env(task)
    qpos, qvel = (array[0] for array in parity.played_states(task))
    actions = np.random.default_rng(2).uniform(
        -1, 1, (TRAJECTORY_STEPS, env.action_size)
    )
    actions = actions.astype(np.float32)

    def step(state, action):
        state = env.step(state, action)
        return state.replace(metrics={}), (state.obs, state.reward, state.done > 0)

    start = parity.place(env, qpos, qvel)
    _, found = jax.jit(lambda: jax.lax.scan(step, start, actions))()
    parity.gym_place(theirs, qpos, qvel)
    controls = parity.controls(theirs, actions)
    want = zip(*(theirs.step(ctrl)[:3] for ctrl in controls), strict=True)
    obs, reward, terminated = (np.array(column) for column in want)
    assert_close(np.asarray(found[0]), obs, 1e-5)
    assert_close(np.asarray(found[1]), reward, 1e-5)
    np.testing.assert_array_equal(found[2], terminated)


@pytest.mark.parametrize(("engine", "task"), pairs("warp", "mjx"))
def test_transitions_are_gymnasiums(engine, task):
    assert not excess(engine, task)


@pytest.mark.parametrize(("engine", "task"), pairs("native", "warp", "mjx"))
def test_first_observation_is_gymnasiums(engine, task):
    found, want = (
        transitions(engine, task, "").first_obs,
        parity.expected(task).first_obs,
    )
    assert_close(found, want, 1e-5)


@pytest.mark.parametrize("task", ["ant", "humanoid"])
def test_parity_notices_missing_contact_forces(task):
    assert set(excess("warp", task, "no_contact_forces")) >= {"cfrc_ext"}


@pytest.mark.parametrize("engine", ["native", "warp"])
def test_parity_notices_another_integrator(engine):
    assert set(excess(engine, "hopper", "euler")) >= {"qpos", "qvel"}
