"""Agents: what acts and learns. The loop knows only this protocol."""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import PRNGKeyArray

from iqmjx.acting import Actor
from iqmjx.agents import iq, sac
from iqmjx.config import Config
from iqmjx.normalize import Normalizer
from iqmjx.parallel import Shards
from iqmjx.policies.base import Policy
from iqmjx.replay import Transition


class Agent(Protocol):
    """Pure functions over a learner state of the agent's own making.

    An agent is hashable and compared by identity, so that it can be a static argument
    of jitted functions. Observations are normalized before they reach it.
    """

    @property
    def policy(self) -> Policy:
        """The policy class that it acts by."""
        ...

    def init(self, key: PRNGKeyArray) -> Any:
        """Fresh learner state; `key` is consumed."""
        ...

    def actor(self, learner: Any, normalizer: Normalizer | None) -> Actor:
        """What training acts by: the newest parameters."""
        ...

    def average_actor(self, learner: Any, normalizer: Normalizer | None) -> Actor:
        """What evaluations play, and what is saved as the policy."""
        ...

    def update(
        self, learner: Any, batch: Transition, key: PRNGKeyArray, shards: Shards
    ) -> tuple[Any, Any]:
        """One gradient step on a batch [B]; `key` is consumed.

        The batch is one shard's part of a larger one. Gradients, and all else that
        decides the new state, must be means over `shards`.

        Returns the new learner state, and a dataclass of scalar statistics.
        """
        ...


def make(config: Config, observation_size: int, action_size: int) -> Agent:
    """Builds the agent that `config.algo` names."""
    kind = sac.SoftActorCritic if config.algo == "sac" else iq.ImplicitQ
    return kind.from_config(config, observation_size, action_size)
