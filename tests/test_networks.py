"""Products of bfloat16 factors: against NumPy, in every place that networks have."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx import agents, networks, presets
from tests import test_agents, toys


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_a_product_and_its_gradients_round_the_factors_and_nothing_else(leading):
    x, weights, pull = normal(0, *leading, 5), normal(1, 5, 4), normal(2, *leading, 4)
    y, gradients = jax.vjp(networks.product, x, weights)
    to_x, to_weights = gradients(pull)
    x, weights, pull = (rounded(a) for a in (x, weights, pull))
    rows = x.reshape(-1, 5), pull.reshape(-1, 4)
    for got, expected in (
        (y, x @ weights),
        (to_x, pull @ weights.T),
        (to_weights, rows[0].T @ rows[1]),
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_of_a_network_all_products_but_that_of_a_single_output_are_rounded(outputs):
    network = networks.MLP((8, 6), outputs, False, compute_dtype="bfloat16")
    x = normal(0, 5, 4)
    params = network.init(jax.random.key(1), x)
    layers = [
        tuple(
            np.asarray(params["params"][f"Dense_{i}"][name], np.float64)
            for name in ("kernel", "bias")
        )
        for i in range(3)
    ]
    hidden = np.asarray(x)
    for kernel, bias in layers[:2]:
        hidden = np.maximum(rounded(hidden) @ rounded(kernel) + bias, 0)
    kernel, bias = layers[2]
    last = rounded(hidden) @ rounded(kernel) if outputs > 1 else hidden @ kernel
    np.testing.assert_allclose(network.apply(params, x), last + bias, rtol=1e-5)


@pytest.mark.parametrize(
    ("algo", "policy"),
    [
        ("iq", "multicategorical"),
        ("m_iq", "autoregressive"),
        ("trust_pcl", "gaussian"),
        ("sac", "tanh_gaussian"),
    ],
)
def test_the_compute_type_reaches_every_network(algo, policy):
    own = {} if algo == "sac" else {"policy": policy, "num_bins": 5}
    key = jax.random.key(0)

    def products_with_second_layers(compute_dtype, factors):
        sizes = {"hidden_sizes": (24, 40), "compute_dtype": compute_dtype}
        agent = agents.make(toys.config(algo=algo, **own, **sizes), 4, 3)
        batch = test_agents.make_batch(agent, 8)
        text = jax.jit(agent.update).lower(agent.init(key), batch, key).as_text()
        operands = re.findall(r"dot_general .*?: \((.*)\) ->", text)
        return sum(f"24x40x{factors}" in types for types in operands)

    count = products_with_second_layers("float32", "f32")
    assert count >= 5  # policy and value, forward and back, and a target value
    assert products_with_second_layers("float32", "bf16") == 0
    assert products_with_second_layers("bfloat16", "f32") == 0
    assert products_with_second_layers("bfloat16", "bf16") == count


def test_the_cpu_preset_rounds_where_the_cpu_multiplies_bfloat16(monkeypatch):
    for amx, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(presets, "has_amx", lambda amx=amx: amx)
        for algo in ("iq", "sac"):
            resolved = presets.resolve({"env": "hopper", "algo": algo}, "cpu")
            assert resolved.config.algorithm.compute_dtype == expected
            assert ("AMX" in resolved.sources["compute_dtype"]) == amx
        for preset in ("gpu", "paper"):
            config = presets.resolve({"env": "hopper"}, preset).config
            assert config.algorithm.compute_dtype == "float32"
