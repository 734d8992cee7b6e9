"""Two test processes share two cores; networks this small gain nothing from a second thread."""

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what a user has kept must not decide whether a test passes
CACHE = tempfile.TemporaryDirectory(prefix="roadmap-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = CACHE.name
# packages leave temporary folders behind in processes that are killed, as W&B does once it is imported
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = CACHE.name
# a shell that runs the tests in its background has them ignore Ctrl-C, and with them the processes that are
# to be interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
