"""Calls from programs into Python: against NumPy, and through the compilation cache."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iqmjx.envs.physics import host_call

SHAPES = {
    "sum": jax.ShapeDtypeStruct((3,), jnp.float32),
    "bits": jax.ShapeDtypeStruct((2, 3), jnp.uint32),
    "none": jax.ShapeDtypeStruct((0,), jnp.int32),
}


def add(a, b):
    total = a + b
    bits = np.stack([total, b], -2).astype(np.float32).view(np.uint32)
    none = np.zeros((*total.shape[:-1], 0), np.int32)
    return {"sum": total, "bits": bits, "none": none}


@pytest.fixture
def number():
    host_call.register(2**63 - 1, add)
    return 2**63 - 1


def test_a_call_gives_what_the_function_returns_alone_in_batches_and_in_a_scan(number):
    def call(a, b):
        return host_call.call(number, SHAPES, a, b)

    def scanned(a, b):
        def step(a, _):
            return call(a, b)["sum"], None

        return jax.lax.scan(step, a, length=4)[0]

    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(2, 5, 4, 3)), jnp.float32)
    alone = jax.jit(call)(a[0, 0], b[0, 0])
    batch = jax.jit(jax.vmap(jax.vmap(call)))(a, b)
    for name, expected in add(np.asarray(a), np.asarray(b)).items():
        np.testing.assert_array_equal(batch[name], expected)
        np.testing.assert_array_equal(alone[name], expected[0, 0])
        assert batch[name].dtype == SHAPES[name].dtype
    np.testing.assert_allclose(
        jax.jit(jax.vmap(scanned))(a[0], b[0]), a[0] + 4 * b[0], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda a: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda a: np.zeros(7), "could not broadcast"),
        (lambda a: (a, a), "ValueError"),
    ],
)
def test_what_a_function_raises_ends_the_program_and_the_next_call_is_whole(
    function, words
):
    host_call.register(5, function)
    program = jax.jit(lambda a: host_call.call(5, SHAPES["sum"], a))
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        jax.block_until_ready(program(jnp.ones(3)))
    host_call.register(5, lambda a: 2 * a)
    np.testing.assert_array_equal(program(jnp.ones(3)), [2, 2, 2])


def test_a_version_of_xla_that_is_not_known_is_refused():
    """By the answer to XLA's first question."""
    frame = host_call._Frame()
    api = host_call._Api()
    frame.api.contents = api
    api.version.major = 1
    with pytest.raises(RuntimeError, match="version 1"):
        host_call._tell_version(frame)


PROCESS = """
import json, jax, numpy as np
from iqmjx import loop
from tests import toys
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
setup = loop.make_setup(toys.config(env={env!r}))
state, _ = loop.warm_up(setup, loop.init(setup))
before = len(hits)
state, (steps, _) = loop.train_chunk(setup, state)
print(json.dumps([len(hits) - before, np.asarray(state.envs.obs).tolist()]))
"""


@pytest.mark.parametrize("env", ["hopper", pytest.param("ant", marks=pytest.mark.slow)])
def test_the_next_process_finds_its_program_compiled(env, tmp_path):
    """And its own physics in it."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first, second = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", PROCESS.format(env=env)],
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        for _ in range(2)
    )
    assert (first[0], second[0] > 0) == (0, True)
    assert first[1] == second[1]
