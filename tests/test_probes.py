"""Environments so small that an agent that fails one says what is broken.

Five of them side by side, told apart by the observation's first five entries: a
constant reward; one that the observation names; one that comes a step later; one for
the right action; and one for the right action given the observation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import loop
from tests import toys

CONSTANT, OBSERVED, DELAYED, ACTION, BOTH = range(5)
DISCOUNT = 0.9


class Probes(toys.Toy):
    """obs = (which of five, x); one action; episodes of 1 step, DELAYED of 2."""

    gymnasium_id = "Probes"
    observation_size = 6
    action_size = 1

    def reset(self, key):
        which_key, sign_key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, 5)
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        signed = (which == OBSERVED) | (which == BOTH)
        return self._state(which, jnp.where(signed, sign, 0.0), 0.0, False)

    def step(self, state, action):
        which, x = state.pipeline_state.carry, state.obs[5]
        right = jnp.where(action[0] * jnp.where(which == BOTH, x, 1.0) > 0, 1.0, -1.0)
        reward = jnp.stack([jnp.ones(()), x, x, right, right])[which]
        done = (which != DELAYED) | (x == 1)
        return self._state(which, jnp.where(which == DELAYED, 1.0, x), reward, done)

    def _state(self, which, x, reward, done):
        obs = jnp.append(jax.nn.one_hot(which, 5), x)
        return self.state(obs, reward, done, which)


# Every start of every probe, the value of playing well from it, and the sign of the
# right action where there is one.
CASES = [
    (CONSTANT, 0, 1, None),
    (OBSERVED, 1, 1, None),
    (OBSERVED, -1, -1, None),
    (DELAYED, 0, DISCOUNT, None),
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
        num_envs=32,
        chunk_steps=100,
        batch_size=64,
        grad_updates_per_step=2,
        max_replay_size=2**12,
        hidden_sizes=(32, 32),
        learning_rate=3e-3,
        target_rate=0.05,
        average_rate=0.05,
        discounting=DISCOUNT,
        normalize_observations=False,
    )
    state = jax.jit(loop.init, static_argnums=0)(setup, jax.random.key(0))
    for _ in range(8):
        state, _ = loop.train_chunk(setup, state)
    which, x, values, signs = zip(*CASES, strict=True)
    obs = jnp.column_stack([jax.nn.one_hot(jnp.array(which), 5), jnp.array(x)])
    action = setup.agent.act_greedy(state.learner, obs)
    control = np.asarray(setup.agent.control(action))[:, 0]
    for case, sign, chosen in zip(CASES, signs, control, strict=True):
        assert sign is None or chosen * sign > 0, (case, chosen)
    params = state.learner.params
    if algo == "sac":
        learned = setup.agent.q_values(params.critics, obs, action).min(0)
    else:
        learned = setup.agent.value(params.value, obs)
    np.testing.assert_allclose(learned, values, atol=0.12)
