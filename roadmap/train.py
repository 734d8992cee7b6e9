"""A run from its configuration to its result, or the result that is there already."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from roadmap.config import RunConfig
from roadmap.files import write_atomic, write_json
from roadmap.lease import Lease, LeaseLost
from roadmap.records import DamagedResult, Result, RunDir, check_config, read_result
from roadmap.signals import Stopped, StopSignals
from roadmap.training.callbacks import Callback
from roadmap.training.device import OutOfMemory
from roadmap.training.distributed import Distributed
from roadmap.training.trainer import Data, Trainer

logger = logging.getLogger(__name__)
FIRST_ERROR_WAIT_S = 2.0  # in which the process that failed first says why


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    data: Data | None = None,
    stop: StopSignals | None = None,
    watch: Callback | None = None,
    world: Distributed | None = None,
) -> Result:
    """Trains `config` in `run_dir` and returns its result, or the one that is there already.

    Picks up from the last whole checkpoint. `data` are the training and validation set of a configuration
    whose dataset is `custom/NAME`: map-style Datasets of images and labels. All processes of `world` call
    this alike. Stopped if `stop` asks for it, LeaseHeld if somebody else is at work there, OutOfMemory with
    what to try, ConfigError if the directory or the data does not fit the configuration.
    """
    world, run = world or Distributed(), RunDir(run_dir)
    with ExitStack() as stack:
        lease = Lease(run.path)

        def claim() -> Result | None:
            check_config(run, config)
            if (result := _finished(run)) is None:
                stack.enter_context(lease)
                if (result := _finished(run)) is not None:  # somebody has just finished it
                    lease.outcome = result.status
            return result

        try:
            found = world.from_rank0(claim)
            return found or _attempt(
                Trainer(config, run, lease, stop or StopSignals(), watch or Callback(), world, data)
            )
        except Stopped:
            lease.outcome = "stopped"
            raise


def _blame(attempt: Trainer, error: Exception) -> None:
    """Leaves word of what ended this process; in the first one, RuntimeError with the word of another that
    was the cause.

    When one process dies, the others learn no more than that a connection was closed.
    """
    words = attempt.run_dir.path / "attempts" / "last-words"
    if not attempt.world.first:
        with suppress(OSError):
            write_atomic(words, f"process {attempt.world.rank}: {type(error).__name__}: {error}\n")
        return
    if not isinstance(error, RuntimeError) or isinstance(error, LeaseLost | OutOfMemory):
        return
    time.sleep(FIRST_ERROR_WAIT_S)
    if words.is_file() and words.stat().st_mtime > attempt.began:
        raise RuntimeError(words.read_text(encoding="utf-8").strip()) from error


def _finished(run: RunDir) -> Result | None:
    try:
        return read_result(run)
    except DamagedResult as error:
        logger.warning("%s; the run goes on from its last checkpoint", error)
        return None


def _attempt(attempt: Trainer) -> Result:
    lease, run = attempt.lease, attempt.run_dir
    try:
        with attempt.opened():
            result = attempt.run()
    except Stopped:
        raise
    except Exception as error:
        if attempt.world.size > 1:
            _blame(attempt, error)
        raise

    def conclude() -> None:
        lease.ensure()
        write_json(run.result, result.model_dump(mode="json"))
        lease.outcome = result.status

    attempt.world.from_rank0(conclude)
    return result
