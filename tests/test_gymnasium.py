"""Our vector environments, held against Gymnasium's own of the same tasks."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

import iqmjx.gymnasium
from iqmjx import envs
from iqmjx.errors import UsageError
from tests import parity, test_adroit

WORLDS, LIMIT = 8, 25
SLOW = pytest.mark.slow


def ours(task, num_envs=WORLDS, **options):
    name = f"iqmjx/{envs.REGISTRY[task].gymnasium_id}"
    return gymnasium.make_vec(name, num_envs=num_envs, physics="native", **options)


def theirs(task):
    return gymnasium.make_vec(
        envs.REGISTRY[task].gymnasium_id,
        num_envs=WORLDS,
        max_episode_steps=LIMIT,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


def place(worlds, qpos, qvel, model_fields=None):
    """Puts worlds of ours at states in which nothing has happened yet."""

    def at(*start):
        return parity.place(worlds._env, *start)

    placed = jax.jit(jax.vmap(at))(qpos, qvel, model_fields or {})
    zeros = jax.tree.map(jnp.zeros_like, worlds._state.worlds.metrics)
    worlds._state = worlds._state.replace(worlds=placed.replace(metrics=zeros))


@pytest.fixture(scope="module")
def hopper():
    return ours("hopper", max_episode_steps=LIMIT)


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=[] if t == "hopper" else SLOW) for t in parity.TASKS],
)
def test_episodes_are_gymnasium_s(task):
    """From the same states under the same actions, every step to each world's end."""
    mine, other = ours(task, max_episode_steps=LIMIT), theirs(task)
    mine.reset(seed=0)
    other.reset(seed=0)
    starts = [leaf[:WORLDS] for leaf in parity.played_states(task)]
    place(mine, *starts)
    for env, *start in zip(other.envs, *starts, strict=True):
        parity.gym_place(env.unwrapped, *start)
    assert mine.single_action_space == other.single_action_space
    assert mine.single_observation_space.shape == other.single_observation_space.shape
    assert mine.metadata["autoreset_mode"] == other.metadata["autoreset_mode"]

    def close(found, wanted):
        error = np.abs(found - wanted)
        assert (error <= 1e-4 * (1 + np.abs(wanted))).all(), error.max()

    other.action_space.seed(0)
    going = np.ones(WORLDS, bool)
    terminations = 0
    for _ in range(LIMIT):
        actions = other.action_space.sample()
        obs, reward, terminated, truncated, info = mine.step(actions)
        their_obs, their_reward, *their_ends, their_info = other.step(actions)
        close(reward[going], their_reward[going])
        for found, wanted in zip((terminated, truncated), their_ends, strict=True):
            np.testing.assert_array_equal(found[going], wanted[going])
        ends = going & (terminated | truncated)
        terminations += (terminated & going).sum()
        going &= ~ends
        close(obs[going], their_obs[going])
        for world in np.flatnonzero(ends):
            close(info["final_obs"][world], their_info["final_obs"][world])
            for name in {*info["final_info"]} & {*their_info["final_info"]}:
                found, wanted = (
                    told["final_info"][name] for told in (info, their_info)
                )
                close(found[world].astype(float), np.asarray(wanted[world], float))
    assert not going.any()
    assert (terminations > 0) == envs.REGISTRY[task].terminates


@pytest.mark.slow
@pytest.mark.parametrize("task", test_adroit.TASKS)
def test_the_hand_takes_gymnasium_s_actions(task):
    worlds, env = ours(task), test_adroit.gym_env(task)
    assert worlds.single_action_space == env.action_space
    assert worlds.single_observation_space.shape == env.observation_space.shape
    worlds.reset(seed=0)
    starts = jax.tree.map(lambda leaf: leaf[:WORLDS], test_adroit.starts(task))
    place(worlds, *starts)
    actions = np.random.default_rng(0).uniform(-1, 1, worlds.action_space.shape)
    obs, reward, *_, info = worlds.step(actions)
    qpos, qvel, model_fields = starts
    for world in range(WORLDS):
        for field, values in model_fields.items():
            getattr(env.model, field)[:] = values[world]
        parity.gym_place(env, qpos[world], qvel[world])
        wanted, their_reward, _, _, told = env.step(actions[world])
        np.testing.assert_allclose(obs[world], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reward[world], their_reward, rtol=1e-4, atol=1e-4)
        assert info["success"][world] == told["success"]


def test_what_a_step_says_has_the_form_that_gymnasium_s_has(hopper):
    """Compared by keys and types, where some worlds have ended and some have not."""
    other = theirs("hopper")
    hopper.reset(seed=0)
    other.reset(seed=0)
    seen = set()
    for _ in range(2 * LIMIT):
        actions = hopper.action_space.sample()
        mine, wanted = hopper.step(actions), other.step(actions)
        assert mine[0] in hopper.observation_space
        for found, like in zip(mine[:4], wanted[:4], strict=True):
            assert type(found) is type(like) and found.shape == like.shape
            assert found.flags.writeable
        ended = mine[2] | mine[3]
        info = mine[4]
        assert ("final_obs" in info) == ended.any() == ("final_info" in info)
        if not ended.any():
            continue
        seen.add(bool(ended.all()))
        for name in ("final_obs", "final_info"):
            np.testing.assert_array_equal(info[f"_{name}"], ended)
        assert [obs is not None for obs in info["final_obs"]] == ended.tolist()
        assert info["final_obs"].dtype == object
        assert all(
            obs in hopper.single_observation_space for obs in info["final_obs"][ended]
        )
        for told, mask in ((info, ~ended), (info["final_info"], ended)):
            np.testing.assert_array_equal(told["_x_velocity"], mask)
            assert not told["x_velocity"][~mask].any()
        assert info["final_info"]["diverged"].dtype == bool
        assert not info["final_info"]["diverged"].any()
        # The worlds that ended show a start, near which hopper always begins.
        assert (np.abs(mine[0][ended] - np.eye(11)[0] * 1.25) < 0.01).all()
    assert False in seen


def test_the_time_limit_counts_from_the_reset_and_truncates(monkeypatch):
    """Also where a task never terminates, whose worlds training spreads in phase."""
    monkeypatch.setattr(envs.REGISTRY["hopper"], "terminates", False)
    worlds = ours("hopper", max_episode_steps=LIMIT)
    worlds.reset(seed=0)
    for step in range(1, 2 * LIMIT + 1):
        *_, terminated, truncated, _ = worlds.step(np.zeros((WORLDS, 3)))
        assert not terminated.any()
        assert truncated.tolist() == [step % LIMIT == 0] * WORLDS


def test_seeds_decide_all_that_is_random(hopper):
    def episode(seed):
        steps = [hopper.reset(seed=seed)]
        steps += [hopper.step(np.ones((WORLDS, 3))) for _ in range(LIMIT + 1)]
        return steps

    first, second, other = episode(3), episode(3), episode(4)
    assert data_equivalence(first, second, exact=True)
    starts = [steps[when][0] for steps in (first, other) for when in (0, -1)]
    later, _ = hopper.reset()
    assert len(np.unique(np.concatenate([*starts, later]), axis=0)) == 5 * WORLDS


def test_a_start_is_taken_once(hopper):
    """Controls that are none end all episodes at every step: 20 times 8 starts."""
    seen = [hopper.reset(seed=0)[0]]
    seen += [hopper.step(np.full((WORLDS, 3), np.nan))[0] for _ in range(20)]
    assert len(np.unique(np.concatenate(seen), axis=0)) == 21 * WORLDS


def test_actions_may_be_jax_arrays_in_a_program_of_double_precision(hopper):
    actions = np.full((WORLDS, 3), 0.5)
    hopper.reset(seed=0)
    wanted = hopper.step(actions)
    with jax.enable_x64(True):
        hopper.reset(seed=0)
        found = hopper.step(jnp.asarray(actions))
    assert data_equivalence(found, wanted, exact=True)


def test_a_world_that_leaves_the_numbers_is_told_of(hopper):
    before, _ = hopper.reset(seed=0)
    actions = np.zeros((WORLDS, 3))
    actions[2, 1] = np.nan
    obs, reward, terminated, _, info = hopper.step(actions)
    assert terminated.tolist() == [world == 2 for world in range(WORLDS)]
    assert info["final_info"]["diverged"].tolist() == terminated.tolist()
    np.testing.assert_array_equal(info["final_obs"][2], before[2])
    assert reward[2] == 0 and np.isfinite(obs).all()


def test_gymnasium_s_wrapper_counts_whole_episodes(hopper):
    worlds = gymnasium.wrappers.vector.RecordEpisodeStatistics(hopper)
    worlds.reset(seed=0)
    total = np.zeros(WORLDS)
    for _ in range(LIMIT):
        _, reward, _, _, info = worlds.step(np.zeros((WORLDS, 3)))
        total += reward
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-6)
    assert info["episode"]["l"].tolist() == [LIMIT] * WORLDS


def test_every_task_is_registered_under_gymnasium_s_name():
    names = {name for name in gymnasium.registry if name.startswith("iqmjx/")}
    assert names == {f"iqmjx/{env.gymnasium_id}" for env in envs.REGISTRY.values()}
    assert {"iqmjx/Humanoid-v5", "iqmjx/AdroitHandDoor-v2"} <= names
    for name in names:
        task = envs.REGISTRY[envs.resolve(name.removeprefix("iqmjx/"))]
        assert gymnasium.spec(name).max_episode_steps == task.episode_length
    assert issubclass(iqmjx.gymnasium.Worlds, gymnasium.vector.VectorEnv)


def test_mistakes_are_told(hopper):
    fresh = ours("hopper")
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        fresh.step(np.zeros((WORLDS, 3)))
    fresh.reset(seed=0)
    with pytest.raises(UsageError, match=r"their shape is \(3,\); give \(8, 3\)"):
        fresh.step(np.zeros(3))
    with pytest.raises(UsageError, match="options: reset_mask is unknown"):
        fresh.reset(options={"reset_mask": np.ones(WORLDS, bool)})
    with pytest.raises(UsageError, match="num_envs 0: give"):
        ours("hopper", num_envs=0)
    fresh.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(np.zeros((WORLDS, 3)))
