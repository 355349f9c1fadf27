"""Policy classes: a network and the distribution over actions that it describes.

To add one, write a class that implements `Policy`, with a class method
`from_settings(settings, action_size)`: in a file here with a line in CLASSES, or
anywhere else, as `--policy package.module:Class`.
"""

from __future__ import annotations

from typing import Any

from iqmjx import registry
from iqmjx.policies.base import Policy, Settings

CLASSES: dict[str, str | type] = {
    "multicategorical": "iqmjx.policies.multicategorical:Multicategorical",
    "autoregressive": "iqmjx.policies.autoregressive:Autoregressive",
    "gaussian": "iqmjx.policies.gaussian:Gaussian",
    "flow": "iqmjx.policies.flow:Flow",
    "tanh_gaussian": "iqmjx.policies.tanh_gaussian:TanhGaussian",
}
"""Names of policy classes, and where they are."""
_CALLS = {"from_settings": "settings, action_size"}


def find(name: str) -> Any:
    """A policy class: a name in CLASSES, or `package.module:Class`.

    Raises:
        UsageError: where there is none, or it has no from_settings.
    """
    found = registry.find("policy", name, CLASSES)
    registry.check("policy", name, found, _CALLS)
    return found


def make(settings: Settings, action_size: int) -> Policy:
    """Builds the policy that an algorithm's settings describe."""
    return find(settings.policy).from_settings(settings, action_size)
