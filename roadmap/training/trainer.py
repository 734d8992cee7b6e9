"""Training epoch after epoch, from the last checkpoint until the run is done, diverged or stopped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from torch.utils.data import Dataset

from roadmap.batches import plan_batches
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.datasets import list_images
from roadmap.data.loader import Loader
from roadmap.data.locate import kind_of
from roadmap.data.staging import stage
from roadmap.errors import config_error, relative
from roadmap.files import JsonLines, write_json
from roadmap.lease import Lease, now
from roadmap.networks import cost_of
from roadmap.provenance import provenance
from roadmap.records import FORMAT, WAITING, Result, RunDir
from roadmap.signals import ENDS, Stopped, StopSignals
from roadmap.terminal import count
from roadmap.training.callbacks import Callback
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.clock import Clock, all_timed
from roadmap.training.device import (
    float32_precision,
    hardware,
    oom_hint,
    oom_suggestions,
    peak_memory_mb,
    select_device,
    set_up,
    synchronize,
)
from roadmap.training.distributed import Distributed, StopConsensus
from roadmap.training.engine import Engine
from roadmap.training.metrics import Mean

logger = logging.getLogger(__name__)
# How long a stop waits for a batch that is late: less than Slurm's 30 s from SIGTERM to SIGKILL, or, where a
# time limit was announced, long enough for a slow start: a job without an iteration is requeued for ever.
STOP_WAIT_S, NOTICE_WAIT_S = 10.0, 60.0
WAIT_S = 1.0  # the least waiting for data that a warning reports
IDENTITY = {  # what the positions in a checkpoint refer to, by its key there
    "images": "training images:",
    "iterations_per_epoch": "iterations an epoch:",
    "digest": "digest of the training images' names and labels:",
    "readers": "processes x workers x images at a time that share the stream:",
    "val_images": "validation images:",
    "val_digest": "digest of the validation images' names and labels:",
}
LAST = ("top1", "top5", "val_loss", "train_loss", "ema_top1", "val_images")  # of the last epoch, in a result
Data = tuple[Dataset[Any], Dataset[Any]]
T = TypeVar("T")


class Diverged(Exception):
    """A result, not an error: the loss is not finite any more."""


class Trainer:
    """One attempt at a run, in one of its processes; rank 0 alone writes.

    As a context manager it has the metrics open, and ends the data-loading workers at the end.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        lease: Lease,
        stop: StopSignals,
        callback: Callback,
        world: Distributed,
        data: Data | None,
    ) -> None:
        self.config = config
        self.run_dir = run
        self.lease = lease
        self.stop = stop
        self.world = world
        self.callback = callback if world.first else Callback()
        world.check_gpus(config.system.device)
        self.device = select_device(config, world.launch.local_rank)
        set_up(config, self.device)
        self.plan = plan_batches(config, world.size)
        self._open_data(data)
        with self._interruptible():
            self.engine = Engine(config, self.device, len(self.loader), world, self.plan)
            compiled = self.engine.check_compiled()
        self.checkpoints = Checkpoints(run.checkpoints)
        self.consensus = StopConsensus(world)
        self.log: JsonLines | None = None  # of rank 0
        self.interval_loss = Mean(self.device)
        self.epoch_loss = Mean(self.device)
        self.epoch = 0
        self.clock = Clock(self.device)
        self.warned = False  # that training waits for data
        self.last: dict[str, float | None] = {}  # the metrics of the last epoch
        self.saved_at = time.monotonic()
        self.saved_iteration = -1
        self.hardware = hardware(self.device, world.size)
        self.provenance = world.from_rank0(lambda: provenance(self.hardware)) | {
            "float32": float32_precision(),
            "compile": compiled,
            "data_loading_workers": self.loader.workers,  # of each process
        }

    def _open_data(self, data: Data | None) -> None:
        """Makes both loaders, in all processes or in none.

        Rank 0 lists the images of a folder for all. Each attempt lists them again: an earlier listing would
        hide that the data has changed.
        """
        staged = self._in_all(lambda: stage(self.config))
        train: Any = None
        val: Any = None
        if data is not None:
            train, val = data
        elif kind_of(staged.data) == "folder":

            def listings() -> tuple[Any, Any]:
                with self.stop.at_once():
                    return list_images(staged, "train"), list_images(staged, "val")

            train, val = self.world.from_rank0(listings)
        options: dict[str, Any] = {"rank": self.world.rank, "plan": self.plan, "waiting": self._waiting}
        self.loader = self._in_all(lambda: Loader(staged, "train", self.device, source=train, **options))
        self.val_loader = self._in_all(
            lambda: Loader(staged, "val", self.device, source=val, beside=self.loader, **options)
        )
        self.loaders = (self.loader, self.val_loader)
        # the same in every process, whose evaluation may have one batch more or less
        self.eval_batches = max(self.world.gather(len(self.val_loader)))

    def _in_all(self, make: Callable[[], T]) -> T:
        """What `make` returns here once it has in all processes; an error of one is raised in all.

        A signal ends it, also where other processes wait: they learn of it when they meet again.
        """
        try:
            with self.stop.at_once():
                made = make()
        except Exception as error:
            self.world.raise_any(error)
            raise
        self.world.raise_any(None)
        return made

    def _interruptible(self) -> AbstractContextManager[None]:
        """Has signals end a process that is alone at once; others would wait for it."""
        return self.stop.at_once() if self.world.size == 1 else nullcontext()

    def _waiting(self, seconds: float) -> None:
        """Stopped where a stop was asked for, and no batch has come for `seconds`."""
        patience = STOP_WAIT_S if self.stop.signal in ENDS else NOTICE_WAIT_S
        if self.stop.signal is not None and seconds > patience:
            raise self._stopped()

    def __enter__(self) -> Self:
        if self.world.first:
            self.log = JsonLines(self.run_dir.metrics)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loader in self.loaders:
            loader.close()
        if self.log is not None:
            self.log.close()

    def fit(self) -> Result:
        """Trains the epochs that are left; returns the run's result."""
        self.world.from_rank0(lambda: write_json(self.run_dir.provenance, self.provenance))
        with self._interruptible():
            self._restore()
        epochs = self.config.recipe.epochs
        self._check_disk(epochs - self.epoch)
        self.callback.on_train_start(self.engine.iteration, epochs * len(self.loader))
        status = "done"
        try:
            while self.epoch < epochs:
                self._train_epoch()
                self._finish_epoch()
        except Diverged:
            status = "diverged"
        self._share_corrupt()
        speed = self._speed()
        return self.world.from_rank0(lambda: self._result(status, speed))

    def _train_epoch(self) -> None:
        system, micro = self.config.system, self.plan.micro
        suggestions = oom_suggestions(self.config, micro)
        done = self.engine.iteration - self.epoch * len(self.loader)
        batches = self.clock.batches(self.loader.epoch(self.epoch, done))
        self.clock.start()
        for _ in range(done, len(self.loader)):
            try:
                with oom_hint(f"{micro} images", suggestions):
                    loss = self.engine.train_step(islice(batches, self.plan.accumulation))
            except Stopped:  # while it waited for a batch
                self.clock.stop()
                self._save_alone()
                raise
            self.interval_loss.add(loss)
            self.epoch_loss.add(loss)
            self.callback.on_step()
            self.clock.step()
            if self.engine.iteration % system.log_every == 0:
                self._log("train", self.interval_loss.take())
            due = time.monotonic() - self.saved_at > 60 * system.checkpoint_minutes
            stop, save = self.consensus.poll(self.stop.signal is not None, due and self.world.first)
            # unless it was saved since rank 0 raised the flag
            if stop or (save and self.saved_iteration < self.engine.iteration - self.consensus.lag):
                self.clock.stop()
                self._save()
                self.clock.start()
            if stop:
                raise self._stopped()
        synchronize(self.device)  # or the evaluation would wait for what training has queued
        self.clock.stop()

    def _finish_epoch(self) -> None:
        """Evaluates, logs and saves."""
        batch = self.config.system.eval_batch
        with oom_hint(f"{batch} images to evaluate", [f"--set system.eval_batch={max(1, batch // 2)}"]):
            metrics, ema = self.engine.evaluate(self._validation())
        self._share_corrupt()
        record = {
            "val_loss": metrics.loss,
            "top1": metrics.top1,
            "top5": metrics.top5,
            "ema_top1": ema.top1 if ema else None,
        }
        train_loss = self.epoch_loss.take()
        self._log("epoch", train_loss, **record)
        self._warn_of_waits()
        self.last = {"train_loss": train_loss, **record, "val_images": metrics.images}
        self.epoch += 1
        self._save()

    def _validation(self) -> Iterator[Batch]:
        """The batches of an evaluation; a stop meanwhile saves, and the resumed run evaluates again."""
        left = self.eval_batches
        try:
            for batch in self.val_loader.epoch():
                yield batch
                if left:
                    left -= 1
                    self._poll_stop()
        except Stopped:
            self._save_alone()
            raise
        for _ in range(left):
            self._poll_stop()

    def _poll_stop(self) -> None:
        stop, _ = self.consensus.poll(self.stop.signal is not None, False)
        if stop:
            self._save()
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(self.stop.signal.name if self.stop.signal else "another process of the run")

    def _share_corrupt(self) -> None:
        """Has every process know the images that any could not read; CorruptImages in all if too many."""
        for loader in self.loaders:
            known = self.world.gather(loader.corrupt.state())
            loader.corrupt.restore(sorted(set[int]().union(*known)))
        self.loader.corrupt.check()

    def _log(self, kind: str, train_loss: float, **metrics: float | None) -> None:
        """Adds a line to the metrics; Diverged, in all processes alike, if a loss is not finite, which JSON
        could not hold either.
        """
        metrics = {"train_loss": train_loss, **metrics}
        finite = {
            name: value if value is None or math.isfinite(value) else None for name, value in metrics.items()
        }
        record = {
            "kind": kind,
            "epoch": self.epoch + 1,
            "iteration": self.engine.iteration,
            "lr": self.engine.lr(),
            **finite,
            **self._speed(),
        }
        self.world.from_rank0(lambda: self._metrics().append(record))
        if finite != metrics:
            raise Diverged(f"epoch {self.epoch + 1}")
        self.callback.on_log(record)

    def _metrics(self) -> JsonLines:
        """The metrics to write to, in rank 0, as long as the run is this attempt's."""
        assert self.log is not None
        self.lease.ensure()
        return self.log

    def _speed(self) -> dict[str, float]:
        """The seconds that training took so far, and those of them that it waited for data, both with the
        warm-up at the pace of what followed; and its speed without the waits. All processes ask for it.
        """
        self.clock.lap()
        measured = self.clock.measured
        # the others wait for the process whose data comes last
        waited = max(self.world.gather(measured.data_seconds))
        trained = measured.seconds - waited
        images = measured.iterations * self.config.recipe.global_batch
        share = self.engine.iteration / measured.iterations if measured.iterations else 0.0
        return {
            "images_per_s": round(images / trained, 1) if trained > 0 else 0.0,
            "seconds": round(share * measured.seconds, 3),
            "data_seconds": round(share * waited, 3),
        }

    def _warn_of_waits(self) -> None:
        """Warns once if the device waits for data too long; all processes call it."""
        speed = self._speed()
        least = max(WAIT_S, WAITING * speed["seconds"])
        if self.warned or not self.clock.timed.iterations or speed["data_seconds"] < least:
            return
        self.warned = True
        if self.world.first:
            logger.warning(
                "training waits for data %.0f %% of the time; more --set system.workers,"
                " --set recipe.pipeline=tensor (another recipe), or shards of smaller images are faster",
                100 * speed["data_seconds"] / speed["seconds"],
            )

    def _check_disk(self, epochs: int) -> None:
        """Warns if the checkpoints of that many epochs do not fit on the disk."""
        shortage = (
            self.checkpoints.shortage(self.engine.checkpoint_bytes(), epochs) if self.world.first else None
        )
        if shortage:
            logger.warning(
                "%s; without more room, training ends at a checkpoint, and the one before it is kept",
                shortage,
            )

    def _save(self) -> None:
        self.world.from_rank0(self._write_checkpoint)
        self.saved_at, self.saved_iteration = time.monotonic(), self.engine.iteration

    def _save_alone(self) -> None:
        """Saves what has not been saved where no other process must take part, unless a part of an iteration
        is trained already.
        """
        if (
            self.world.size == 1
            and self.engine.between_iterations
            and self.saved_iteration < self.engine.iteration
        ):
            self._save()

    def _write_checkpoint(self) -> None:
        state = {
            "engine": self.engine.state(),
            "epoch": self.epoch,
            "window": self.interval_loss.state(),
            "whole": self.epoch_loss.state(),
            "clock": self.clock.state(),
            "last": self.last,
            "metrics_offset": self._metrics().offset,
            "corrupt": [loader.corrupt.state() for loader in self.loaders],
            "data": self._identity(),
        }
        self.checkpoints.save(self.engine.iteration, state)
        self.lease.saved(self.engine.iteration)

    def _restore(self) -> None:
        """Resumes from the newest intact checkpoint whose metrics are all there, or starts training."""
        name = self.world.from_rank0(self._choose_checkpoint)
        if name is None:
            self.engine.start(self.loader.class_names)
            return
        state = self.checkpoints.read(name)
        self.engine.restore(state["engine"])
        self.epoch = state["epoch"]
        # checkpoints of earlier versions have the seconds of all iterations alone
        self.clock.restore(state.get("clock") or all_timed(self.engine.iteration, state["seconds"]))
        self.interval_loss.restore(state["window"])
        self.epoch_loss.restore(state["whole"])
        self.last = state["last"]
        for loader, known in zip(self.loaders, state["corrupt"], strict=True):
            loader.corrupt.restore(known)

    def _choose_checkpoint(self) -> str | None:
        """The name of the checkpoint to resume from; what was logged or saved after it is removed."""
        assert self.log is not None
        length, iteration = self.log.offset, 0
        name: str | None = None
        for state in self.checkpoints.load():
            self._check_data(state)
            if state["metrics_offset"] <= length:
                name, offset, iteration = state["name"], state["metrics_offset"], state["engine"]["iteration"]
                break
            logger.warning(
                "%s is shorter than its checkpoint records; an older one is taken",
                relative(self.run_dir.metrics),
            )
        else:
            offset = 0
        self.log.cut(offset)
        self.checkpoints.forget_after(iteration)
        return name

    def _identity(self) -> dict[str, Any]:
        """What identifies the data that the positions in a checkpoint refer to."""
        train, val = (loader.identity for loader in self.loaders)
        return (
            train
            | {"iterations_per_epoch": len(self.loader)}
            | {f"val_{key}": val[key] for key in ("images", "digest")}
        )

    def _check_data(self, state: dict[str, Any]) -> None:
        """ConfigError where a checkpoint's positions would be others in the data as it is now; nothing has
        been changed by then.
        """
        now, iteration, epoch = self._identity(), state["engine"]["iteration"], state["epoch"]
        then = now | state.get("data", {})  # checkpoints of earlier versions lack it
        differ = [
            f"{name} {then[key]} then, {now[key]} now"
            for key, name in IDENTITY.items()
            if then[key] != now[key]
        ]
        if not differ and not 0 <= iteration - epoch * len(self.loader) <= len(self.loader):
            differ = [f"an epoch has {count(len(self.loader), 'iteration')} now"]
        if differ:
            where = self.config.system.data_dir or f"dataset '{self.config.data.dataset}'"
            position = (
                f"has changed since iteration {iteration}, in epoch {epoch + 1}, of"
                f" {relative(self.run_dir.path)}"
            )
            fix = "resume with the data as it was, or move the run's folder away to start again"
            raise config_error(where, f"{position} ({'; '.join(differ)}); {fix}")

    def _result(self, status: str, speed: dict[str, float]) -> Result:
        config, cost = self.config, cost_of(self.config, self.engine.model)
        last = self.last if status == "done" else {}
        return Result.model_validate(
            {
                "format": FORMAT,
                "status": status,
                **config.model_dump(include={"roadmap", "step", "profile", "seed"}),
                "hash": config.hash,
                **{key: last.get(key) for key in LAST},
                "epochs": self.epoch,
                "iterations": self.engine.iteration,
                "global_batch": config.recipe.global_batch,
                "processes": self.world.size,
                "micro_batch": self.plan.micro,
                "accumulation": self.plan.accumulation,
                "corrupt_images": sum(loader.corrupt.count for loader in self.loaders),
                "dataset": config.data.dataset,
                "image_size": config.data.image_size,
                **asdict(cost),
                "images_per_s": speed["images_per_s"],
                "train_seconds": speed["seconds"],
                "data_seconds": speed["data_seconds"],
                "peak_memory_mb": peak_memory_mb(self.device),
                "hardware": self.hardware,
                "versions": self.provenance["versions"],
                "commit": self.provenance["commit"],
                "attempts": self.lease.record["number"],
                "finished": now(),
            }
        )
