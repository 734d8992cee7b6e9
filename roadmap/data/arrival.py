"""How batches arrive from the processes that load them: whether they can, and a wait for them that ends."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from torch.utils.data import DataLoader

from roadmap.config import RunConfig
from roadmap.strict_yaml import config_error

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that a worker has ready: PyTorch's default
IN_USE = 2  # batches that the training loop holds
POLL_S = 5.0
WARN_S, TIMEOUT_S = 60.0, 600.0
# how PyTorch's RuntimeError begins; another one, should it ever change, ends the run
TIMED_OUT = "DataLoader timed out"

Waiting = Callable[[float], None]


class NoBatch(OSError):
    """No batch has come for minutes; the message names what may be in the way."""


def check_workers(config: RunConfig, batch_bytes: int) -> None:
    """ConfigError where batches of `batch_bytes` cannot come from the configuration's data-loading workers.

    A worker whose batch does not fit into shared memory loses it without a word, and so does one whose socket
    cannot be made.
    """
    workers = config.system.workers
    if not workers:
        return
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        what = f"is where data-loading workers make their sockets, and they cannot: {error.strerror or error}"
        raise config_error(
            f"TMPDIR {gettempdir()}", f"{what}; set TMPDIR=/tmp, or --set system.workers=0"
        ) from error
    if not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, _needed(workers, batch_bytes)
    if needed > free:
        fitting = max(0, (free // batch_bytes - IN_USE) // PREFETCH)
        what = (
            f"has {_mib(free)} free, and {workers} data-loading workers need {_mib(needed)} for batches of"
            f" {_mib(batch_bytes)}"
        )
        ways = f"--set system.workers={fitting} fits; a container gets more with --shm-size"
        raise config_error(str(SHARED_MEMORY), f"{what}; {ways}")


def _needed(workers: int, batch_bytes: int) -> int:
    return (PREFETCH * workers + IN_USE) * batch_bytes


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def arriving(loader: DataLoader[Any], restart: Callable[[], None], waiting: Waiting) -> Iterator[Any]:
    """The loader's batches.

    While none comes, `waiting` is called every POLL_S with the seconds so far, and may raise.

    `restart` has the loader begin with fresh workers. NoBatch if none comes for TIMEOUT_S.
    """
    try:
        batches = iter(loader)
    except (
        RuntimeError
    ) as error:  # workers that another epoch has left, and that do not answer, such as stopped ones
        if not str(error).startswith(TIMED_OUT):
            raise
        restart()
        batches = iter(loader)
    asked, warned = time.monotonic(), False
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith(TIMED_OUT):
                raise
            seconds = time.monotonic() - asked
            waiting(seconds)
            if seconds > TIMEOUT_S:
                raise NoBatch(f"no batch has come for {seconds:.0f} s {_from(loader)}") from error
            if seconds > WARN_S and not warned:
                logger.warning("no batch has come for %.0f s %s", seconds, _from(loader))
                warned = True
        else:
            yield batch
            asked, warned = time.monotonic(), False


def _from(loader: DataLoader[Any]) -> str:
    """Who was asked for a batch, and what they may lack."""
    words = f"from {loader.num_workers} data-loading workers"
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        words += f"; {SHARED_MEMORY} has {_mib(usage.free)} of {_mib(usage.total)} free"
    return f"{words}; if the storage answers, try --set system.workers=0"
