"""Environments so small that an agent that fails one says what is broken.

Five of them side by side, told apart by the observation's first five entries: a
constant reward; one that the observation names; one that comes a step later; one for
the right action; and one for the right action given the observation. What is right
differs between the action's dimensions, so that a policy of chance fails.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import acting, loop
from tests import toys

CONSTANT, OBSERVED, DELAYED, ACTION, BOTH = range(5)
DISCOUNT = 0.9
RIGHT = np.array([1.0, -1.0, 1.0])  # of the sign of each action dimension


class Probes(toys.Toy):
    """obs = (which of five, x); three actions; episodes of 1 step, DELAYED of 2."""

    gymnasium_id = "Probes"
    observation_size = 6
    action_size = 3

    def reset(self, key):
        which_key, sign_key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, 5)
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        signed = (which == OBSERVED) | (which == BOTH)
        return self._state(which, jnp.where(signed, sign, 0.0), 0.0, False)

    def step(self, state, action):
        which, x = state.pipeline_state.carry, state.obs[5]
        signed = action * RIGHT * jnp.where(which == BOTH, x, 1.0)
        right = jnp.where(signed > 0, 1.0, -1.0).mean()
        reward = jnp.stack([jnp.ones(()), x, x, right, right])[which]
        done = (which != DELAYED) | (x == 1)
        return self._state(which, jnp.where(which == DELAYED, 1.0, x), reward, done)

    def _state(self, which, x, reward, done):
        obs = jnp.append(jax.nn.one_hot(which, 5), x)
        return self.state(obs, reward, done, which)


# Every start of every probe, the reward of playing well there, and the sign of RIGHT
# that is right there, if any.
CASES = [
    (CONSTANT, 0, 1, None),
    (OBSERVED, 1, 1, None),
    (OBSERVED, -1, -1, None),
    (DELAYED, 0, 0, None),
    (DELAYED, 1, 1, None),
    (ACTION, 0, 1, 1),
    (BOTH, 1, 1, 1),
    (BOTH, -1, 1, -1),
]


@pytest.mark.parametrize("algo", ["iq", "m_iq", "sac"])
def test_probes(algo):
    constant = {} if algo == "sac" else {"temperature": 0.01, "target_entropy": 0.0}
    setup = toys.toy_setup(
        Probes(),
        **constant,
        algo=algo,
        num_timesteps=8 * 32 * 100,
        num_envs=32,
        chunk_steps=100,
        batch_size=64,
        grad_updates_per_step=2,
        max_replay_size=2**12,
        hidden_sizes=(32, 32),
        learning_rate=3e-3,
        learning_rate_decay=1.0,
        target_rate=0.05,
        average_rate=0.05,
        discounting=DISCOUNT,
        normalize_observations=False,
        normalize_rewards=False,
    )
    state, _ = loop.warm_up(setup, loop.init(setup))
    for _ in range(setup.config.num_chunks):
        state, _ = loop.train_chunk(setup, state)
    which, x, rewards, signs = zip(*CASES, strict=True)
    obs = jnp.column_stack([jax.nn.one_hot(jnp.array(which), 5), jnp.array(x)])
    learner, actor = jax.tree.map(
        lambda leaf: leaf[0], (state.learner, loop.average_actors(setup, state))
    )
    action = acting.act_greedily(setup.agent.policy, actor, obs)
    control = np.asarray(setup.agent.policy.control(action))
    for case, sign, chosen in zip(CASES, signs, control, strict=True):
        assert sign is None or (chosen * sign * RIGHT > 0).all(), (case, chosen)
    params = learner.params
    values = np.array(rewards, float)
    if algo == "sac":
        values[3] = DISCOUNT * soft_value_of_the_second_step(setup.agent, params, obs)
        learned = setup.agent.q_values(params.critics, obs, action).min(0)
    else:
        values += entropy_bonuses(setup.config)
        values[3] += DISCOUNT * values[4]
        learned = setup.agent.values(params.values, obs)[0]
    np.testing.assert_allclose(learned, values, atol=0.1 if algo == "sac" else 0.06)


def entropy_bonuses(config):
    """What a soft value has above the reward: the best policy's entropy, weighted.

    Uniform over 11 bins of 3 dimensions where all are as good, over the 5 on the right
    side of 0 where that matters. M-IQ's weight is (1 - munchausen) temperature.
    """
    settings = config.algorithm
    weight = (1 - settings.munchausen) * settings.temperature
    bins = np.array([11 if sign is None else 5 for *_, sign in CASES])
    return weight * 3 * np.log(bins)


def soft_value_of_the_second_step(agent, params, obs):
    """SAC's 1 + temperature * entropy, by its own temperature and policy."""
    many = jnp.tile(obs[4], (4096, 1))
    key = jax.random.key(1)
    _, log_prob = agent.policy.sample_with_log_prob(params.policy, many, key)
    return 1 - jnp.exp(params.log_temperature) * log_prob.mean()
