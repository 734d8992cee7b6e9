"""Two test processes share two cores; networks this small gain nothing from a second thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
