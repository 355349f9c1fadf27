"""The training step: act, step, store, learn; and the chunk that scans it.

Everything a run is lives in `TrainState`: saving it is a full resume. Everything it is
built from lives in `Setup`, a static argument of the jitted functions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iqmjx import agents, envs, normalize, replay
from iqmjx.config import Config
from iqmjx.envs import vector
from iqmjx.replay import ReplayState, Transition


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run is built from; compared and hashed by identity."""

    config: Config
    env: envs.Env
    agent: agents.Agent


@struct.dataclass
class TrainState:
    """A run between two vector steps."""

    learner: Any  # the agent's own
    normalizer: normalize.Normalizer
    replay: ReplayState
    envs: vector.VectorState
    key: PRNGKeyArray


@struct.dataclass
class StepMetrics:
    """What happened in one vector step, or in a chunk of them."""

    learning: Any  # the agent's statistics, means over the updates
    updates: Int[Array, ""]  # gradient steps done
    reward: Float[Array, ""]  # mean over the worlds
    episodes: Int[Array, ""]  # episodes that ended and count
    return_sum: Float[Array, ""]  # sum of their returns
    length_sum: Int[Array, ""]  # sum of their lengths, control steps
    at_bounds: Float[Array, ""]  # share of control entries at -1 or 1
    overflow: Int[Array, ""]  # worlds whose contacts or constraints overflowed
    diverged: Int[Array, ""]  # worlds reset for leaving the finite numbers


def make_setup(config: Config) -> Setup:
    """Builds the environment and the agent.

    Raises:
        ValueError: for an unknown task, or an engine the platform cannot run.
    """
    env = envs.make(config.env, config.physics, config.num_envs)
    agent = agents.make(config, env.observation_size, env.action_size)
    return Setup(config, env, agent)


@functools.partial(jax.jit, static_argnums=0)
def init(setup: Setup, key: PRNGKeyArray) -> TrainState:
    """The state that a run begins with; `key` is consumed."""
    config, env, agent = setup.config, setup.env, setup.agent
    learner_key, env_key, key = jax.random.split(key, 3)
    shape: Any = jax.ShapeDtypeStruct
    obs = shape((env.observation_size,), jnp.float32)
    example = Transition(
        obs=obs,
        action=shape(agent.action_shape, agent.action_dtype),
        reward=shape((), jnp.float32),
        terminated=shape((), jnp.bool_),
        next_obs=obs,
    )
    return TrainState(
        learner=agent.init(learner_key),
        normalizer=normalize.init(env.observation_size),
        replay=replay.init(example, config.max_replay_size),
        envs=vector.init(env, env_key, config.num_envs, config.episode_length),
        key=key,
    )


def train_step(
    setup: Setup, bank: vector.Bank, state: TrainState
) -> tuple[TrainState, StepMetrics]:
    """One vector step of N worlds and the K updates that follow it."""
    key, act_key, env_key, learn_key = jax.random.split(state.key, 4)
    action = _act(setup, state, act_key)
    control = setup.agent.control(action)
    worlds, outcome = vector.step(
        setup.env, state.envs, control, bank, env_key, setup.config.episode_length
    )
    ring = replay.add(state.replay, _transition(state.envs, action, outcome))
    normalizer = normalize.update(state.normalizer, state.envs.obs)
    state = TrainState(state.learner, normalizer, ring, worlds, key)
    learner, learning, updates = _learn(setup, state, learn_key)
    metrics = _step_metrics(control, outcome, learning, updates)
    return dataclasses.replace(state, learner=learner), metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_chunk(setup: Setup, state: TrainState) -> tuple[TrainState, StepMetrics]:
    """Scans `config.chunk_steps` vector steps; `state` is donated.

    A chunk draws its own bank of start states. Its length is part of the config and
    depends on nothing else, so that logging, evaluating and saving never change what
    is learned.
    """
    key, bank_key = jax.random.split(state.key)
    bank = vector.make_bank(setup.env, bank_key, setup.config.num_envs)
    step = functools.partial(train_step, setup, bank)
    state, metrics = jax.lax.scan(
        lambda carry, _: step(carry),
        dataclasses.replace(state, key=key),
        length=setup.config.chunk_steps,
    )
    return state, _chunk_metrics(metrics)


def observe(
    setup: Setup, normalizer: normalize.Normalizer, obs: Float[Array, "*B O"]
) -> Float[Array, "*B O"]:
    """Raw observations as the agent sees them."""
    if not setup.config.normalize_observations:
        return obs
    return normalize.normalize(normalizer, obs)


def _act(setup: Setup, state: TrainState, key: PRNGKeyArray) -> Array:
    """Actions [N, ...]: each world's uniform with probability epsilon, else sampled.

    Epsilon falls linearly from 1 to 0 while replay fills to exploration_steps; until
    min_replay_size it stays 1.
    """
    config, size = setup.config, state.replay.size
    random_key, policy_key, choice_key = jax.random.split(key, 3)
    epsilon = 1 - size / max(config.exploration_steps, 1)
    epsilon = jnp.where(size < config.min_replay_size, 1.0, epsilon)
    obs = observe(setup, state.normalizer, state.envs.obs)
    random = setup.agent.act_random(random_key, config.num_envs)
    sampled = setup.agent.act(state.learner, obs, policy_key)
    explore = jax.random.uniform(choice_key, (config.num_envs,)) < epsilon
    explore = explore.reshape(-1, *[1] * (sampled.ndim - 1))
    return jnp.where(explore, random, sampled)


def _transition(
    before: vector.VectorState, action: Array, outcome: vector.Outcome
) -> Transition:
    return Transition(
        obs=before.obs,
        action=action,
        reward=outcome.reward,
        terminated=outcome.terminated,
        next_obs=outcome.next_obs,
    )


def _learn(setup: Setup, state: TrainState, key: PRNGKeyArray):
    """K updates on fresh batches, once replay holds min_replay_size transitions.

    All K * B rows are gathered at once, outside the condition, so that the ring never
    passes through it.
    """
    config = setup.config
    num_updates, batch_size = config.grad_updates_per_step, config.batch_size
    sample_key, update_key = jax.random.split(key)
    batch = replay.sample(state.replay, sample_key, num_updates * batch_size)
    batch = dataclasses.replace(
        batch,
        obs=observe(setup, state.normalizer, batch.obs),
        next_obs=observe(setup, state.normalizer, batch.next_obs),
    )
    batches = jax.tree.map(
        lambda leaf: leaf.reshape(num_updates, batch_size, *leaf.shape[1:]), batch
    )
    keys = jax.random.split(update_key, num_updates)

    def update(learner, inputs):
        return setup.agent.update(learner, *inputs)

    def learn(learner):
        return jax.lax.scan(update, learner, (batches, keys))

    def skip(learner):
        shapes = jax.eval_shape(learn, learner)[1]
        return learner, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    ready = state.replay.size >= config.min_replay_size
    learner, statistics = jax.lax.cond(ready, learn, skip, state.learner)
    means = jax.tree.map(jnp.mean, statistics)
    return learner, means, jnp.where(ready, num_updates, 0)


def _step_metrics(control, outcome: vector.Outcome, learning, updates) -> StepMetrics:
    counted = outcome.counted
    return StepMetrics(
        learning=learning,
        updates=updates,
        reward=outcome.reward.mean(),
        episodes=counted.sum(),
        return_sum=jnp.where(counted, outcome.episode_return, 0.0).sum(),
        length_sum=jnp.where(counted, outcome.length, 0).sum(),
        at_bounds=(jnp.abs(control) >= 1).mean(),
        overflow=(outcome.overflow != 0).sum(),
        diverged=outcome.diverged.sum(),
    )


def _chunk_metrics(steps: StepMetrics) -> StepMetrics:
    """Reduces metrics [T]: means of means, sums of counts.

    Learning statistics are means over the steps that learned, NaN where none did.
    """
    learned = steps.updates > 0

    def mean_where_learned(leaf):
        mean = jnp.sum(jnp.where(learned, leaf, 0.0)) / jnp.sum(learned)
        return jnp.where(learned.any(), mean, jnp.nan)

    return StepMetrics(
        learning=jax.tree.map(mean_where_learned, steps.learning),
        updates=steps.updates.sum(),
        reward=steps.reward.mean(),
        episodes=steps.episodes.sum(),
        return_sum=steps.return_sum.sum(),
        length_sum=steps.length_sum.sum(),
        at_bounds=steps.at_bounds.mean(),
        overflow=steps.overflow.sum(),
        diverged=steps.diverged.sum(),
    )
