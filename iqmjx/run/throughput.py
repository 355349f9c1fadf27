"""How fast a training step and its parts run, each alone and then together."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

import iqmjx
from iqmjx import acting, loop
from iqmjx.config import Config
from iqmjx.envs import vector
from iqmjx.envs.physics import silence
from iqmjx.parallel import BY_SEED, BY_SHARD
from iqmjx.replay import Transition
from iqmjx.run import memory

_SECONDS = 1.0
"""Least time that each part runs for in each round."""
_ROLLOUT_WORLDS, _ROLLOUT_STEPS = 256, 20
_PACKAGES = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "warp-lang")


def measure(config: Config, rounds: int, trace: str | None = None) -> dict[str, Any]:
    """Benchmarks one config: compile time, the parts' rates, and their whole.

    Args:
        config: what is benchmarked.
        rounds: how often each part is timed; rates are medians.
        trace: a folder for a profile of one chunk of training, taken after the timing.

    Returns:
        Rates per second of wall-clock time; `efficiency` is the training rate over the
        rate that stepping the same worlds under the same controls, and updates, each
        measured alone, would allow one after the other; `rollout_ratio` (native only)
        is in-scan stepping over `mujoco.rollout` with the same threads, worlds and
        controls.
    """
    setup = loop.make_setup(config)
    state = loop.init(setup)
    start = time.perf_counter()
    train = loop.train_chunk.lower(setup, state).compile()
    compile_seconds = time.perf_counter() - start
    state, _ = loop.warm_up(setup, state)

    step, visit, keys = stepping(setup), _visit(setup), _keys(setup)
    worlds: Any = None
    controls: Any = None

    def prepare():
        nonlocal worlds, controls
        worlds = jax.tree.map(jnp.copy, state.envs)  # training will have the others
        controls = jax.block_until_ready(visit(state, keys))

    def train_once():
        nonlocal state
        state, metrics = train(state)
        return metrics

    chunk, per_vector_step = config.chunk_steps, config.grad_updates_per_step
    parts: dict[str, tuple[Callable[[], Any], int]] = {
        "physics": (lambda: step(worlds, controls, keys), chunk),
        "acting": (_acting(setup, state), chunk),
        "updates": (updating(setup, state), chunk * per_vector_step),
        "training": (train_once, chunk),
    }
    engine: Any = setup.env.physics
    if engine.name == "native":
        in_scan, raw = _rollout_pair(setup)
        parts |= {
            "in_scan": (in_scan, _ROLLOUT_STEPS),
            "rollout": (raw, _ROLLOUT_STEPS),
        }
    seen = _rates(parts, rounds, prepare)  # vector steps (or updates) per second
    measured = {name: statistics.median(rates) for name, rates in seen.items()}
    if trace is not None:
        with jax.profiler.trace(trace):
            jax.block_until_ready(train_once())
    worlds_stepped = config.num_envs * config.num_seeds
    steps = {name: rate * worlds_stepped for name, rate in measured.items()}
    update_rate = measured["updates"]
    efficiency = statistics.median(
        training * (1 / physics + per_vector_step / updates)
        for training, physics, updates in zip(
            seen["training"], seen["physics"], seen["updates"], strict=True
        )
    )
    updates_in_training = measured["training"] * per_vector_step * config.num_seeds
    result = {
        "env": setup.env.gymnasium_id or setup.env.name,
        "physics": engine.name,
        "num_seeds": config.num_seeds,
        "num_envs": config.num_envs,
        "grad_updates_per_step": per_vector_step,
        "batch_size": config.batch_size,
        "replay_ratio": config.replay_ratio,
        "compile_seconds": compile_seconds,
        "env_steps_per_second": steps["training"],
        "physics_only_env_steps_per_second": steps["physics"],
        "acting_env_steps_per_second": steps["acting"],
        "updates_only_per_second": update_rate * config.num_seeds,
        "updates_per_second": updates_in_training,
        "samples_per_second": updates_in_training * config.batch_size,
        "efficiency": efficiency,
        "peak_memory_bytes": memory.peak(),
    }
    if setup.env.frame_skip is not None:
        rate = steps["physics"] * setup.env.frame_skip
        result["physics_steps_per_second"] = rate
    if engine.name == "native":
        result["threads"] = engine.num_threads
        result["rollout_worlds"] = _ROLLOUT_WORLDS
        result["rollout_env_steps_per_second"] = measured["rollout"] * _ROLLOUT_WORLDS
        result["rollout_ratio"] = measured["in_scan"] / measured["rollout"]
    return result


def _rates(
    parts: dict[str, tuple[Callable[[], Any], int]],
    rounds: int,
    prepare: Callable[[], None],
) -> dict[str, list[float]]:
    """Rates of each part by round: its units of work per second.

    `prepare` is called before a round, outside all timing.
    """
    prepare()
    for run, _ in parts.values():
        jax.block_until_ready(run())
    seen: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        prepare()
        for name, (run, units) in parts.items():
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < _SECONDS:
                jax.block_until_ready(run())
                calls += 1
            seen[name].append(calls * units / (time.perf_counter() - start))
    return seen


def stepping(setup: loop.Setup) -> Callable[..., Any]:
    """A chunk of vector steps, resets included, in one scan.

    Returns a compiled function of (worlds [S, G, N/G, ...], controls [S, G, T, N/G, A],
    keys [S]), for the worlds after it and the outcomes that are counted of each step
    [S, G, T]: (worlds that overflowed, worlds that diverged).
    """

    def run(worlds, controls, key):
        worlds, counts, _ = _chunk(setup, worlds, key, lambda _, c: c, controls)
        return worlds, counts

    specs = (BY_SHARD, BY_SHARD, BY_SEED)
    return _for_all(setup, run, specs, (BY_SHARD, BY_SHARD))


def _for_all(
    setup: loop.Setup,
    run: Callable[..., Any],
    in_specs: Any,
    out_specs: Any,
    *,
    in_turn: bool = False,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compiles a function of one shard of one seed for all of them."""
    on_a_device = setup.layout.over_all(run, in_specs, out_specs, in_turn=in_turn)
    on_all = setup.layout.on_devices(on_a_device, in_specs, out_specs)
    return jax.jit(on_all, compiler_options=compiler_options)


def _keys(setup: loop.Setup) -> Key[Array, " S"]:
    """Some keys."""
    return jax.random.split(jax.random.key(0), setup.layout.num_seeds)


def _chunk(setup: loop.Setup, worlds, key: PRNGKeyArray, choose, inputs: Array):
    """Steps a shard's worlds for a chunk, under `choose(worlds, input)` of each [T].

    Returns the worlds, each step's counts (overflowed, diverged), and the controls.
    """
    config, env = setup.config, setup.env
    bank_key, key = jax.random.split(setup.shards.own_key(key))
    bank = vector.make_bank(env, bank_key, setup.worlds_per_shard)

    def step(worlds, inputs):
        env_key, given = inputs
        control = choose(worlds, given)
        worlds, outcome = vector.step(
            env, worlds, control, bank, env_key, config.episode_length
        )
        counts = outcome.overflowed.sum(), outcome.diverged.sum()
        return worlds, (counts, control)

    keys = jax.random.split(key, config.chunk_steps)
    worlds, (counts, controls) = jax.lax.scan(step, worlds, (keys, inputs))
    return worlds, counts, controls


def random_controls(setup: loop.Setup, key: PRNGKeyArray) -> Array:
    """Controls [S, G, T, N/G, A] of uniform actions for a chunk."""
    policy, layout = setup.agent.policy, setup.layout
    shape = (layout.num_seeds, layout.num_shards, setup.config.chunk_steps)
    shape = (*shape, setup.worlds_per_shard)
    control = policy.control(policy.random(key, math.prod(shape)))
    return control.reshape(*shape, control.shape[-1])


def _visit(setup: loop.Setup) -> Callable[[loop.TrainState, PRNGKeyArray], Array]:
    """The controls [S, G, T, N/G, A] of a training state's policy over a chunk.

    What a world costs depends on where the policy takes it (a fallen humanoid has many
    contacts): `stepping` with these, from the state's worlds and with the same keys,
    meets what training meets, resets included. The policy stays as it is.
    """
    policy = setup.agent.policy

    def run(learner, normalizer, worlds, key):
        actor = loop.actor(setup, learner, normalizer)

        def choose(worlds, act_key):
            return policy.control(acting.act(policy, actor, worlds.obs, act_key))

        act_keys = jax.random.split(
            setup.shards.own_key(jax.random.fold_in(key, 1)), setup.config.chunk_steps
        )
        return _chunk(setup, worlds, key, choose, act_keys)[2]

    visit = _for_all(setup, run, (BY_SEED, BY_SEED, BY_SHARD, BY_SEED), BY_SHARD)
    return lambda state, keys: visit(state.learner, state.normalizer, state.envs, keys)


def _acting(setup: loop.Setup, state: loop.TrainState) -> Callable[[], Any]:
    """A chunk of action choices for all worlds."""
    policy = setup.agent.policy

    def run(learner, normalizer, obs, key):
        actor = loop.actor(setup, learner, normalizer)

        def act(obs, key):
            action = acting.act(policy, actor, obs, key)
            return obs + 1e-6 * action.mean(), None  # no step like the one before

        keys = jax.random.split(setup.shards.own_key(key), setup.config.chunk_steps)
        return jax.lax.scan(act, obs, keys)[0]

    choose = _for_all(setup, run, (BY_SEED, BY_SEED, BY_SHARD, BY_SEED), BY_SHARD)
    learner, normalizer, obs = jax.tree.map(
        jnp.copy, (state.learner, state.normalizer, state.envs.obs)
    )
    return lambda: choose(learner, normalizer, obs, _keys(setup))


def updating(
    setup: loop.Setup,
    state: loop.TrainState,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[], Any]:
    """A chunk's updates, on K batches that are ready."""
    config, layout = setup.config, setup.layout

    def run(learner, first, others, key):
        def vector_step(learner, key):
            return loop.update(setup, learner, first, others, key)

        keys = jax.random.split(setup.shards.own_key(key), config.chunk_steps)
        return jax.lax.scan(vector_step, learner, keys)

    specs = (BY_SEED, BY_SHARD, BY_SHARD, BY_SEED)
    updates = _for_all(
        setup,
        run,
        specs,
        (BY_SEED, BY_SEED),
        in_turn=True,
        compiler_options=compiler_options,
    )
    shards = (layout.num_seeds, layout.num_shards)
    size = config.batch_size // layout.num_shards
    first = _some_batches(setup, (*shards, size))
    others = _some_batches(setup, (*shards, config.grad_updates_per_step - 1, size))
    learner = jax.tree.map(jnp.copy, state.learner)
    return lambda: updates(learner, first, others, _keys(setup))


def _some_batches(setup: loop.Setup, shape: tuple[int, ...]) -> Transition:
    obs_key, action_key = jax.random.split(jax.random.key(1))
    obs = jax.random.normal(obs_key, (*shape, setup.env.observation_size))
    action = setup.agent.policy.random(action_key, math.prod(shape))
    return Transition(
        obs=obs,
        action=action.reshape(*shape, *action.shape[1:]),
        reward=jnp.ones(shape),
        discount=jnp.ones(shape),
        weight=jnp.ones(shape),
        next_obs=obs + 0.1,
    )


def _rollout_pair(setup: loop.Setup) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Stepping inside a scan, and `mujoco.rollout`: same states, controls, threads."""
    engine: Any = setup.env.physics
    model, threads = engine.model, engine.num_threads
    keys = jax.random.split(jax.random.key(0), _ROLLOUT_WORLDS)
    worlds = jax.vmap(setup.env.reset)(keys).pipeline_state
    low, high = model.actuator_ctrlrange.T
    shape = (_ROLLOUT_STEPS, _ROLLOUT_WORLDS, model.nu)
    controls = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)

    @jax.jit
    def in_scan(worlds, controls):
        def step(worlds, control):
            return jax.vmap(engine.step)(worlds, control), None

        return jax.lax.scan(step, worlds, controls)[0].qpos

    full = mujoco.mjtState.mjSTATE_FULLPHYSICS
    states = np.zeros((_ROLLOUT_WORLDS, mujoco.mj_stateSize(model, full)))
    states[:, 1 : 1 + model.nq] = worlds.qpos
    states[:, 1 + model.nq : 1 + model.nq + model.nv] = worlds.qvel
    held = np.repeat(controls.swapaxes(0, 1), engine.frame_skip, 1).astype(np.float64)
    data = [mujoco.MjData(model) for _ in range(threads)]

    def raw():
        # A pool of its own each time: an idle one would take CPU from the other parts.
        with silence, mujoco.rollout.Rollout(nthread=threads) as pool:
            return pool.rollout(model, data, states, held)[0]

    return lambda: in_scan(worlds, jnp.asarray(controls)), raw


def machine() -> dict[str, Any]:
    """The device, the processor, and the versions of what decides the speed."""
    device = jax.local_devices()[0]
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {"iqmjx": iqmjx.__version__} | versions,
    }
