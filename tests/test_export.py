"""Trained policies as their users have them: loaded, and exported.

An exported policy is held against the live one, and that against Gymnasium's units.
"""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest

import iqmjx
from iqmjx import agents, envs, normalize, presets
from iqmjx.acting import Actor
from iqmjx.errors import RunError, UsageError
from iqmjx.export import checked, numpy_policy
from iqmjx.export.formats import FORMATS
from iqmjx.run import gymnasium_play, run_folder, saved_policy, trained_policy, trainer
from iqmjx.run.saved_policy import SavedPolicy
from iqmjx.run.trained_policy import TrainedPolicy
from tests import commands, test_acting, toys

OBS, ACT = 11, 3
LOWEST, HIGHEST = np.float32([-1.0, -0.4, 0.0]), np.float32([1.0, 0.8, 5.0])
BF16 = {"compute_dtype": "bfloat16"}
RAW = {"normalize_observations": False}
PLAIN = {"layer_norm": False}


def actor_of(agent, config):
    """An agent's actor, its numbers random; nothing is compiled for it."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(
        lambda: agent.average_actor(agent.init(jax.random.key(0)), None)
    )
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=leaf.shape[-2:][0] ** -0.5),
        like.params,
    )
    mean, variance = rng.normal(size=OBS), rng.uniform(0.1, 9, size=OBS)
    statistics = normalize.Normalizer(mean, variance, np.ones(()))
    actor = Actor(
        params=params,
        temperature=np.asarray(0.2),
        normalizer=statistics if config.normalize_observations else None,
    )
    return jax.tree.map(np.float32, actor)


def made(policy, **settings):
    """A policy of a class, or SAC's, in a task with actions from LOWEST to HIGHEST."""
    algo = {"algo": "sac"} if policy == "sac" else {"policy": policy}
    config = toys.config(zero_last_layer=False, **algo, **settings)
    agent = agents.make(config, OBS, ACT)
    saved = SavedPolicy(config, agent.policy, actor_of(agent, config), OBS, ACT, 7, [])
    return TrainedPolicy(saved, LOWEST, HIGHEST)


def observations(count):
    """Most as the statistics expect them, some far away."""
    rng = np.random.default_rng(2)
    far = rng.choice([1, 10], (count, 1), p=[0.9, 0.1])
    return (3 * far * rng.normal(size=(count, OBS))).astype(np.float32)


def assert_same(found, live):
    """Equal, but for the few where a sum in another order decides."""
    assert found.shape == live.shape and found.dtype == np.float32
    apart = np.abs(found - live) / ((HIGHEST - LOWEST) / 2)
    assert np.mean(apart > 1e-4) <= 2e-3, (np.mean(apart > 1e-4), apart.max())


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        ("multicategorical", {"softmax": "raw"} | BF16),
        ("autoregressive", {"softmax": "scaled"} | PLAIN),
        ("gaussian", {"softmax": "scaled"} | BF16 | PLAIN),
        ("flow", {"softmax": "shared", "advantage_scale": 3.0, "num_bins": 4} | BF16),
        pytest.param("flow", {"softmax": "raw"} | PLAIN | RAW, marks=pytest.mark.slow),
        ("tanh_gaussian", RAW),
        ("sac", BF16),
    ],
)
def test_exported_policies_act_as_the_live_one_on_any_batch(policy, settings, tmp_path):
    live = made(policy, **settings)
    obs = observations(2000)
    actions = live(obs)
    # A policy of one action would be matched by any.
    assert (actions.std(0) > 0.02 * (HIGHEST - LOWEST)).all()
    for name, form in FORMATS.items():
        path = tmp_path / f"{name}{form.suffix}"
        form.write(live, path)
        acting = form.read(path)
        for rows in (slice(1), slice(2000)):
            assert_same(np.asarray(acting(obs[rows])), actions[rows])
        with pytest.raises(Exception, match=r"11|12"):
            acting(np.zeros((2, OBS + 1), np.float32))


def test_onnx_says_what_goes_in_and_comes_out(tmp_path):
    FORMATS["onnx"].write(made("gaussian"), tmp_path / "p.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    (into,), (out,) = session.get_inputs(), session.get_outputs()
    assert (into.name, into.shape, into.type) == ("obs", ["B", OBS], "tensor(float)")
    assert (out.name, out.shape, out.type) == ("action", ["B", ACT], "tensor(float)")


@pytest.mark.parametrize("shape", [(), (OBS + 1,), (2, OBS - 1), (2, 2, OBS)])
def test_observations_of_another_size_are_refused(shape, tmp_path):
    live = made("gaussian")
    FORMATS["numpy"].write(live, tmp_path / "p.npz")
    for acting in (live, numpy_policy.load(tmp_path / "p.npz")):
        with pytest.raises(ValueError, match=r"give \[11\] or \[B, 11\]"):
            acting(np.zeros(shape))


def test_a_policy_samples_with_a_key():
    policy = made("gaussian")
    obs, key = observations(500), jax.random.key(3)
    sampled = policy(obs, key)
    np.testing.assert_array_equal(policy(obs, key), sampled)
    assert (policy(obs, jax.random.key(4)) != sampled).any()
    assert (sampled != policy(obs)).mean() > 0.5
    assert ((sampled >= LOWEST - 1e-6) & (sampled <= HIGHEST + 1e-6)).all()


class Own(test_acting.Echo):
    """A policy class from elsewhere."""


def test_a_class_from_elsewhere_is_exported_by_jax_alone(tmp_path):
    statistics = normalize.init(1)
    actor = dataclasses.replace(made("gaussian").saved.actor, normalizer=statistics)
    saved = SavedPolicy(toys.config(), Own(), actor, 1, 1, 0, [])
    policy = TrainedPolicy(saved, np.float32([-10]), np.float32([30]))
    for form in ("onnx", "numpy"):
        with pytest.raises(UsageError, match=r"^Own is a class .* --format stablehlo$"):
            FORMATS[form].write(policy, tmp_path / "p")
    assert not any(tmp_path.iterdir())
    FORMATS["stablehlo"].write(policy, tmp_path / "p")
    acting = FORMATS["stablehlo"].read(tmp_path / "p")
    # Seen as it is, but for the floor of the variance; in units of 20 around 10.
    found = acting(np.float32([[0.0], [0.5], [-1.0]]))
    np.testing.assert_allclose(found, [[10], [20], [-10]], atol=2e-3)


@pytest.mark.parametrize("off", [0.01, np.nan])
def test_a_file_that_acts_otherwise_is_not_kept(off, tmp_path, monkeypatch):
    """Whatever was there before stays."""
    live = made("gaussian")
    monkeypatch.setattr(checked, "_played", lambda _: observations(50))

    def exported():
        checked.export(live, "numpy", tmp_path / "new" / "p.npz")

    wrong = dict(load=lambda _: lambda obs: live(obs) + np.float32(off))
    with monkeypatch.context() as patched:
        patched.setattr(numpy_policy, "load", wrong["load"])
        with pytest.raises(RunError, match="not the trained one"):
            exported()
        assert not (tmp_path / "new").exists()
    exported()
    kept = (tmp_path / "new" / "p.npz").read_bytes()
    monkeypatch.setattr(numpy_policy, "load", wrong["load"])
    with pytest.raises(RunError, match="not the trained one"):
        exported()
    assert (tmp_path / "new" / "p.npz").read_bytes() == kept


@pytest.mark.parametrize("task", ["hopper", "humanoid", "door"])
def test_actions_have_the_range_of_gymnasiums(task):
    env = gymnasium_play.make(envs.REGISTRY[task])
    lowest, highest = envs.make(task, "native").action_range
    np.testing.assert_array_equal(lowest, env.action_space.low)
    np.testing.assert_array_equal(highest, env.action_space.high)
    env.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, in which a Hopper's policy is saved."""
    folder = tmp_path_factory.mktemp("export") / "run"
    config = toys.config()
    agent = agents.make(config, OBS, ACT)
    store = saved_policy.PolicyStore(folder, config, (OBS, ACT))
    store.save(192, jax.tree.map(np.asarray, actor_of(agent, config)))
    store.close()
    return folder


LOAD = """
import json, sys, time
import iqmjx
early = "jax" in sys.modules
policy = iqmjx.load(sys.argv[1])
action = policy([0.5] * policy.observation_size)
names = "gymnasium", "gymnasium_robotics", "brax", "mujoco.mjx", "warp", "matplotlib"
found = [name for name in names if name in sys.modules]
print(json.dumps([early, action.tolist(), found, time.process_time()]))
"""


def test_a_loaded_policy_acts_in_a_moment_and_without_what_training_needs(run):
    told = subprocess.run(
        [sys.executable, "-c", LOAD, run], capture_output=True, text=True, check=True
    )
    early, action, found, seconds = json.loads(told.stdout)
    assert not early and not found and seconds < 5
    policy = iqmjx.load(run)
    np.testing.assert_allclose(action, policy(np.full(OBS, 0.5)), rtol=1e-5)
    assert (policy.env, policy.env_steps) == ("hopper", 192)
    assert (policy.observation_size, policy.action_size) == (OBS, ACT)
    assert policy.config.algo == "iq" and "192 env steps" in repr(policy)
    with pytest.raises(UsageError, match=r"^\S*/nowhere: there is no saved policy"):
        iqmjx.load(run / "nowhere")


PLAY_ALONE = """
import sys
import numpy as np
from numpy_policy import load
np.save("action.npy", load("hopper.npz")(np.load("obs.npy")))
assert "iqmjx" not in sys.modules and "jax" not in sys.modules
"""


def test_an_exported_policy_acts_where_there_is_only_numpy(run, tmp_path):
    out = tmp_path / "hopper.npz"
    arguments = ["--checkpoint", str(run), "--format", "numpy", "--out", str(out)]
    code, said, errors = commands.outcome("export", arguments)
    assert (code, errors) == (0, "") and "192 env steps" in said
    assert {file.name for file in tmp_path.iterdir()} == {
        "hopper.npz",
        "numpy_policy.py",
    }
    obs = observations(100)
    np.save(tmp_path / "obs.npy", obs)
    subprocess.run([sys.executable, "-c", PLAY_ALONE], cwd=tmp_path, check=True, env={})
    live = iqmjx.load(run)(obs)
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), live, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["halfcheetah", "humanoid"])
def test_exported_policies_score_in_gymnasium_what_the_checkpoint_does(task, tmp_path):
    settings = {"env": task, "physics": "native", "num_timesteps": 30_000}
    settings |= {"num_evals": 0, "num_checkpoints": 1, "exploration_steps": 10_000}
    resolved = presets.resolve(settings, "cpu")
    run_folder.create(tmp_path, resolved)
    assert trainer.train(resolved.config, tmp_path)
    policy = trained_policy.load(tmp_path)
    acting = {"live": lambda _, obs: policy(obs)}
    for form in ("onnx", "numpy"):
        path = tmp_path / f"p{FORMATS[form].suffix}"
        checked.export(policy, form, path)
        file = FORMATS[form].read(path)
        acting[form] = lambda _, obs, file=file: file(np.float32(obs)[None])[0]
    returns = {}
    for name, choose in acting.items():
        env = gymnasium_play.make(envs.REGISTRY[task])
        returns[name] = gymnasium_play.play_episodes(env, choose, 10, seed=0).returns
        env.close()
    error = returns["live"].std(ddof=1) / np.sqrt(10)
    for form in ("onnx", "numpy"):
        assert abs(returns[form].mean() - returns["live"].mean()) <= error, returns
