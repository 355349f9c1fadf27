"""Policy classes: a network and the distribution over actions that it describes."""

from __future__ import annotations

from iqmjx.config import Config
from iqmjx.policies import autoregressive, flow, gaussian, multicategorical
from iqmjx.policies.base import Policy

_CLASSES = {
    "multicategorical": multicategorical.Multicategorical,
    "autoregressive": autoregressive.Autoregressive,
    "gaussian": gaussian.Gaussian,
    "flow": flow.Flow,
}


def make(config: Config, action_size: int) -> Policy:
    """Builds the policy class that `config.policy` names, for an IQ agent."""
    return _CLASSES[config.policy].from_config(config, action_size)
