"""Agents: what acts and learns. The loop knows only this protocol.

An algorithm is a class of agents, with its settings. To add one, write the class, in a
file here with a line in ALGORITHMS, or anywhere else: `--algo package.module:Class`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from jaxtyping import PRNGKeyArray

from iqmjx import registry
from iqmjx.acting import Actor
from iqmjx.config import Config
from iqmjx.errors import UsageError
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


class Algorithm(Protocol):
    """What a class of agents offers.

    Attributes:
        Settings: a frozen dataclass of the settings that only this algorithm has, with
            a default for each. Its fields are flags, and an instance of it is
            `config.algorithm`. It may extend `iqmjx.agents.base.Settings`.
    """

    Settings: type[Any]

    def from_config(
        self, config: Config, observation_size: int, action_size: int
    ) -> Agent:
        """Builds the agent of a run; a class method."""
        ...


ALGORITHMS: dict[str, str | type] = {
    "iq": "iqmjx.agents.iq:ImplicitQ",
    # IQ with other settings: see iqmjx.presets.
    "m_iq": "iqmjx.agents.iq:MunchausenQ",
    "pcl": "iqmjx.agents.iq:ImplicitQ",
    "trust_pcl": "iqmjx.agents.iq:MunchausenQ",
    "sac": "iqmjx.agents.sac:SoftActorCritic",
}
"""Names of algorithms, and where their classes are."""
_CALLS = {"from_config": "config, observation_size, action_size"}


def find(algo: str) -> Algorithm:
    """The class of an algorithm: a name in ALGORITHMS, or `package.module:Class`.

    Raises:
        UsageError: where there is none, or it has no Settings or no from_config.
    """
    found = registry.find("algo", algo, ALGORITHMS)
    if not dataclasses.is_dataclass(getattr(found, "Settings", None)):
        raise UsageError(f"--algo {algo}: the class needs a dataclass named Settings")
    registry.check("algo", algo, found, _CALLS)
    return found


def make(config: Config, observation_size: int, action_size: int) -> Agent:
    """Builds the agent that a config describes."""
    kind = find(config.algo)
    return kind.from_config(config, observation_size, action_size)
