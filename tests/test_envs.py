import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from iqmjx import envs
from iqmjx.envs import physics

SIZES = {
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "halfcheetah": (17, 6),
    "ant": (105, 8),
    "humanoid": (348, 17),
}


@pytest.fixture(scope="module", params=SIZES)
def env(request):
    return envs.make(request.param, "native", 8)


def test_sizes_and_finite_random_play_in_one_trace(env):
    assert (env.observation_size, env.action_size) == SIZES[env.name]
    chex.clear_trace_counter()  # it counts by the function's name
    batched = jax.vmap(env.step)
    step = jax.jit(chex.assert_max_traces(lambda s, a: batched(s, a), n=1))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 8))
    assert jnp.unique(state.obs, axis=0).shape[0] == 8
    for key in jax.random.split(jax.random.key(1), 100):
        action = jax.random.uniform(key, (8, env.action_size), minval=-1, maxval=1)
        state = step(state, action)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.obs))
    assert not state.pipeline_state.faults.any()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("humanoid", "humanoid"),
        ("Humanoid-v5", "humanoid"),
        ("half_cheetah", "halfcheetah"),
        ("HalfCheetah-v5", "halfcheetah"),
        ("WALKER2D", "walker2d"),
    ],
)
def test_spellings(spelling, name):
    assert envs.resolve(spelling) == name


def test_unknown_names_get_close_ones():
    with pytest.raises(ValueError, match="did you mean halfcheetah"):
        envs.resolve("halfcheeta")
    with pytest.raises(ValueError, match="such as hopper, walker2d"):
        envs.resolve("qqq")


def test_native_worlds_are_independent_of_their_place_and_of_threads(env):
    """No state hides in the threads: reordering worlds reorders results, exactly."""
    state = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 8))
    action = jax.random.uniform(jax.random.key(1), (8, env.action_size), minval=-1)
    step = jax.jit(jax.vmap(env.step))
    order = np.random.default_rng(0).permutation(8)
    for _ in range(5):
        reordered = step(jax.tree.map(lambda leaf: leaf[order], state), action[order])
        state = step(state, action)
        chex.assert_trees_all_equal(
            jax.tree.map(lambda leaf: leaf[order], state), reordered
        )


def test_native_continues_exactly_as_mujoco_does(env):
    """The carry is MuJoCo's own state, warm start included, to the last bit."""
    state = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    data = mujoco.MjData(env.physics.model)
    data.qpos[:], data.qvel[:] = state.pipeline_state.qpos, state.pipeline_state.qvel
    mujoco.mj_forward(env.physics.model, data)
    for key in jax.random.split(jax.random.key(1), 30):
        action = jax.random.uniform(key, (env.action_size,), minval=-1)
        state = step(state, action)
        data.ctrl[:] = env.ctrl(action)
        mujoco.mj_step(env.physics.model, data, env.frame_skip)
    expected = np.concatenate(
        [[data.time], data.qpos, data.qvel, data.act, data.qacc_warmstart]
    )
    doubles = np.asarray(state.pipeline_state.carry).view(np.float64)
    np.testing.assert_array_equal(doubles, expected)


def test_nested_vmap_and_scan():
    env = envs.make("hopper", "native", 6)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    state = jax.vmap(jax.vmap(env.reset))(keys)
    flat = jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), state)
    action = jnp.full((2, 3, 3), 0.5)

    def play(state, action, step):
        return jax.lax.scan(lambda s, _: (step(s, action), None), state, length=4)[0]

    play = jax.jit(play, static_argnums=2)  # each function its own program
    nested = play(state, action, jax.vmap(jax.vmap(env.step)))
    plain = play(flat, action.reshape(6, 3), jax.vmap(env.step))
    np.testing.assert_array_equal(nested.obs.reshape(6, -1), plain.obs)


def test_auto_is_native_on_a_cpu():
    assert physics.resolve("auto") == "native"


def test_warp_is_refused_on_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert physics.resolve("auto") == "mjx"
    with pytest.raises(ValueError, match=r"^warp runs on .*use mjx"):
        physics.resolve("warp")


@pytest.mark.filterwarnings("ignore")  # brax's own imports
def test_brax_wrappers_accept_the_environments():
    from brax.envs.wrappers import training

    env = envs.make("hopper", "native", 4)
    wrapped = training.wrap(env, episode_length=7)
    keys = jax.random.split(jax.random.PRNGKey(0), 4)  # brax counts on raw keys
    state = jax.jit(wrapped.reset)(keys)
    step = jax.jit(wrapped.step)
    for _ in range(7):
        state = step(state, jnp.zeros((4, env.action_size)))
    np.testing.assert_array_equal(state.info["truncation"], 1)
    assert (state.info["steps"] == 7).all()
