"""IQ and M-IQ: implicit Q-values (paper Sec. 2).

A policy network and a value network stand for one soft Q-function, Eq. 1:

    Q(s, a) = temperature * log pi(a|s) + V(s)

so that `pi = softmax(Q / temperature)` and `V = temperature * logsumexp(Q /
temperature)` hold by construction, and one squared TD error trains both, Eq. 2:

    target = r + munchausen * temperature * log pi_target(a|s)
               + discount * (1 - terminated) * V_target(s')
    loss   = mean((target - temperature * log pi(a|s) - V(s))^2)

IQ is munchausen = 0 (the paper's alpha); M-IQ is munchausen > 0. With V(s') of the
value network itself in the target's place, which then learns from both sides of the
error, the loss is that of PCL (munchausen = 0) and Trust-PCL (Nachum et al. 2017,
2018), residual methods: the paper's ablations (Sec. 5 and 6).

With several value networks beside the policy, each is fitted to the same target minus
the same log-policy, and the lowest of their target values bootstraps (clipped double
Q-learning, Fujimoto et al. 2018, on V): where one network is off upwards, the target is
not.

The temperature is the paper's constant, or follows the policy's entropy: it rises while
the entropy is below its target and falls while above (as SAC's does, Haarnoja et al.
2018b; the paper leaves this open). With the scaled softmax a change acts at once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iqmjx import networks, policies
from iqmjx.acting import Actor
from iqmjx.agents import base
from iqmjx.agents.base import average, descend, learning_rate, polyak
from iqmjx.config import Config
from iqmjx.networks import MLP
from iqmjx.normalize import Normalizer
from iqmjx.parallel import ALONE, Shards
from iqmjx.policies.base import SOFTMAXES, Policy, Temperature
from iqmjx.replay import Transition
from iqmjx.settings import refuse, setting

_ENTROPY_SLACK = 0.1
"""Nats per action dimension from the target within which the adaptation slows down."""
_TEMPERATURE_RANGE = (1e-6, 10.0)
"""Where the adaptation stays: from a hundredth of the paper's range (Sec. 6), because
normalized rewards are that much smaller, to ten times its upper end, because M-IQ's
entropy weighs but (1 - munchausen) * temperature."""
_MUNCHAUSEN = "Weight of the log-policy in the target, in [0, 1] (the paper's alpha)."


@dataclasses.dataclass(frozen=True)
class Settings(base.Settings):
    """IQ's settings; M-IQ, PCL and Trust-PCL are some of them.

    Raises:
        UsageError: on construction, naming the flag and the fix.
    """

    temperature: float = setting(
        0.01,
        "Entropy temperature, in units of reward (the paper's tau); the first one "
        "where --target_entropy adapts it.",
        **base.REWARD_UNITS,
    )
    target_entropy: float = setting(
        0.0,
        "Entropy that the temperature adapts to, as a share of the uniform policy's; "
        "0: constant temperature.",
        at_least=0,
        at_most=1,
    )
    munchausen: float = setting(0.0, _MUNCHAUSEN, at_least=0, at_most=1)
    residual: bool = setting(
        False,
        "Bootstrap from the value network itself rather than its target, and train it "
        "there too: PCL, and Trust-PCL with --munchausen.",
    )
    policy: str = setting(
        "multicategorical",
        "Policy class: multicategorical, autoregressive, gaussian, flow, tanh_gaussian "
        "or package.module:Class.",
    )
    num_bins: int = setting(
        11, "n, bins per action dimension (stored as int8).", at_least=2, at_most=127
    )
    softmax: str = setting(
        "shared",
        "raw: pi = softmax(F), F the policy network's outputs (paper Sec. 4); scaled: "
        "softmax(advantage_scale * F / temperature) (Sec. 3.3); shared: the same with "
        "advantage_scale divided among the action dimensions.",
        choices=SOFTMAXES,
    )
    advantage_scale: float = setting(
        0.1,
        "Of the policy network's outputs in the scaled softmax: the lower, the slower "
        "the advantage learns beside the value (the paper: 1).",
        **base.REWARD_UNITS,
    )
    num_value_networks: int = setting(
        1,
        "Value networks beside IQ's policy; the lowest of their target values "
        "bootstraps.",
        at_least=1,
        at_most=64,
        before=1,
    )

    def __post_init__(self):
        super().__post_init__()
        policies.find(self.policy)
        low, high = _TEMPERATURE_RANGE
        if self.target_entropy and not low <= self.temperature <= high:
            refuse(
                "temperature",
                self.temperature,
                f"--target_entropy adapts it within {low} to {high}; give a number "
                f"from {low} to {high}, or --target_entropy 0",
            )


@dataclasses.dataclass(frozen=True)
class MunchausenSettings(Settings):
    """M-IQ's settings, and Trust-PCL's: with munchausen = 0 they would be others.

    Raises:
        UsageError: on construction, naming the flag and the fix.
    """

    munchausen: float = setting(0.9, _MUNCHAUSEN, above=0, at_most=1)


@struct.dataclass
class Params:
    """Parameters of the policy network and the value networks."""

    policy: Any
    values: tuple[Any, ...]


@struct.dataclass
class LearnerState:
    """All that learning changes."""

    params: Params
    target_params: Params  # Polyak average of params, at target_rate
    average_policy: Any  # moving average of params.policy, at average_rate
    updates: Int[Array, ""]  # gradient steps taken
    opt_state: optax.OptState
    log_temperature: Float[Array, ""]
    temperature_opt_state: optax.OptState


@struct.dataclass
class Statistics:
    """Scalars of one update, means over its batch where nothing else is said."""

    loss: Float[Array, ""]  # squared TD error, reward^2
    td_error: Float[Array, ""]  # |target - Q|, reward
    value: Float[Array, ""]  # V(s), reward
    target: Float[Array, ""]  # reward
    target_std: Float[Array, ""]  # over the batch, reward
    log_prob: Float[Array, ""]  # of the replayed actions, nats
    entropy: Float[Array, ""]  # of the policy, nats per action dimension
    grad_norm: Float[Array, ""]
    temperature: Float[Array, ""]  # reward


def td_error(
    log_prob: Float[Array, " B"],
    value: Float[Array, " B"],
    target_log_prob: Float[Array, " B"],
    next_value: Float[Array, " B"],
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    *,
    temperature: Temperature,
    munchausen: float,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The TD error of Eq. 2 and its target.

    The caller decides what the error's gradient trains beside the policy and the value:
    IQ's `target_log_prob` and `next_value` are those of target networks. `discount` is
    that of `next_value`, 0 where the task terminated.
    """
    chex.assert_equal_shape(
        [log_prob, value, target_log_prob, next_value, reward, discount]
    )
    target = reward + munchausen * temperature * target_log_prob + discount * next_value
    return target - (temperature * log_prob + value), target


@dataclasses.dataclass(frozen=True, eq=False)
class ImplicitQ:
    """The agent; implements `iqmjx.agents.Agent`."""

    Settings = Settings

    policy: Policy
    value_network: MLP
    num_value_networks: int
    optimizer: optax.GradientTransformation
    temperature_optimizer: optax.GradientTransformation  # of its logarithm
    observation_size: int
    temperature: float  # at the start
    target_entropy: (
        float | None
    )  # nats per action dimension; None: constant temperature
    munchausen: float
    residual: bool  # bootstrap from the value network itself, and train it there too
    discount: float
    target_rate: float
    average_rate: float

    @classmethod
    def from_config(
        cls, config: Config, observation_size: int, action_size: int
    ) -> ImplicitQ:
        """Builds the networks and the optimizer that a config describes."""
        mine: Settings = config.algorithm
        policy = policies.make(mine, action_size)
        return cls(
            policy=policy,
            value_network=networks.of_value(mine),
            num_value_networks=mine.num_value_networks,
            optimizer=optax.adam(learning_rate(config)),
            temperature_optimizer=optax.sgd(learning_rate(config)),
            average_rate=mine.average_rate,
            observation_size=observation_size,
            temperature=mine.temperature,
            target_entropy=policy.entropy_at(mine.target_entropy)
            if mine.target_entropy
            else None,
            munchausen=mine.munchausen,
            residual=mine.residual,
            discount=mine.discounting,
            target_rate=mine.target_rate,
        )

    def init(self, key: PRNGKeyArray) -> LearnerState:
        policy_key, *value_keys = jax.random.split(key, 1 + self.num_value_networks)
        obs = jnp.zeros(self.observation_size)
        params = Params(
            policy=self.policy.init(policy_key, self.observation_size),
            values=tuple(self.value_network.init(key, obs) for key in value_keys),
        )
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return LearnerState(
            params=params,
            # Copies: an aliased tree could not be donated.
            target_params=jax.tree.map(jnp.copy, params),
            average_policy=jax.tree.map(jnp.copy, params.policy),
            updates=jnp.zeros((), jnp.int32),
            opt_state=self.optimizer.init(cast(Any, params)),
            log_temperature=log_temperature,
            temperature_opt_state=self.temperature_optimizer.init(log_temperature),
        )

    def actor(self, learner: LearnerState, normalizer: Normalizer | None) -> Actor:
        temperature = jnp.exp(learner.log_temperature)
        return Actor(learner.params.policy, temperature, normalizer)

    def average_actor(
        self, learner: LearnerState, normalizer: Normalizer | None
    ) -> Actor:
        temperature = jnp.exp(learner.log_temperature)
        return Actor(learner.average_policy, temperature, normalizer)

    def values(
        self, params: tuple[Any, ...], obs: Float[Array, "*B O"]
    ) -> Float[Array, " V *B"]:
        """V(s) of each value network."""
        outputs: Any = [self.value_network.apply(network, obs) for network in params]
        return jnp.stack(outputs)[..., 0]

    def loss(
        self,
        params: Params,
        target_params: Params,
        temperature: Float[Array, ""],
        batch: Transition,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Statistics]:
        """Eq. 2 over a batch [B] of normalized observations; `key` is consumed."""
        target_params = jax.lax.stop_gradient(target_params)
        log_prob, entropy = self.policy.log_prob_and_entropy(
            params.policy, batch.obs, batch.action, key, temperature
        )
        values = self.values(params.values, batch.obs)
        target_log_prob = jnp.zeros_like(log_prob)
        if self.munchausen > 0:
            target_log_prob = self.policy.log_prob(
                target_params.policy, batch.obs, batch.action, temperature
            )
        bootstrap = params if self.residual else target_params
        next_value = self.values(bootstrap.values, batch.next_obs).min(0)

        def error_of(value):
            return td_error(
                log_prob,
                value,
                target_log_prob,
                next_value,
                batch.reward,
                self.discount * batch.discount,
                temperature=temperature,
                munchausen=self.munchausen,
            )

        error, targets = jax.vmap(error_of)(values)
        target = targets[0]  # the same for all
        loss = jnp.mean(batch.weight[None] * jnp.square(error))
        statistics = Statistics(
            loss=loss,
            td_error=jnp.abs(error).mean(),
            value=values.mean(),
            target=target.mean(),
            target_std=target.std(),
            log_prob=log_prob.mean(),
            entropy=entropy.mean() / self.policy.action_shape[-1],
            grad_norm=jnp.zeros(()),  # known after the gradient
            temperature=temperature,
        )
        return loss, statistics

    def update(
        self,
        learner: LearnerState,
        batch: Transition,
        key: PRNGKeyArray,
        shards: Shards = ALONE,
    ) -> tuple[LearnerState, Statistics]:
        gradients, statistics = jax.grad(self.loss, has_aux=True)(
            learner.params,
            learner.target_params,
            jnp.exp(learner.log_temperature),
            batch,
            key,
        )
        gradients, statistics = shards.mean((gradients, statistics))
        params, opt_state = descend(
            self.optimizer, gradients, learner.opt_state, learner.params
        )
        grad_norm = optax.tree.norm(gradients)
        statistics = dataclasses.replace(statistics, grad_norm=grad_norm)
        log_temperature, temperature_opt_state = self._adapt(
            learner, statistics.entropy
        )
        learner = LearnerState(
            params=params,
            target_params=polyak(learner.target_params, params, self.target_rate),
            average_policy=average(
                learner.average_policy,
                params.policy,
                self.average_rate,
                learner.updates,
            ),
            updates=learner.updates + 1,
            opt_state=opt_state,
            log_temperature=log_temperature,
            temperature_opt_state=temperature_opt_state,
        )
        return learner, statistics

    def _adapt(
        self, learner: LearnerState, entropy: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Any]:
        """Steps the temperature towards the one with the target entropy.

        A step is a relative change of the learning rate, less within _ENTROPY_SLACK of
        the target. Returns the new logarithm, and its optimizer's state.
        """
        if self.target_entropy is None:
            return learner.log_temperature, learner.temperature_opt_state
        gap = (self.target_entropy - entropy) / _ENTROPY_SLACK
        log_temperature, opt_state = descend(
            self.temperature_optimizer,
            -jnp.clip(gap, -1.0, 1.0),
            learner.temperature_opt_state,
            learner.log_temperature,
        )
        return jnp.clip(log_temperature, *map(math.log, _TEMPERATURE_RANGE)), opt_state


class MunchausenQ(ImplicitQ):
    """M-IQ, and Trust-PCL: `ImplicitQ` by the settings of a munchausen above 0."""

    Settings = MunchausenSettings
