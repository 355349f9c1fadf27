"""The training step: act, step, store, learn; and the chunk that scans it.

All that a run is lives in `TrainState`: saving it is a full resume. All that it is
built from lives in `Setup`, a static argument of the jitted functions. A run begins
with `warm_up`, which fills replay under random actions; then `train_chunk`, again and
again. How seeds and devices divide them is told in `parallel.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from iqmjx import acting, agents, envs, normalize, parallel, replay
from iqmjx.config import Config
from iqmjx.envs import vector
from iqmjx.envs.vector import VectorState
from iqmjx.errors import UsageError
from iqmjx.normalize import Normalizer, RewardNormalizer
from iqmjx.parallel import BY_SEED, BY_SHARD, SAME, Layout, Shards
from iqmjx.replay import ReplayState, Transition
from iqmjx.settings import refuse

_STREAM = 0
"""Folded into a run's seed for training; evaluation has another stream."""


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run is built from; compared and hashed by identity."""

    config: Config
    env: envs.Task
    agent: agents.Agent
    layout: Layout

    @property
    def shards(self) -> Shards:
        """The shards of one seed, seen from inside one of them."""
        return self.layout.shards

    @property
    def worlds_per_shard(self) -> int:
        """Worlds that one shard of a seed steps, N / G."""
        return self.config.num_envs // self.shards.count


@struct.dataclass
class TrainState:
    """A run between two vector steps."""

    learner: Any  # [S, ...] the agent's own
    normalizer: Normalizer  # [S, ...]
    reward_normalizer: RewardNormalizer | None  # [S, ...] if rewards are normalized
    returns: Float[Array, "S G N"] | None  # discounted, of the episodes so far
    replay: ReplayState  # [S, G, C/G, ...]
    envs: VectorState  # [S, G, N/G, ...]
    noise: Key[Array, "S G N"] | None  # what a world's actions are drawn with, if held
    key: Key[Array, " S"]
    steps: Int[Array, ""]  # vector steps taken


def _specs() -> TrainState:
    seed, shard, same = cast(tuple[Any, Any, Any], (BY_SEED, BY_SHARD, SAME))
    ring = ReplayState(data=shard, insert_index=same, size=same)
    return TrainState(
        learner=seed,
        normalizer=seed,
        reward_normalizer=seed,
        returns=shard,
        replay=ring,
        envs=shard,
        noise=shard,
        key=seed,
        steps=same,
    )


SPECS = _specs()
"""Which leading axes each part of a TrainState has."""


@struct.dataclass
class StepMetrics:
    """What happened in vector steps, of one seed [] or of many seeds and steps [*L]."""

    reward: Float[Array, "*L"]  # mean over the worlds
    episodes: Int[Array, "*L"]  # episodes that ended and count
    return_sum: Float[Array, "*L"]  # sum of their returns
    length_sum: Float[Array, "*L"]  # of their lengths, control steps; int32 would wrap
    at_bounds: Float[Array, "*L"]  # share of control entries at -1 or 1
    overflow: Int[Array, "*L"]  # worlds whose contacts or constraints overflowed
    diverged: Int[Array, "*L"]  # worlds reset for diverging
    task: dict[str, Float[Array, "*L"]]  # the task's metrics, means over the worlds
    reward_scale: Float[Array, "*L"]  # what rewards are divided by when they are read
    offender: vector.Offender | None  # [G] of each shard, the first that did


def _step_specs() -> StepMetrics:
    specs: Any = {field.name: BY_SEED for field in dataclasses.fields(StepMetrics)}
    return StepMetrics(**specs | {"offender": BY_SHARD})


STEP_SPECS = _step_specs()
"""Which leading axes the parts of a StepMetrics have."""


def make_setup(
    config: Config, env: envs.Task | None = None, layout: Layout | None = None
) -> Setup:
    """Builds the environment and the agent.

    Args:
        config: the run's settings.
        env: an environment object, in place of the one that `config.env` names.
        layout: the devices to run on; all of them by default.

    Raises:
        UsageError: for an unknown task, an engine the platform cannot run, or shards
            (or worlds, or a batch) that the devices cannot divide.
    """
    layout = layout or _make_layout(config)
    config = dataclasses.replace(config, num_shards=layout.num_shards)
    if env is None:
        own_shards = layout.own_seeds * layout.own_shards
        worlds = own_shards * config.num_envs // layout.num_shards
        try:
            env = envs.make(config.env, config.physics, worlds)
        except UsageError as error:
            raise UsageError(f"--env {config.env}: {error}") from error
    agent = agents.make(config, env.observation_size, env.action_size)
    return Setup(config, env, agent, layout)


def _make_layout(config: Config) -> Layout:
    devices = parallel.devices_per_seed(config.num_seeds)
    for name in ("num_envs", "batch_size"):
        value = getattr(config, name)
        if value % devices:
            fit = value + -value % devices
            fix = f"it must be a multiple of {devices}, the number of devices of one"
            refuse(name, value, f"{fix} seed, such as {fit}")
    return parallel.make_layout(config.num_seeds, config.num_shards)


@functools.partial(jax.jit, static_argnums=0)
def init(setup: Setup) -> TrainState:
    """The state that a run begins with."""
    config, agent = setup.config, setup.agent
    seeds = config.seed + jnp.arange(config.num_seeds)

    def begin(key):
        learner_key, env_key, key = jax.random.split(key, 3)
        worlds = vector.init(
            setup.env,
            setup.shards.own_key(env_key),
            setup.worlds_per_shard,
            config.episode_length,
        )
        noise = None
        if config.noise_hold_steps > 1:
            noise_key, key = jax.random.split(key)
            noise = _key_of_each(setup, setup.shards.own_key(noise_key))
        normalizer = normalize.init(setup.env.observation_size)
        reward_normalizer = returns = None
        if config.normalize_rewards:
            reward_normalizer = normalize.init_rewards()
            returns = jnp.zeros(setup.worlds_per_shard)
        by_seed = agent.init(learner_key), normalizer, reward_normalizer, key
        return by_seed, (returns, worlds, noise)

    def on_device(key):
        begin_all = setup.layout.over_all(begin, (BY_SEED,), (BY_SEED, BY_SHARD))
        (learner, normalizer, reward_normalizer, key), by_shard = begin_all(key)
        returns, worlds, noise = by_shard
        capacity = config.max_replay_size // setup.shards.count
        return TrainState(
            learner=learner,
            normalizer=normalizer,
            reward_normalizer=reward_normalizer,
            returns=returns,
            replay=replay.init(_example(setup, worlds.steps.shape[:2]), capacity),
            envs=worlds,
            noise=noise,
            key=key,
            steps=jnp.zeros((), jnp.int32),
        )

    return setup.layout.on_devices(on_device, (BY_SEED,), SPECS)(
        jax.vmap(_first_key)(seeds)
    )


def _first_key(seed: Int[Array, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.key(seed), _STREAM)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def warm_up(setup: Setup, state: TrainState) -> tuple[TrainState, StepMetrics]:
    """Takes `config.warm_up_steps` vector steps under random actions.

    Nothing is learned but the observations' statistics; `state` is donated. The metrics
    [S] are of all these steps.

    Raises:
        ValueError: where there are no such steps.
    """
    if not setup.config.warm_up_steps:
        raise ValueError("config.warm_up_steps is 0: begin with train_chunk")

    def at_random(_actor, _obs, noise, _key):
        return _random(setup, noise)

    def step(bank, state):
        key, worlds_key = _split(state.key, 2)
        state, metrics = _interact(setup, bank, state, worlds_key, at_random)
        return dataclasses.replace(state, key=key), metrics

    def on_device(state):
        state, bank = _draw_bank(setup, state)
        state, steps = jax.lax.scan(
            lambda carry, _: step(bank, carry), state, length=setup.config.warm_up_steps
        )
        return state, _summary(setup, steps)

    return setup.layout.on_devices(on_device, (SPECS,), (SPECS, STEP_SPECS))(state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_chunk(
    setup: Setup, state: TrainState
) -> tuple[TrainState, tuple[StepMetrics, Any]]:
    """Scans `config.chunk_steps` vector steps; `state` is donated.

    Returns the state, the metrics [S] of these steps, and the agent's statistics [S],
    means over the first update of each.

    A chunk draws its own bank of start states. Its length is part of the config and
    depends on nothing else, so that logging, evaluating and saving never change what
    is learned.
    """

    def on_device(state):
        state, bank = _draw_bank(setup, state)
        state, (steps, learning) = jax.lax.scan(
            lambda carry, _: train_step(setup, bank, carry),
            state,
            length=setup.config.chunk_steps,
        )
        means = jax.tree.map(lambda leaf: leaf.mean(0), learning)
        return state, (_summary(setup, steps), means)

    specs = SPECS, (STEP_SPECS, BY_SEED)
    return setup.layout.on_devices(on_device, (SPECS,), specs)(state)


def train_step(
    setup: Setup, bank: envs.State, state: TrainState
) -> tuple[TrainState, tuple[StepMetrics, Any]]:
    """One vector step of N worlds and the K updates that follow it, for all seeds."""
    key, worlds_key, learn_key = _split(state.key, 3)
    choose = functools.partial(_explore, setup, state.steps)
    state, metrics = _interact(setup, bank, state, worlds_key, choose)
    learner, statistics = _learn(setup, state, learn_key)
    state = dataclasses.replace(state, learner=learner, key=key)
    return state, (metrics, statistics)


def _interact(
    setup: Setup,
    bank: envs.State,
    state: TrainState,
    key: Key[Array, " S"],
    choose: Callable[[acting.Actor, Array, Array, PRNGKeyArray], Array],
) -> tuple[TrainState, StepMetrics]:
    """One vector step of all worlds, into replay and the observations' statistics.

    `choose` gives the actions [N, ...] for an actor, observations [N, O], a key [N] of
    each world, and one key.
    """

    def step(learner, normalizers, worlds, returns, held, bank, key):
        normalizer, reward_normalizer = normalizers
        key, noise_key, env_key = jax.random.split(setup.shards.own_key(key), 3)
        noise = _noise(setup, state.steps, held, noise_key)
        acts = actor(setup, learner, normalizer)
        action = choose(acts, worlds.obs, noise, key)
        control = setup.agent.policy.control(action)
        stepped, outcome = vector.step(
            setup.env, worlds, control, bank, env_key, setup.config.episode_length
        )
        normalizer = normalize.update(normalizer, worlds.obs, setup.shards)
        if reward_normalizer is not None:
            returns = outcome.reward + setup.config.algorithm.discounting * returns
            reward_normalizer = normalize.update_rewards(
                reward_normalizer, returns, setup.shards
            )
            ended = outcome.terminated | outcome.truncated
            returns = jnp.where(ended, 0.0, returns)
        worlds_now = stepped, returns, None if held is None else noise
        transition = _transition(worlds.obs, action, outcome)
        metrics = _step_metrics(control, outcome, _reward_scale(reward_normalizer))
        return (normalizer, reward_normalizer), worlds_now, transition, metrics

    normalizers = state.normalizer, state.reward_normalizer
    worlds = state.envs, state.returns, state.noise
    normalizers, worlds, transition, metrics = setup.layout.over_all(
        step,
        (BY_SEED, BY_SEED, BY_SHARD, BY_SHARD, BY_SHARD, BY_SHARD, BY_SEED),
        (BY_SEED, BY_SHARD, BY_SHARD, BY_SHARD),
    )(state.learner, normalizers, *worlds, bank, key)
    normalizer, reward_normalizer = normalizers
    stepped, returns, noise = worlds
    state = dataclasses.replace(
        state,
        normalizer=normalizer,
        reward_normalizer=reward_normalizer,
        returns=returns,
        replay=replay.add(state.replay, transition),
        envs=stepped,
        noise=noise,
        steps=state.steps + 1,
    )
    return state, metrics


def _noise(
    setup: Setup,
    steps: Int[Array, ""],
    held: Key[Array, " N"] | None,
    key: PRNGKeyArray,
) -> Key[Array, " N"]:
    """What the actions of a shard's worlds are drawn with in a vector step.

    World i of all N (from 1) keeps its key for `noise_hold_steps ** (i / N)` vector
    steps, and so its noise: white noise of a fast control averages out before it moves
    anything. Some of every length: what must be moved says which is right.
    """
    fresh = _key_of_each(setup, key)
    if held is None:
        return fresh
    worlds = setup.worlds_per_shard * setup.shards.index() + jnp.arange(len(fresh)) + 1
    share = worlds / setup.config.num_envs
    lengths = jnp.round(setup.config.noise_hold_steps**share).astype(jnp.int32)
    return jnp.where((steps + worlds) % lengths == 0, fresh, held)


def _key_of_each(setup: Setup, key: PRNGKeyArray) -> Key[Array, " N"]:
    return jax.random.split(key, setup.worlds_per_shard)


def _random(setup: Setup, noise: Key[Array, " N"]) -> Array:
    """A uniformly random action for each world."""
    return jax.vmap(lambda key: setup.agent.policy.random(key, 1)[0])(noise)


def _explore(
    setup: Setup,
    steps: Int[Array, ""],
    actor: acting.Actor,
    obs: Float[Array, "N O"],
    noise: Key[Array, " N"],
    key: PRNGKeyArray,
) -> Array:
    """The policy's actions [N, ...], and each world's random one with a probability.

    That falls linearly over `exploration_steps` env steps, from 1 to 0.
    """
    policy, config, num_worlds = setup.agent.policy, setup.config, obs.shape[0]
    sampled = jax.vmap(functools.partial(acting.act, policy, actor))(obs, noise)
    if config.exploration_steps == 0:
        return sampled
    share = 1 - steps * (config.num_envs / config.exploration_steps)
    explores = jax.random.uniform(key, (num_worlds,)) < share
    explores = explores.reshape(-1, *[1] * (sampled.ndim - 1))
    return jnp.where(explores, _random(setup, noise), sampled)


def update(
    setup: Setup, learner: Any, first: Transition, others: Transition, key: PRNGKeyArray
) -> tuple[Any, Any]:
    """K updates of one seed: the learner, and the first update's statistics.

    The others' statistics are not returned, so the compiler leaves them out.

    Args:
        setup: the run's setup.
        learner: the agent's learner state.
        first: this shard's part [B/G] of a batch, as the agent sees it.
        others: of K - 1 more [K - 1, B/G].
        key: consumed.
    """
    keys = jax.random.split(key, setup.config.grad_updates_per_step)

    def step(learner, inputs):
        batch, key = inputs
        return setup.agent.update(learner, batch, key, setup.shards)[0], None

    learner, statistics = setup.agent.update(learner, first, keys[0], setup.shards)
    if len(keys) > 1:
        learner, _ = jax.lax.scan(step, learner, (others, keys[1:]))
    return learner, statistics


def _learn(setup: Setup, state: TrainState, key: Key[Array, " S"]) -> tuple[Any, Any]:
    """K updates of each seed on fresh batches: learners, and statistics [S]."""

    def learn(learner, normalizers, first, others, key):
        seen = functools.partial(_seen, setup, *normalizers)
        own_key = setup.shards.own_key(key)
        return update(setup, learner, seen(first), seen(others), own_key)

    sample_key, key = _split(key, 2)
    first, others = _draw_batches(setup, state.replay, sample_key)
    normalizers = state.normalizer, state.reward_normalizer
    return setup.layout.over_all(
        learn,
        (BY_SEED, BY_SEED, BY_SHARD, BY_SHARD, BY_SEED),
        (BY_SEED, BY_SEED),
        in_turn=True,
    )(state.learner, normalizers, first, others, key)


def _draw_batches(
    setup: Setup, ring: ReplayState, key: Key[Array, " S"]
) -> tuple[Transition, Transition]:
    """A batch [S, G, B/G], and K - 1 others [S, G, K - 1, B/G]; consumes `key` [S]."""
    size = setup.config.batch_size // setup.shards.count
    own_keys = setup.layout.over_all(setup.shards.own_key, (BY_SEED,), BY_SHARD)(key)
    rows = replay.sample(ring, own_keys, setup.config.grad_updates_per_step * size)
    first, others = rows[..., :size], rows[..., size:]
    batches = jax.tree.map(
        lambda leaf: leaf.reshape(*leaf.shape[:2], -1, size, *leaf.shape[3:]),
        replay.take(ring, others),
    )
    return replay.take(ring, first), batches


def actor(setup: Setup, learner: Any, normalizer: Normalizer) -> acting.Actor:
    """What training acts by, of one seed."""
    return setup.agent.actor(learner, _seen_by(setup, normalizer))


def _seen_by(setup: Setup, normalizer: Normalizer) -> Normalizer | None:
    """What the agent sees observations through; None: as they are."""
    return normalizer if setup.config.normalize_observations else None


def _seen(
    setup: Setup,
    normalizer: Normalizer,
    reward_normalizer: RewardNormalizer | None,
    batch: Transition,
) -> Transition:
    """Transitions with observations and rewards as the agent sees them."""
    seen_by = _seen_by(setup, normalizer)
    return dataclasses.replace(
        batch,
        obs=acting.observe(seen_by, batch.obs),
        reward=batch.reward / _reward_scale(reward_normalizer),
        next_obs=acting.observe(seen_by, batch.next_obs),
    )


def _reward_scale(normalizer: RewardNormalizer | None) -> Float[Array, ""]:
    """What the agent sees rewards divided by."""
    return jnp.ones(()) if normalizer is None else normalize.reward_scale(normalizer)


@functools.partial(jax.jit, static_argnums=0)
def average_actors(setup: Setup, state: TrainState) -> acting.Actor:
    """What evaluations play and policies are saved as, for each seed [S]."""

    def of_seed(learner, normalizer):
        return setup.agent.average_actor(learner, _seen_by(setup, normalizer))

    return jax.vmap(of_seed)(state.learner, state.normalizer)


def regrouped(state: TrainState, num_shards: int) -> TrainState:
    """A state (NumPy arrays, or shapes) with its worlds and rings in other shards.

    A shard has the same worlds at every step, so that each row of its ring follows its
    world. Nothing is lost, and nothing but the division changes.
    """
    _, before, worlds = state.envs.steps.shape
    now = before * worlds // num_shards  # worlds of a shard

    def worlds_anew(leaf):
        return leaf.reshape(leaf.shape[0], num_shards, now, *leaf.shape[3:])

    def rows_anew(leaf):
        seeds, _, rows, *rest = leaf.shape
        by_step = leaf.reshape(seeds, before, rows // worlds, worlds, *rest)
        by_step = by_step.swapaxes(1, 2)
        by_shard = by_step.reshape(seeds, rows // worlds, num_shards, now, *rest)
        return by_shard.swapaxes(1, 2).reshape(seeds, num_shards, -1, *rest)

    def anew(state):
        ring = state.replay
        return dataclasses.replace(
            state,
            replay=ReplayState(
                data=jax.tree.map(rows_anew, ring.data),
                insert_index=ring.insert_index // worlds * now,
                size=ring.size // worlds * now,
            ),
            returns=jax.tree.map(worlds_anew, state.returns),
            envs=jax.tree.map(worlds_anew, state.envs),
            noise=jax.tree.map(worlds_anew, state.noise),
        )

    if isinstance(state.steps, jax.ShapeDtypeStruct):
        return jax.eval_shape(anew, state)
    return anew(state)


def _split(key: Key[Array, " S"], count: int) -> tuple[Key[Array, " S"], ...]:
    """Splits each seed's key: `count` arrays of keys [S]."""
    keys = jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(key)
    return tuple(keys)


def _draw_bank(setup: Setup, state: TrainState) -> tuple[TrainState, envs.State]:
    """Start states [S, G, M, ...] for a chunk."""

    def draw(key):
        bank_key = setup.shards.own_key(key)
        return vector.make_bank(setup.env, bank_key, setup.worlds_per_shard)

    key, bank_key = _split(state.key, 2)
    bank = setup.layout.over_all(draw, (BY_SEED,), BY_SHARD)(bank_key)
    return dataclasses.replace(state, key=key), bank


def _example(setup: Setup, leading: tuple[int, ...]) -> Transition:
    """Shapes of transitions [*leading]."""
    policy = setup.agent.policy

    def shape(shape, dtype=jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((*leading, *shape), dtype)

    obs = shape((setup.env.observation_size,))
    return Transition(
        obs=obs,
        action=shape(policy.action_shape, policy.action_dtype),
        reward=shape(()),
        discount=shape(()),
        weight=shape(()),
        next_obs=obs,
    )


def _transition(
    obs: Float[Array, "N O"], action: Array, outcome: vector.Outcome
) -> Transition:
    # Weight 0 leaves out no NaN, which the action of a control that was none may be.
    finite = jnp.where(jnp.isfinite(action), action, jnp.zeros_like(action))
    return Transition(
        obs=obs,
        action=vector.where(outcome.diverged, finite, action),
        reward=outcome.reward,
        discount=jnp.where(outcome.terminated, 0.0, 1.0),
        weight=jnp.where(outcome.diverged, 0.0, 1.0),
        next_obs=outcome.next_obs,
    )


def _step_metrics(
    control: Float[Array, "N A"],
    outcome: vector.Outcome,
    reward_scale: Float[Array, ""],
) -> StepMetrics:
    counted = outcome.counted
    return StepMetrics(
        reward=outcome.reward.mean(),
        episodes=counted.sum(),
        return_sum=jnp.where(counted, outcome.episode_return, 0.0).sum(),
        length_sum=jnp.where(counted, outcome.length, 0.0).sum(),
        at_bounds=(jnp.abs(control) >= 1).mean(),
        overflow=outcome.overflowed.sum(),
        diverged=outcome.diverged.sum(),
        task=jax.tree.map(jnp.mean, outcome.metrics),
        reward_scale=reward_scale,
        offender=outcome.offender,
    )


def _summary(setup: Setup, steps: StepMetrics) -> StepMetrics:
    """Metrics [T, S, G] over all steps and shards: means of means, sums of counts.

    Of the offenders, each shard's first.
    """

    def reduce(of_shard):
        numbers = dataclasses.replace(of_shard, offender=None)
        sums = setup.shards.sum(jax.tree.map(jnp.sum, numbers))
        means = setup.shards.mean(jax.tree.map(jnp.mean, numbers))
        first = jnp.argmax(of_shard.diverged > 0)
        return dataclasses.replace(
            sums,
            reward=means.reward,
            at_bounds=means.at_bounds,
            task=means.task,
            reward_scale=means.reward_scale,
            offender=jax.tree.map(lambda leaf: leaf[first], of_shard.offender),
        )

    by_seed = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), steps)
    return setup.layout.over_all(reduce, (BY_SHARD,), STEP_SPECS)(by_seed)
