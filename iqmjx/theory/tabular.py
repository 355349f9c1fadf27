"""IQ in tabular form: IQ-DP, the scheme it equals, and how errors propagate.

`python -m iqmjx.tabular` checks the paper's theorems (Sec. 3) with it.

Everything here is exact up to float64: expectations instead of samples, tables instead
of networks. S states, A actions, K iterations. The paper's alpha is `munchausen`, its
tau `temperature`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

_STATES, _ACTIONS, _DISCOUNT = 10, 4, 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class MDP:
    """A finite Markov decision process.

    Raises:
        ValueError: on construction, where shapes do not fit, rows of `transition` are
            no distributions, or the discount is not in [0, 1).
    """

    reward: np.ndarray  # [S, A]
    transition: np.ndarray  # [S, A, S], probability of the next state
    discount: float

    def __post_init__(self):
        if self.transition.shape != (*self.reward.shape, self.reward.shape[0]):
            raise ValueError(
                f"transition {self.transition.shape}: reward {self.reward.shape} needs "
                f"{(*self.reward.shape, self.reward.shape[0])}"
            )
        if (self.transition < 0).any() or not np.allclose(self.transition.sum(-1), 1):
            raise ValueError("transition: give probabilities that add up to 1")
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount {self.discount}: give a number in [0, 1)")

    def backup(self, value: np.ndarray) -> np.ndarray:
        """The expected reward and next value, r + discount P V: [S, A] from [S]."""
        return self.reward + self.discount * self.transition @ value


class Iterates(NamedTuple):
    """What a scheme went through, its start first."""

    log_policies: np.ndarray  # [K + 1, S, A]
    values: np.ndarray  # [K + 1, S]


def random_mdp(
    rng: np.random.Generator,
    num_states: int = _STATES,
    num_actions: int = _ACTIONS,
    discount: float = _DISCOUNT,
    branching: int = 3,
) -> MDP:
    """A Garnet: each action leads to `branching` random states; rewards in [-1, 1]."""
    transition = np.zeros((num_states, num_actions, num_states))
    for state, action in np.ndindex(num_states, num_actions):
        reached = rng.choice(num_states, branching, replace=False)
        transition[state, action, reached] = rng.dirichlet(np.ones(branching))
    reward = rng.uniform(-1, 1, (num_states, num_actions))
    return MDP(reward, transition, discount)


def iq_dp(
    mdp: MDP, munchausen: float, temperature: float, errors: np.ndarray
) -> Iterates:
    """IQ-DP (Eq. 3) from the uniform policy and a value of 0.

        temperature log pi' + V' = r + munchausen temperature log pi + discount P V + e

    Args:
        mdp: the process.
        munchausen: in [0, 1].
        temperature: above 0, in units of reward.
        errors: e of each iteration, [K, S, A]; zeros for the exact scheme.
    """

    def step(log_policy, value, error):
        q = mdp.backup(value) + munchausen * temperature * log_policy + error
        value = soft_max(q, temperature)
        return (q - value[:, None]) / temperature, value

    return _iterate(mdp, step, errors)


def md_vi(
    mdp: MDP, kl_weight: float, entropy_weight: float, errors: np.ndarray
) -> Iterates:
    """Mirror descent value iteration (Vieillard et al. 2020a) from the same start.

        pi' = argmax <pi, q> + entropy_weight H(pi) - kl_weight KL(pi || pi_before)
        V'  = the maximum,   q = r + discount P V + e

    The maximum is computed from its three terms, not as the logsumexp that it is: that
    both are equal is Theorem 1.
    """

    def step(log_policy, value, error):
        q = mdp.backup(value) + error
        scores = (q + kl_weight * log_policy) / (entropy_weight + kl_weight)
        new = scores - logsumexp(scores, axis=-1, keepdims=True)
        policy = np.exp(new)
        entropy = -np.sum(policy * new, -1)
        divergence = np.sum(policy * (new - log_policy), -1)
        gain = np.sum(policy * q, -1)
        return new, gain + entropy_weight * entropy - kl_weight * divergence

    return _iterate(mdp, step, errors)


def advantage_learning(mdp: MDP, munchausen: float, num_iterations: int) -> np.ndarray:
    """Advantage learning (Bellemare et al. 2016) from 0, Q-values [K + 1, S, A].

        Q' = r + munchausen (Q - max Q) + discount P max Q

    What the implicit Q-value of IQ-DP tends to as the temperature falls (Sec. 3.1).
    """
    q = np.zeros_like(mdp.reward)
    history = [q]
    for _ in range(num_iterations):
        best = q.max(-1)
        q = mdp.backup(best) + munchausen * (q - best[:, None])
        history.append(q)
    return np.array(history)


def implicit_q(iterates: Iterates, temperature: float) -> np.ndarray:
    """Q = temperature log pi + V (Eq. 1) of each iterate, [K + 1, S, A]."""
    return temperature * iterates.log_policies + iterates.values[..., None]


def soft_max(q: np.ndarray, temperature: float) -> np.ndarray:
    """The soft maximum over the last axis, temperature logsumexp(q / temperature)."""
    if temperature == 0:
        return q.max(-1)
    return temperature * logsumexp(q / temperature, axis=-1)


def policy_q(mdp: MDP, log_policy: np.ndarray, temperature: float) -> np.ndarray:
    """The Q-value [S, A] of a policy in the MDP regularized by its entropy.

    Solves Q = r + discount P <pi, Q - temperature log pi>; a temperature of 0 gives the
    ordinary Q-value.
    """
    policy = np.exp(log_policy)
    logs = np.where(policy > 0, log_policy, 0.0)  # 0 log 0 = 0
    entropy = -np.sum(policy * logs, -1)
    onward = np.einsum("sap,pb->sapb", mdp.transition, policy)
    size = mdp.reward.size
    system = np.eye(size) - mdp.discount * onward.reshape(size, size)
    return np.linalg.solve(system, mdp.backup(temperature * entropy).ravel()).reshape(
        mdp.reward.shape
    )


def optimal_q(mdp: MDP, temperature: float) -> np.ndarray:
    """The optimal Q-value [S, A] of the MDP regularized by entropy; 0: of the MDP.

    By policy iteration, each policy evaluated exactly, until it no longer improves.
    """
    q = np.zeros_like(mdp.reward)
    while True:
        if temperature == 0:
            best = np.eye(q.shape[-1])[q.argmax(-1)]
            log_policy = np.where(best > 0, 0.0, -np.inf)
        else:
            log_policy = (q - soft_max(q, temperature)[:, None]) / temperature
        better = policy_q(mdp, log_policy, temperature)
        if np.max(better - q) < 1e-13 * (1 + np.abs(q).max()) and q.any():
            return better
        q = better


def suboptimality(
    mdp: MDP, iterates: Iterates, munchausen: float, temperature: float
) -> np.ndarray:
    """What Theorem 2 bounds, max |Q* - Q_pi_k| of each iterate, [K + 1].

    Both Q-values are those of the MDP regularized with (1 - munchausen) temperature.
    """
    entropy_weight = (1 - munchausen) * temperature
    optimum = optimal_q(mdp, entropy_weight)
    return np.array(
        [
            np.abs(optimum - policy_q(mdp, log_policy, entropy_weight)).max()
            for log_policy in iterates.log_policies
        ]
    )


class Bound(NamedTuple):
    """Theorem 2 for the iterates 1 to K: what errors contribute, and the rest."""

    errors: np.ndarray  # [K]
    remainder: np.ndarray  # [K], o(1/k) for munchausen < 1, O(1/k) for 1


def error_bound(
    mdp: MDP,
    iterates: Iterates,
    munchausen: float,
    temperature: float,
    errors: np.ndarray,
) -> Bound:
    """Theorem 2, its remainder written out.

    With w = (1 - munchausen) temperature, IQ-DP's policies are softmax(H_k / w) of an
    average H_k of the Q-values so far, and H follows soft value iteration:

        H_{k+1} = T H_k + E_k + munchausen^k d,   d = -munchausen r - discount w log A

    from H_0 = 0, E_k the moving average of the errors. So |Q* - H| contracts by the
    discount but for these terms, and a greedy policy is at most 2 discount / (1 -
    discount) times as far from the optimum as H.

    With munchausen = 1 the policy is softmax(h_k / temperature) of a sum

        h_k = k r + discount P (M_k - V_k) + sum of errors - discount temperature log A

    with M_k = temperature logsumexp(h_k / temperature), which the policy attains within
    temperature log A. Bounding h_k / k from below by the optimal policy's Q-value and
    from above by its own policy's leaves the average of the errors, and 1/k.
    """
    discount, size = mdp.discount, np.arange(1, len(errors) + 1)
    log_actions = temperature * np.log(mdp.reward.shape[-1])
    if munchausen == 1:
        average = np.cumsum(errors, 0) / size[:, None, None]
        largest_value = np.abs(iterates.values[1:]).max(-1)
        return Bound(
            2 / (1 - discount) * np.abs(average).max((1, 2)),
            discount / (1 - discount) * (2 * largest_value + log_actions) / size,
        )
    entropy_weight = (1 - munchausen) * temperature
    drift = munchausen * mdp.reward + discount * (1 - munchausen) * log_actions
    average = np.zeros_like(mdp.reward)
    from_errors, rest = 0.0, np.abs(optimal_q(mdp, entropy_weight)).max()
    bounds = []
    for k, error in enumerate(errors):
        average = munchausen * average + (1 - munchausen) * error
        from_errors = discount * from_errors + np.abs(average).max()
        rest = discount * rest + munchausen**k * np.abs(drift).max()
        bounds.append((from_errors, rest))
    return Bound(*(2 / (1 - discount) * np.array(bounds).T))


def _iterate(mdp: MDP, step: Callable, errors: np.ndarray) -> Iterates:
    uniform = np.full(mdp.reward.shape, -np.log(mdp.reward.shape[-1]))
    history = [(uniform, np.zeros(mdp.reward.shape[0]))]
    for error in errors:
        history.append(step(*history[-1], error))
    log_policies, values = zip(*history, strict=True)
    return Iterates(np.array(log_policies), np.array(values))
