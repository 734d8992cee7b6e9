"""A run from its configuration to its result, or the result that is there already."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from roadmap.config import RunConfig
from roadmap.files import write_atomic, write_json
from roadmap.lease import Lease, LeaseLost
from roadmap.provenance import runs_per_gpu
from roadmap.records import DamagedResult, Result, RunDir, check_config, read_result
from roadmap.signals import Stopped, StopSignals
from roadmap.training.callbacks import Callback
from roadmap.training.device import OutOfMemory
from roadmap.training.distributed import Distributed
from roadmap.training.trainer import Data, Trainer

logger = logging.getLogger(__name__)
FIRST_ERROR_WAIT_S = 2.0  # for the process that failed first to write its error


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    data: Data | None = None,
    stop: StopSignals | None = None,
    callback: Callback | None = None,
    world: Distributed | None = None,
) -> Result:
    """Trains `config` in `run_dir` and returns its result, or the one that is there already.

    Resumes from the last intact checkpoint. `data` are the training and validation set of a configuration
    whose dataset is `custom/NAME`: map-style Datasets of images and labels. All processes of `world` call
    this alike. Stopped if `stop` asks for it, LeaseHeld if another process trains the run, OutOfMemory with
    what to try, ConfigError if the directory or the data does not fit the configuration.
    """
    world, run = world or Distributed(), RunDir(run_dir)
    lease = Lease(run.path)

    def claim() -> Result | None:
        check_config(run, config)
        if (result := _finished(run)) is None:
            claimed.enter_context(lease)
            if (result := _finished(run)) is not None:  # by another process, just before
                lease.outcome = result.status
        return result

    def conclude() -> None:
        lease.ensure()
        write_json(run.result, result.model_dump(mode="json"))
        lease.outcome = result.status

    with ExitStack() as claimed:
        try:
            if (found := world.from_rank0(claim)) is not None:
                return found
            trainer = Trainer(config, run, lease, stop or StopSignals(), callback or Callback(), world, data)
            with _first_error(run, world), trainer:
                result = trainer.fit()
            result = result.model_copy(update={"runs_per_gpu": runs_per_gpu()})
            world.from_rank0(conclude)
            return result
        except Stopped:
            lease.outcome = "stopped"
            raise


@contextmanager
def _first_error(run: RunDir, world: Distributed) -> Iterator[None]:
    """Has rank 0 fail with the error of the process that failed first, as a RuntimeError; each other process
    writes its own to a file.

    When one process dies, the others learn no more than that a connection was closed.
    """
    began, written = time.time(), run.path / "attempts" / "last-words"
    try:
        yield
    except Exception as error:
        if world.size == 1 or isinstance(error, Stopped):
            raise
        if not world.first:
            with suppress(OSError):
                write_atomic(written, f"process {world.rank}: {type(error).__name__}: {error}\n")
        elif isinstance(error, RuntimeError) and not isinstance(error, LeaseLost | OutOfMemory):
            time.sleep(FIRST_ERROR_WAIT_S)
            if written.is_file() and written.stat().st_mtime > began:
                raise RuntimeError(written.read_text(encoding="utf-8").strip()) from error
        raise


def _finished(run: RunDir) -> Result | None:
    try:
        return read_result(run)
    except DamagedResult as error:
        logger.warning("%s; the run resumes from its last checkpoint", error)
        return None
