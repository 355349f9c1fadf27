import os
import socket

os.environ.setdefault("PJRT_NPROC", "16")  # before jax: see cli.give_mjx_threads

import jax
import pytest


@pytest.fixture
def no_rank_promotion():
    """Broadcasting between different ranks is an error: a [B, 1] - [B] slip shows."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
