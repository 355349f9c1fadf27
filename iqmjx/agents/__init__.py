"""Agents: what acts and learns. The loop knows only this protocol."""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx.agents import iq, sac
from iqmjx.config import Config
from iqmjx.replay import Transition


class Agent(Protocol):
    """Pure functions over a learner state of the agent's own making.

    An agent is hashable and compared by identity, so that it can be a static argument
    of jitted functions. Observations are normalized before they reach it.
    """

    @property
    def action_dtype(self) -> Any:
        """The dtype of the actions that act() returns and replay stores."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one of them."""
        ...

    def init(self, key: PRNGKeyArray) -> Any:
        """Fresh learner state; `key` is consumed."""
        ...

    def act(self, learner: Any, obs: Float[Array, "N O"], key: PRNGKeyArray) -> Array:
        """Samples actions from the policy; `key` is consumed."""
        ...

    def act_greedy(self, learner: Any, obs: Float[Array, "N O"]) -> Array:
        """The average policy's most likely actions, for evaluation."""
        ...

    def act_random(self, key: PRNGKeyArray, num_worlds: int) -> Array:
        """Uniformly random actions, for the warm-up; `key` is consumed."""
        ...

    def control(self, action: Array) -> Float[Array, "N A"]:
        """What the environment is given for an action: entries in [-1, 1]."""
        ...

    def update(
        self, learner: Any, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Any, Any]:
        """One gradient step on a batch [B]; `key` is consumed.

        Returns the new learner state, and a dataclass of scalar statistics.
        """
        ...


def make(config: Config, observation_size: int, action_size: int) -> Agent:
    """Builds the agent that `config.algo` names."""
    kind = sac.SoftActorCritic if config.algo == "sac" else iq.ImplicitQ
    return kind.from_config(config, observation_size, action_size)
