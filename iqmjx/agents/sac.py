"""SAC: soft actor-critic (Haarnoja et al. 2018b), the baseline IQ is held against.

A tanh-Gaussian policy, two Q-networks, and a temperature that follows the entropy:

    target   = r + discount * (1 - terminated) * (min_i Q_target_i(s', a')
                                                  - temperature * log pi(a'|s'))
    critic   = sum_i 0.5 * mean((Q_i(s, a) - target)^2)
    actor    = mean(temperature * log pi(a~|s) - min_i Q_i(s, a~))
    entropy  = -temperature * mean(log pi(a~|s) + target_entropy)

with a' and a~ drawn from the policy now (a~ by reparameterization), and target_entropy
= -A. The three losses share no parameters, so that one gradient and one Adam serve all.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iqmjx import networks
from iqmjx.acting import Actor
from iqmjx.agents import base
from iqmjx.agents.base import average, descend, learning_rate, polyak
from iqmjx.config import Config
from iqmjx.networks import MLP
from iqmjx.normalize import Normalizer
from iqmjx.parallel import ALONE, Shards
from iqmjx.policies.tanh_gaussian import TanhGaussian
from iqmjx.replay import Transition
from iqmjx.settings import setting

_NUM_CRITICS = 2


@dataclasses.dataclass(frozen=True)
class Settings(base.Settings):
    """SAC's settings.

    Raises:
        UsageError: on construction, naming the flag and the fix.
    """

    temperature: float = setting(
        1.0,
        "The first entropy temperature, in units of reward.",
        **base.REWARD_UNITS,
    )


@struct.dataclass
class Params:
    """Everything that is trained by gradients."""

    policy: Any
    critics: tuple[Any, ...]  # apart: stacked, they would be slower on a CPU
    log_temperature: Float[Array, ""]


@struct.dataclass
class LearnerState:
    """All that learning changes."""

    params: Params
    target_critics: tuple[Any, ...]  # Polyak average of params.critics, at target_rate
    average_policy: Any  # moving average of params.policy, at average_rate
    updates: Int[Array, ""]  # gradient steps taken
    opt_state: optax.OptState


@struct.dataclass
class Statistics:
    """Scalars of one update, means over its batch where nothing else is said."""

    loss: Float[Array, ""]  # the critics', reward^2
    policy_loss: Float[Array, ""]  # reward
    td_error: Float[Array, ""]  # |target - Q|, mean over the critics, reward
    value: Float[Array, ""]  # the lower Q of replayed actions, reward
    target: Float[Array, ""]  # reward
    target_std: Float[Array, ""]  # over the batch, reward
    log_prob: Float[Array, ""]  # of the policy's own actions, nats
    entropy: Float[Array, ""]  # its negative, nats per action dimension
    grad_norm: Float[Array, ""]  # over all parameters
    temperature: Float[Array, ""]  # reward


@dataclasses.dataclass(frozen=True, eq=False)
class SoftActorCritic:
    """The agent; implements `iqmjx.agents.Agent`."""

    Settings = Settings

    policy: TanhGaussian
    critic: MLP
    optimizer: optax.GradientTransformation
    observation_size: int
    temperature: float  # at the start
    discount: float
    target_rate: float
    average_rate: float

    @classmethod
    def from_config(
        cls, config: Config, observation_size: int, action_size: int
    ) -> SoftActorCritic:
        """Builds the networks and the optimizer that a config describes."""
        mine: Settings = config.algorithm
        return cls(
            policy=TanhGaussian.from_settings(mine, action_size),
            critic=networks.of_value(mine),
            optimizer=optax.adam(learning_rate(config)),
            average_rate=mine.average_rate,
            observation_size=observation_size,
            temperature=mine.temperature,
            discount=mine.discounting,
            target_rate=mine.target_rate,
        )

    def init(self, key: PRNGKeyArray) -> LearnerState:
        policy_key, *critic_keys = jax.random.split(key, 1 + _NUM_CRITICS)
        inputs = jnp.zeros(self.observation_size + self.policy.action_size)
        params = Params(
            policy=self.policy.init(policy_key, self.observation_size),
            critics=tuple(self.critic.init(key, inputs) for key in critic_keys),
            log_temperature=jnp.log(jnp.asarray(self.temperature, jnp.float32)),
        )
        return LearnerState(
            params=params,
            target_critics=jax.tree.map(jnp.copy, params.critics),
            average_policy=jax.tree.map(jnp.copy, params.policy),
            updates=jnp.zeros((), jnp.int32),
            opt_state=self.optimizer.init(cast(Any, params)),
        )

    def actor(self, learner: LearnerState, normalizer: Normalizer | None) -> Actor:
        temperature = jnp.exp(learner.params.log_temperature)
        return Actor(learner.params.policy, temperature, normalizer)

    def average_actor(
        self, learner: LearnerState, normalizer: Normalizer | None
    ) -> Actor:
        temperature = jnp.exp(learner.params.log_temperature)
        return Actor(learner.average_policy, temperature, normalizer)

    def q_values(
        self,
        critics: tuple[Any, ...],
        obs: Float[Array, "B O"],
        action: Float[Array, "B A"],
    ) -> Float[Array, "2 B"]:
        """Q_i(s, a) of both critics."""
        inputs = jnp.concatenate([obs, action], axis=-1)
        outputs: Any = [self.critic.apply(params, inputs) for params in critics]
        return jnp.stack(outputs)[..., 0]

    def loss(
        self,
        params: Params,
        target_critics: tuple[Any, ...],
        batch: Transition,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Statistics]:
        """The sum of the three losses over a batch [B] of normalized observations."""
        next_key, key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(params)
        temperature = jnp.exp(fixed.log_temperature)

        next_action, next_log_prob = self.policy.sample_with_log_prob(
            fixed.policy, batch.next_obs, next_key
        )
        next_q = self.q_values(target_critics, batch.next_obs, next_action).min(0)
        next_value = next_q - temperature * next_log_prob
        target = batch.reward + self.discount * batch.discount * next_value
        q = self.q_values(params.critics, batch.obs, batch.action)
        squared = batch.weight[None] * jnp.square(q - target[None])
        critic_loss = 0.5 * squared.mean(-1).sum()

        action, log_prob = self.policy.sample_with_log_prob(
            params.policy, batch.obs, key
        )
        own_q = self.q_values(fixed.critics, batch.obs, action).min(0)
        policy_loss = jnp.mean(batch.weight * (temperature * log_prob - own_q))

        fixed_log_prob = jax.lax.stop_gradient(log_prob)
        excess = self.policy.action_size - fixed_log_prob  # over the entropy's target
        excess = jnp.mean(batch.weight * excess)
        temperature_loss = jnp.exp(params.log_temperature) * excess

        statistics = Statistics(
            loss=critic_loss,
            policy_loss=policy_loss,
            td_error=jnp.abs(target[None] - q).mean(),
            value=q.min(0).mean(),
            target=target.mean(),
            target_std=target.std(),
            log_prob=log_prob.mean(),
            entropy=-log_prob.mean() / self.policy.action_size,
            grad_norm=jnp.zeros(()),  # known after the gradient
            temperature=temperature,
        )
        return critic_loss + policy_loss + temperature_loss, statistics

    def update(
        self,
        learner: LearnerState,
        batch: Transition,
        key: PRNGKeyArray,
        shards: Shards = ALONE,
    ) -> tuple[LearnerState, Statistics]:
        gradients, statistics = jax.grad(self.loss, has_aux=True)(
            learner.params, learner.target_critics, batch, key
        )
        gradients, statistics = shards.mean((gradients, statistics))
        params, opt_state = descend(
            self.optimizer, gradients, learner.opt_state, learner.params
        )
        grad_norm = optax.tree.norm(gradients)
        statistics = dataclasses.replace(statistics, grad_norm=grad_norm)
        learner = LearnerState(
            params=params,
            target_critics=polyak(
                learner.target_critics, params.critics, self.target_rate
            ),
            average_policy=average(
                learner.average_policy,
                params.policy,
                self.average_rate,
                learner.updates,
            ),
            updates=learner.updates + 1,
            opt_state=opt_state,
        )
        return learner, statistics
