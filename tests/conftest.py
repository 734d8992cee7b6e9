"""Two test processes share two cores; networks this small gain nothing from a second thread."""

import os
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what a user has kept must not decide whether a test passes
CACHE = tempfile.TemporaryDirectory(prefix="roadmap-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name
# a shell that runs the tests in its background has them ignore Ctrl-C, and with them the processes that are
# to be interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
