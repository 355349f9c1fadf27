import ast
import dataclasses
import importlib.util
import pkgutil
import types
import typing

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import iqmjx
from iqmjx import replay
from iqmjx.envs import vector
from iqmjx.envs.base import State
from iqmjx.networks import MLP
from iqmjx.policies.multicategorical import Multicategorical
from iqmjx.replay import Transition

POLICY = Multicategorical(MLP((16,), 3 * 5), 3, 5, None)
BATCH = Transition(
    obs=jnp.zeros((4, 2)),
    action=jnp.zeros((4, 3), jnp.int8),
    reward=jnp.zeros(4),
    discount=jnp.ones(4),
    weight=jnp.ones(4),
    next_obs=jnp.zeros((4, 2)),
)
RING = replay.init(jax.tree.map(lambda leaf: leaf[0], BATCH), 8)
WORLDS = State(None, obs=jnp.zeros((4, 2)), reward=jnp.zeros(4), done=jnp.zeros(4))


def log_prob(obs, action):
    params = POLICY.init(jax.random.key(0), 2)
    return POLICY.log_prob(params, obs, action, 1.0)


def add(**changes):
    return replay.add(RING, dataclasses.replace(BATCH, **changes))


def has_diverged(num_controls):
    return vector.has_diverged(WORLDS, jnp.zeros((num_controls, 3)))


def test_right_shapes_pass():
    assert log_prob(BATCH.obs, BATCH.action).shape == (4,)
    assert add().size == 4
    assert not has_diverged(4).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_prob(BATCH.obs, BATCH.action[:3]),
        lambda: log_prob(BATCH.obs, jnp.zeros((4, 3))),  # points for bins
        lambda: jax.jit(log_prob)(BATCH.obs, BATCH.action[:3]),
        lambda: replay.take(RING, jnp.zeros(2)),  # rows are integers
        lambda: POLICY.random(jax.random.split(jax.random.key(0), 2), 4),
        lambda: add(reward=jnp.zeros((4, 1))),
        lambda: add(next_obs=jnp.zeros((4, 3))),
        lambda: has_diverged(1),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_every_shape_can_be_read():
    """One that cannot is not checked, and jaxtyping does not say so."""
    read = 0
    for info in pkgutil.walk_packages(iqmjx.__path__, "iqmjx."):
        found = info.module_finder.find_spec(info.name)  # imported or not
        source = found.loader.get_source(info.name)
        for hint in shapes(ast.parse(source)):
            holder = types.SimpleNamespace(__annotations__={"it": hint})
            module = importlib.import_module(info.name)
            assert typing.get_type_hints(holder, vars(module))
            read += 1
    assert read > 200


def shapes(tree):
    """The source of each annotation that gives a shape."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            hint = getattr(node, name, None)
            if hint and "[Array" in ast.unparse(hint):
                yield ast.unparse(hint)
