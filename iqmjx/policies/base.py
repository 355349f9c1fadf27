"""What a policy class is."""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import Array, Float, PRNGKeyArray

Temperature = float | Float[Array, ""]
"""A number, or a traced scalar."""


class Policy(Protocol):
    """A distribution over actions given an observation, with parameters apart.

    The temperature is an argument of every call: where the scaled softmax is used, it
    shapes the distribution, and a change of it acts at once.
    """

    @property
    def action_dtype(self) -> Any:
        """The dtype of the actions that sample() returns and replay stores."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one of them."""
        ...

    def init(self, key: PRNGKeyArray, observation_size: int) -> Any:
        """Fresh parameters; `key` is consumed."""
        ...

    def log_prob(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Array,
        temperature: Temperature,
    ) -> Float[Array, "*B"]:
        """Log-probability of actions as they are stored in replay, in nats."""
        ...

    def log_prob_and_entropy(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        action: Array,
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """`log_prob`, and the entropy of the distribution in nats.

        Exact where it has a closed form; else an unbiased estimate for each observation
        from one action of its own, for which `key` is consumed. The class says which.
        """
        ...

    def entropy_at(self, share: float) -> float:
        """The entropy per action dimension, in nats, that is a share of uniform play's.

        On the scale of n bins, so that a share means as much for every class: share *
        log n for one that has bins, and for a density on [-1, 1] that of the n bins
        that it would fill, share * log n - log(n / 2).
        """
        ...

    def sample(
        self,
        params: Any,
        obs: Float[Array, "*B O"],
        key: PRNGKeyArray,
        temperature: Temperature,
    ) -> Array:
        """Actions drawn from the distribution; `key` is consumed."""
        ...

    def mode(self, params: Any, obs: Float[Array, "*B O"]) -> Array:
        """The most likely actions."""
        ...

    def random(self, key: PRNGKeyArray, batch: int) -> Array:
        """Uniformly random actions [batch, *action_shape]; `key` is consumed."""
        ...

    def control(self, action: Array) -> Float[Array, "*B A"]:
        """The point of [-1, 1]^A that a stored action stands for."""
        ...
