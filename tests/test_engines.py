"""What all engines promise beside the physics itself (see `iqmjx.envs.physics`)."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from iqmjx.envs import physics, vector
from iqmjx.envs.physics import FAULT_CONSTRAINTS, FAULT_CONTACTS
from tests import parity

ENGINES = ["native", "warp", "mjx"]
# A pendulum on a hook that may hang anywhere, and three balls on the floor.
PENDULUM = """
<mujoco>
  <option timestep="0.01" integrator="RK4"/>
  <worldbody>
    <body name="hook" pos="0 0 2">
      <body pos="0.1 0 0">
        <joint type="hinge" axis="0 1 0"/>
        <geom type="capsule" size="0.05" fromto="0 0 0 0.5 0 0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
BALLS = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body pos="0 0 0.09"><freejoint/><geom size="0.1"/></body>
    <body pos="1 0 0.09"><freejoint/><geom size="0.1"/></body>
    <body pos="2 0 0.09"><freejoint/><geom size="0.1"/></body>
  </worldbody>
</mujoco>
"""

# A ball that falls on another which cannot move; contacts of one dimension.
PAIR = '<pair geom1="below" geom2="above" condim="1"/>'
TWO_BALLS = """
<mujoco>
  <worldbody>
    <geom name="below" size="0.1"/>
    <body pos="0 0 0.19"><freejoint/><geom name="above" size="0.1"/></body>
  </worldbody>
  <contact>%s</contact>
</mujoco>
"""
# What stands on a slope, and would not slide down it if friction were rigid.
SLOPE = """
<mujoco>
  <option gravity="4 0 -9" noslip_iterations="%d"/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body pos="0 0 0.0999">
      <joint type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 0 1"/>
      <geom size="0.1"/>
    </body>
  </worldbody>
</mujoco>
"""


def make(engine, xml, **options):
    spec = mujoco.MjSpec.from_string(xml)
    return physics.make(engine, spec, frame_skip=3, **options)


def compiled(engine, function):
    quick = parity.QUICK_COMPILE if engine.name == "mjx" else None
    return jax.jit(function, compiler_options=quick)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot pin a CPU")
def test_native_steps_on_one_cpu_a_program_that_waited_for_its_input():
    # XLA then runs the program on its pool's only thread: nothing else of the pool can
    # hand the callback its arguments (a resumed run on one CPU waited forever).
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp
from tests import test_engines
engine = test_engines.make("native", test_engines.BALLS)
ctrl = jnp.zeros((1024, 0))
state = jax.vmap(engine.init)(jnp.zeros((1024, 21)), jnp.zeros((1024, 18)))
one = lambda state, _: (jax.vmap(engine.step)(state, ctrl), None)
step = jax.jit(lambda state: jax.lax.scan(one, state, None, 3)[0])
step = step.lower(state).compile()
work = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: x @ x, x))
late = work(jnp.zeros((1000, 1000)))[0, 0].astype(jnp.uint32)
state = jax.tree.map(lambda x: x + late.astype(x.dtype), state)
jax.block_until_ready(step(state))
"""
    command = [sys.executable, "-c", code]
    one_thread = os.environ | {"PJRT_NPROC": "1"}
    subprocess.run(command, env=one_thread, check=True, timeout=60)


def test_native_s_functions_have_a_number_for_what_they_compute():
    def numbers(xml=PENDULUM, frame_skip=3, **options):
        spec = mujoco.MjSpec.from_string(xml)
        engine = physics.make("native", spec, frame_skip=frame_skip, **options)
        return [engine._number(name) for name in ("_init", "_step")]

    same = numbers(), numbers()
    others = (
        numbers(BALLS),
        numbers(PENDULUM.replace("0.1", "0.2", 1)),
        numbers(frame_skip=4),
        numbers(fields=["xpos"]),
        numbers(model_fields=["body_pos"]),
    )
    assert same[0] == same[1]
    every = [number for each in (same[0], *others) for number in each]
    assert len(set(every)) == len(every) == 12


@pytest.mark.parametrize(
    ("engine", "fields"),
    # Contact forces are another way through `native`.
    [*((engine, ["xpos"]) for engine in ENGINES), ("native", ["xpos", "cfrc_ext"])],
)
def test_model_fields_are_each_worlds_own(engine, fields):
    options = {"model_fields": ["body_pos"], "fields": fields}
    pos = make(engine, PENDULUM).model.body_pos.astype(np.float32)
    # The second world's pendulum hangs elsewhere, and its mass further from the hinge.
    pos = np.stack([pos, pos + np.float32([[0, 0, 0], [3, 0, 0], [0, 0, 0.4]])])
    zeros = jnp.zeros(1)

    def run(engine, body_pos):
        start = engine.init(zeros, zeros, {"body_pos": body_pos})
        return jax.lax.fori_loop(
            0, 3, lambda _, state: engine.step(state, jnp.zeros(0)), start
        )

    both = make(engine, PENDULUM, num_worlds=2, **options)
    together = compiled(both, jax.vmap(functools.partial(run, both)))(pos)
    one = make(engine, PENDULUM, **options)
    lone = compiled(one, functools.partial(run, one))
    for world in range(2):
        alone = lone(pos[world])
        ours = jax.tree.map(lambda leaf, world=world: leaf[world], together)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            (ours.qpos, ours.qvel, ours.fields, ours.model_fields),
            (alone.qpos, alone.qvel, alone.fields, alone.model_fields),
        )
    moved = together.fields["xpos"][1] - together.fields["xpos"][0]
    np.testing.assert_allclose(moved[1:], [[3, 0, 0], [3, 0, 0.4]], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_static_body_collides_where_each_world_has_it(engine):
    """Warp places geoms without joints once, unless told otherwise."""
    table = """
    <mujoco>
      <worldbody>
        <body name="table" pos="0 0 0.5"><body pos="0 0 0.1">
          <geom type="box" size="1 1 0.05" pos="0 0 -0.2"/>
        </body></body>
        <body pos="0 0 1"><freejoint/><geom size="0.1"/></body>
      </worldbody>
    </mujoco>
    """
    options = {"model_fields": ["body_pos", "body_quat"], "num_worlds": 3}
    world = make(engine, table, **options)
    pos = np.tile(world.model.body_pos.astype(np.float32), (3, 1, 1))
    quat = np.tile(world.model.body_quat.astype(np.float32), (3, 1, 1))
    pos[1, 1] = [0, 0, 0.98]  # now its top is 0.93 high: the ball is 0.03 deep in it
    pos[2, 1], quat[2, 1] = [0, 0, 0.78], [0, 1, 0, 0]  # as high, upside down

    def bounce(pos, quat):
        qpos = jnp.asarray(world.model.qpos0, jnp.float32)
        start = world.init(qpos, jnp.zeros(6), {"body_pos": pos, "body_quat": quat})
        return world.step(start, jnp.zeros(0)).qvel[2]

    falling, thrown, turned = compiled(world, jax.vmap(bounce))(pos, quat)
    np.testing.assert_allclose(falling, -9.81 * 3 * 0.002, rtol=1e-3)
    assert thrown > 0.1 and abs(turned - thrown) < 1e-3


@pytest.mark.parametrize(
    ("engine", "sizes", "expected"),
    [
        ("warp", {"contacts_per_world": 16, "constraints_per_world": 64}, 0),
        ("warp", {"contacts_per_world": 2}, FAULT_CONTACTS),
        ("warp", {"constraints_per_world": 5}, FAULT_CONSTRAINTS),
        ("mjx", {"contacts_per_world": 3}, 0),
        ("mjx", {"contacts_per_world": 2}, FAULT_CONTACTS),
        ("native", {"contacts_per_world": 2}, 0),
    ],
)
def test_overflow_is_reported(engine, sizes, expected):
    balls = make(engine, BALLS, **sizes)
    qpos, qvel = jnp.asarray(balls.model.qpos0, jnp.float32), jnp.zeros(balls.model.nv)
    start = compiled(balls, balls.init)(qpos, qvel)
    assert start.faults == 0
    assert compiled(balls, balls.step)(start, jnp.zeros(0)).faults == expected


@pytest.mark.parametrize("fields", [[], ["cfrc_ext"]])
def test_native_reports_a_full_arena(fields):
    """Reported of the world whose contacts did not fit, and of no other."""
    ball = '<body><freejoint/><geom size="0.1"/></body>'
    balls = make(
        "native",
        f'<mujoco><size memory="100K"/><worldbody>{20 * ball}</worldbody></mujoco>',
        fields=fields,
    )
    qpos = np.zeros((2, 20, 7), np.float32)
    qpos[..., 0] = np.arange(20) * np.float32([[0.01], [1.0]])  # a heap, and a line
    qpos[..., 3] = 1
    step = jax.jit(jax.vmap(balls.step))
    start = jax.vmap(balls.init)(qpos.reshape(2, -1), jnp.zeros((2, 20 * 6)))
    faults = step(start, jnp.zeros((2, 0))).faults
    assert faults.tolist() == [FAULT_CONTACTS | FAULT_CONSTRAINTS, 0]
    swapped = jax.tree.map(lambda leaf: leaf[::-1], start)
    faults = step(swapped, jnp.zeros((2, 0))).faults
    assert faults.tolist() == [0, FAULT_CONTACTS | FAULT_CONSTRAINTS]


@pytest.mark.parametrize(
    "engine",
    [pytest.param(e, marks=[pytest.mark.slow] * (e == "mjx")) for e in ENGINES],
)
def test_worlds_are_reset_one_by_one(engine):
    """A scan over `vector.step`, under another vmap (two seeds of three worlds)."""
    env = parity.TASKS["hopper"](engine, num_worlds=6)
    limit = 3

    def run(key):
        init_key, bank_key, step_key = jax.random.split(key, 3)
        state = vector.init(env, init_key, 3, limit)
        state = state.replace(steps=jnp.arange(3))  # so that they end one by one
        bank = vector.make_bank(env, bank_key, 3)

        def step(state, key):
            return vector.step(env, state, jnp.ones((3, 3)), bank, key, limit)

        return bank, *jax.lax.scan(step, state, jax.random.split(step_key, 5))

    keys = jax.random.split(jax.random.key(0), 2)
    bank, state, outcome = compiled(env.physics, jax.vmap(run))(keys)
    ended = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(outcome.truncated, [ended, ended])
    np.testing.assert_array_equal(state.steps, [[2, 0, 1]] * 2)
    worlds, starts = state.worlds.pipeline_state, bank.pipeline_state.qpos
    for seed in range(2):
        assert (worlds.qpos[seed, 1] == starts[seed]).all(1).any()
        assert not (worlds.qpos[seed, 0] == starts[seed]).all(1).any()
    if engine != "native":  # whose clock is among the bits of its carry
        np.testing.assert_allclose(worlds.carry["time"], state.steps * env.dt)
    assert jnp.isfinite(outcome.next_obs).all()


def run(engine, steps):
    """One world's qpos [nq] and qvel [nv] after some control steps from its start."""
    model = engine.model
    state = engine.init(jnp.asarray(model.qpos0, jnp.float32), jnp.zeros(model.nv))
    ctrl = jnp.zeros(model.nu)
    step = compiled(engine, lambda state: engine.step(state, ctrl))
    for _ in range(steps):
        state = step(state)
    return np.asarray(state.qpos), np.asarray(state.qvel)


@pytest.mark.slow
def test_warp_collides_a_pair_as_often_as_it_is_listed():
    once, twice = (run(make("native", TWO_BALLS % (PAIR * n)), 1)[1] for n in (1, 2))
    assert abs(twice - once).max() > 3e-3  # m/s
    found = run(make("warp", TWO_BALLS % (PAIR * 2)), 1)[1]
    np.testing.assert_allclose(found, twice, atol=1e-5)


@pytest.mark.parametrize("engine", ["native", "warp"])
def test_nothing_slips_where_the_model_asks_for_noslip(engine):
    creeping, standing = (
        run(make(name, SLOPE % iterations), 50)[1][0]  # m/s
        for name, iterations in (("native", 0), (engine, 20))
    )
    assert creeping > 1e-3 and abs(standing) < 1e-5
