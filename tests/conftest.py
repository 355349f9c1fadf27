import os

os.environ.setdefault("PJRT_NPROC", "16")  # before jax: see cli.give_mjx_threads

import jax
import pytest


@pytest.fixture
def no_rank_promotion():
    """Broadcasting between different ranks is an error: a [B, 1] - [B] slip shows."""
    with jax.numpy_rank_promotion("raise"):
        yield
