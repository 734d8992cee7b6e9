"""An attempt at a run: epoch after epoch from the last checkpoint on, until it is done, stopped or killed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from blocks.cost import complexity
from roadmap.batches import plan_batches
from roadmap.config import RunConfig
from roadmap.data.datasets import list_images
from roadmap.data.loader import Loader
from roadmap.data.preflight import kind_of
from roadmap.data.staging import stage
from roadmap.errors import config_error, relative
from roadmap.files import JsonLines, write_json
from roadmap.lease import Lease, now
from roadmap.provenance import provenance
from roadmap.records import FORMAT, Result, RunDir
from roadmap.signals import ENDS, Stopped, StopSignals
from roadmap.training.callbacks import Callback
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import hardware, oom_hint, oom_suggestions, peak_memory_mb, select_device, set_up
from roadmap.training.distributed import Distributed, StopConsensus
from roadmap.training.engine import Engine
from roadmap.training.metrics import Mean

logger = logging.getLogger(__name__)
# How long to wait for a batch that is late when the run is to stop: less than Slurm's 30 s from SIGTERM to
# SIGKILL; or, where a time limit was announced, long enough for a start that is slow, for a job that made no
# iteration would be queued for ever.
STOP_WAIT_S, NOTICE_WAIT_S = 10.0, 60.0
MEASURES = {
    "images": "training images:",
    "iterations_per_epoch": "iterations an epoch:",
    "digest": "digest of the training images' names and labels:",
    "readers": "processes x workers x images at a time that share the stream:",
    "val_images": "validation images:",
    "val_digest": "digest of the validation images' names and labels:",
}
Data = tuple[Dataset[Any], Dataset[Any]]
T = TypeVar("T")


class Diverged(Exception):
    """No error but a result: the loss is not finite any more."""


class Trainer:
    """One attempt at a run, seen from one of its processes; the first one alone writes."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        lease: Lease,
        stop: StopSignals,
        watch: Callback,
        world: Distributed,
        data: Data | None,
    ) -> None:
        self.config, self.run_dir, self.lease, self.stop, self.world = config, run, lease, stop, world
        self.watch = watch if world.first else Callback()
        self.device = select_device(config, world.launch.local_rank)
        set_up(config, self.device)
        self.plan = plan_batches(config, world.size)
        self._open_data(data)
        with self._interruptible():
            self.engine = Engine(config, self.device, len(self.loader), world)
            self.compiled = self.engine.check_compiled()
        self.checkpoints, self.ballot = Checkpoints(run.checkpoints), StopConsensus(world)
        self.window, self.whole = Mean(self.device), Mean(self.device)
        self.epoch, self.began = 0, time.time()
        self.seconds = 0.0
        self.last: dict[str, float | None] = {}  # the figures of the last evaluation
        self.saved_at, self.saved_iteration = time.monotonic(), -1
        self.hardware = hardware(self.device, world.size)
        self.provenance = world.from_rank0(lambda: provenance(self.hardware)) | {"compile": self.compiled}

    def _open_data(self, data: Data | None) -> None:
        """Both loaders, in all processes or in none.

        The first process lists the images of a folder for all of them.

        Each attempt lists them anew: an earlier one's listing would not show that the data has changed.
        """
        staged = self._in_all(lambda: stage(self.config))
        train: Any = None
        val: Any = None
        if data is not None:
            train, val = data
        elif kind_of(staged.data) == "folder":
            train, val = self.world.from_rank0(
                lambda: self._at_once(lambda: (list_images(staged, "train"), list_images(staged, "val")))
            )
        how: dict[str, Any] = {"rank": self.world.rank, "plan": self.plan, "waiting": self._waiting}
        self.loader = self._in_all(lambda: Loader(staged, "train", self.device, source=train, **how))
        self.val_loader = self._in_all(
            lambda: Loader(staged, "val", self.device, source=val, beside=self.loader, **how)
        )
        self.votes = max(self.world.gather(len(self.val_loader)))

    def _in_all(self, make: Callable[[], T]) -> T:
        """What `make` returns here once it has in all processes; an error of one is raised in all."""
        try:
            made = self._at_once(make)
        except Exception as error:
            self.world.raise_any(error)
            raise
        self.world.raise_any(None)
        return made

    def _at_once(self, make: Callable[[], T]) -> T:
        """What `make` returns, unless a signal ends it, also where other processes wait: they learn of it
        when they meet again.
        """
        with self.stop.at_once():
            return make()

    def _interruptible(self) -> AbstractContextManager[None]:
        """Has signals end a process that is alone at once; others would wait for it."""
        return self.stop.at_once() if self.world.size == 1 else nullcontext()

    def _waiting(self, seconds: float) -> None:
        """Stopped where a stop was asked for, and no batch has come for `seconds`."""
        patience = STOP_WAIT_S if self.stop.signal in ENDS else NOTICE_WAIT_S
        if self.stop.signal is not None and seconds > patience:
            raise self._stopped()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Has the metrics open, in the first process, and ends the loaders' workers at the end."""
        self.log = JsonLines(self.run_dir.metrics) if self.world.first else None
        try:
            yield
        finally:
            for loader in self.loaders:
                loader.close()
            if self.log is not None:
                self.log.close()

    def run(self) -> Result:
        """All epochs that are left."""
        self.world.from_rank0(lambda: write_json(self.run_dir.provenance, self.provenance))
        with self._interruptible():
            self._restore()
        left = self.config.recipe.epochs - self.epoch
        if self.world.first and (shortage := self.checkpoints.shortage(self.engine.checkpoint_bytes(), left)):
            logger.warning(
                "%s; without more room, training ends at a checkpoint, and the one before it is kept",
                shortage,
            )
        total = self.config.recipe.epochs * len(self.loader)
        self.watch.begin(self.engine.iteration, total)
        try:
            while self.epoch < self.config.recipe.epochs:
                self._train_epoch()
                self._finish_epoch()
        except Diverged:
            return self._conclude("diverged")
        return self._conclude("done")

    def _conclude(self, status: str) -> Result:
        self._know_corrupt()
        return self.world.from_rank0(lambda: self._result(status))

    def _know_corrupt(self) -> None:
        """Has every process know what any could not read; CorruptImages in all if that is too much."""
        for loader in self.loaders:
            known = self.world.gather(loader.corrupt_state())
            loader.restore_corrupt(sorted(set[int]().union(*known)))
        self.loader.check_corrupt()

    @property
    def loaders(self) -> tuple[Loader, Loader]:
        """Both of them."""
        return self.loader, self.val_loader

    def _train_epoch(self) -> None:
        every = self.config.system.log_every
        done = self.engine.iteration - self.epoch * len(self.loader)
        batches, started = self.loader.epoch(self.epoch, done), time.perf_counter()
        for _ in range(done, len(self.loader)):
            try:
                loss = self._step(batches)
            except Stopped:  # while it waited for a batch
                self._clock(started)
                self._save_alone()
                raise
            self.window.add(loss)
            self.whole.add(loss)
            self.watch.advance()
            if self.engine.iteration % every == 0:
                started = self._clock(started)
                self._log("train", self.window.take())
            due = time.monotonic() - self.saved_at > 60 * self.config.system.checkpoint_minutes
            stop, save = self.ballot.poll(self.stop.signal is not None, due and self.world.first)
            # not since it was asked for
            if stop or (save and self.saved_iteration < self.engine.iteration - self.ballot.lag):
                self._clock(started)
                self._save()
                started = time.perf_counter()
            if stop:
                raise self._stopped()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the evaluation would wait for what training has queued
        self._clock(started)

    def _stopped(self) -> Stopped:
        return Stopped(self.stop.signal.name if self.stop.signal else "another process of the run")

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        with oom_hint(f"{self.plan.micro} images", oom_suggestions(self.config, self.plan.micro)):
            return self.engine.step(islice(batches, self.plan.accumulation))

    def _clock(self, started: float) -> float:
        """Adds the time since `started` to the time spent in training; returns the present."""
        present = time.perf_counter()
        self.seconds += present - started
        return present

    def _finish_epoch(self) -> None:
        batch = self.config.system.eval_batch
        with oom_hint(f"{batch} images to evaluate", [f"--set system.eval_batch={max(1, batch // 2)}"]):
            scores = self.engine.evaluate(self._validation())
            ema = self.engine.evaluate_ema(self._validation())
        self._know_corrupt()
        figures = {
            "val_loss": scores.loss,
            "top1": scores.top1,
            "top5": scores.top5,
            "ema_top1": ema.top1 if ema else None,
        }
        train_loss = self.whole.take()
        self._log("epoch", train_loss, **figures)
        self.last = {"train_loss": train_loss, **figures}
        self.epoch += 1
        self._save()

    def _validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an evaluation.

        A run that is to stop meanwhile saves, and evaluates anew when it goes on.
        """
        left = self.votes  # the same in every process, whose batches may be one more or less
        try:
            for batch in self.val_loader.epoch():
                yield batch
                if left:
                    left -= 1
                    self._vote_on_stopping()
        except Stopped:
            self._save_alone()
            raise
        for _ in range(left):
            self._vote_on_stopping()

    def _vote_on_stopping(self) -> None:
        stop, _ = self.ballot.poll(self.stop.signal is not None, False)
        if stop:
            self._save()
            raise self._stopped()

    def _log(self, kind: str, train_loss: float, **figures: float | None) -> None:
        """Adds a line to the metrics; Diverged, in all processes alike, if a loss is not finite, which JSON
        could not hold either.
        """
        figures = {"train_loss": train_loss, **figures}
        finite = {
            name: value if value is None or math.isfinite(value) else None for name, value in figures.items()
        }
        record = {
            "kind": kind,
            "epoch": self.epoch + 1,
            "iteration": self.engine.iteration,
            "lr": self.engine.lr(),
            **finite,
        }
        record |= {"images_per_s": round(self._speed(), 1), "seconds": round(self.seconds, 3)}
        self.world.from_rank0(lambda: self._write_record(record))
        if finite != figures:
            raise Diverged(f"epoch {self.epoch + 1}")
        self.watch.record(record)

    def _write_record(self, record: dict[str, Any]) -> None:
        assert self.log is not None
        self.lease.ensure()
        self.log.append(record)

    def _speed(self) -> float:
        return self.engine.iteration * self.config.recipe.global_batch / self.seconds if self.seconds else 0.0

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
        assert self.log is not None
        self.lease.ensure()
        state = {
            "engine": self.engine.state(),
            "epoch": self.epoch,
            "window": self.window.state(),
            "whole": self.whole.state(),
            "seconds": self.seconds,
            "last": self.last,
            "metrics_offset": self.log.offset,
            "corrupt": [loader.corrupt_state() for loader in self.loaders],
            "data": self._data(),
        }
        self.checkpoints.save(self.engine.iteration, state)
        self.lease.saved(self.engine.iteration)

    def _restore(self) -> None:
        """Goes on from the newest whole checkpoint whose metrics are all there, or starts anew."""
        name = self.world.from_rank0(self._choose_checkpoint)
        if name is None:
            self.engine.start(self.loader.class_names)
            return
        state = self.checkpoints.read(name)
        self.engine.restore(state["engine"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.window.restore(state["window"])
        self.whole.restore(state["whole"])
        self.last = state["last"]
        for loader, known in zip(self.loaders, state["corrupt"], strict=True):
            loader.restore_corrupt(known)

    def _choose_checkpoint(self) -> str | None:
        """The name of the checkpoint to go on from; what was logged or saved after it is forgotten."""
        assert self.log is not None
        length, iteration = self.log.offset, 0
        name: str | None = None
        for state in self.checkpoints.load():
            self._check_data(state)
            if state["metrics_offset"] <= length:
                name, offset, iteration = state["name"], state["metrics_offset"], state["engine"]["iteration"]
                break
            logger.warning(
                "%s is shorter than its checkpoint says; an older one is taken",
                relative(self.run_dir.metrics),
            )
        else:
            offset = 0
        self.log.cut(offset)
        self.checkpoints.forget_after(iteration)
        return name

    def _data(self) -> dict[str, Any]:
        """What the positions in a checkpoint are measured in."""
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
        now, iteration, epoch = self._data(), state["engine"]["iteration"], state["epoch"]
        then = now | state.get("data", {})  # checkpoints of earlier versions do not say
        differ = [
            f"{MEASURES[key]} {then[key]} then, {now[key]} now" for key in MEASURES if then[key] != now[key]
        ]
        if not differ and not 0 <= iteration - epoch * len(self.loader) <= len(self.loader):
            differ = [f"an epoch has {len(self.loader)} iterations now"]
        if differ:
            where = self.config.system.data_dir or f"dataset '{self.config.data.dataset}'"
            place = (
                f"has changed since iteration {iteration}, in epoch {epoch + 1}, of"
                f" {relative(self.run_dir.path)}"
            )
            way = "resume with the data as it was, or move the run's folder away to train anew"
            raise config_error(where, f"{place} ({'; '.join(differ)}); {way}")

    def _result(self, status: str) -> Result:
        config, cost = self.config, complexity(self.config.model, self.config.data.image_size)
        last = self.last if status == "done" else {}
        return Result.model_validate(
            {
                "format": FORMAT,
                "status": status,
                **config.model_dump(include={"roadmap", "step", "profile", "seed"}),
                "hash": config.hash,
                **{key: last.get(key) for key in ("top1", "top5", "val_loss", "train_loss", "ema_top1")},
                "epochs": self.epoch,
                "iterations": self.engine.iteration,
                "global_batch": config.recipe.global_batch,
                "processes": self.world.size,
                "micro_batch": self.plan.micro,
                "accumulation": self.plan.accumulation,
                "corrupt_images": sum(loader.corrupt for loader in self.loaders),
                "dataset": config.data.dataset,
                "image_size": config.data.image_size,
                **asdict(cost),
                "images_per_s": self._speed(),
                "train_seconds": self.seconds,
                "peak_memory_mb": peak_memory_mb(self.device),
                "hardware": self.hardware,
                "versions": self.provenance["versions"],
                "commit": self.provenance["commit"],
                "attempts": self.lease.record["number"],
                "finished": now(),
            }
        )
