import gc
import os
import signal
import socket
import tempfile

# Before jax; processes that tests start inherit both.
os.environ.setdefault("PJRT_NPROC", "16")  # see cli.give_mjx_threads
# Half the time of a test is spent in compiling programs that run for a moment.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Many tests, and most processes that they start, compile the same programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="iqmjx-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

from tests import typecheck

typecheck.install()  # before anything of iqmjx is imported

# Jobs in the background and under nohup are started deaf to these, and what tests start
# from there would be as well.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees a file's programs: Linux aborts a process of more than 65,530 mappings.

    XLA maps a few for each, and all tests together compile too many.
    """
    yield
    jax.clear_caches()
    gc.collect()


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
