"""A run from its configuration to its result: trains one step, resumes where it was, and can be killed at any moment."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from blocks.cost import complexity
from roadmap.checkpoint import Checkpoints
from roadmap.data import Loader
from roadmap.engine import Engine, Mean, Scores
from roadmap.files import JsonLines, write_json
from roadmap.lease import Lease, now
from roadmap.progress import Watch
from roadmap.provenance import cpu, provenance
from roadmap.recipe import RunConfig
from roadmap.records import FORMAT, DamagedResult, Result, RunDir, check_config, read_result
from roadmap.stopping import Stopped, StopSignals
from roadmap.strict_yaml import ConfigError, Problem, relative

logger = logging.getLogger(__name__)


class Diverged(Exception):
    """No error but a result: the loss is not finite any more."""


def train(config: RunConfig, run_dir: Path, *, stop: StopSignals | None = None, watch: Watch | None = None) -> Result:
    """Trains `config` in `run_dir` and returns its result, or the one that is there already.

    Picks up from the last whole checkpoint. Stopped if `stop` asks for it, LeaseHeld if somebody else is at work there,
    ConfigError if the directory or the data does not fit the configuration.
    """
    run = RunDir(run_dir)
    check_config(run, config)
    result = _finished(run)
    if result is not None:
        return result
    with Lease(run.path) as lease:
        result = _finished(run)  # somebody may have finished it since
        if result is None:
            result = _train(config, run, lease, stop or StopSignals(), watch or Watch())
        lease.outcome = result.status
        return result


def _train(config: RunConfig, run: RunDir, lease: Lease, stop: StopSignals, watch: Watch) -> Result:
    with Training(config, run, lease, stop, watch) as training:
        try:
            result = training.run()
        except Stopped:
            lease.outcome = "stopped"
            raise
        lease.ensure()
        write_json(run.result, result.model_dump(mode="json"))
        return result


def _finished(run: RunDir) -> Result | None:
    try:
        return read_result(run)
    except DamagedResult as error:
        logger.warning("%s; the run goes on from its last checkpoint", error)
        return None


def evaluate(config: RunConfig, run_dir: Path) -> tuple[int, Scores, Scores | None]:
    """The run's last checkpoint on the validation images: epochs trained, scores, and those of its moving average if it has one.

    ConfigError if there is no checkpoint.
    """
    device = select_device(config)
    engine, loader = Engine(config, device, 1), Loader(config, "val", device)
    for state in Checkpoints(RunDir(run_dir).checkpoints).load(device):
        engine.restore(state["engine"])
        return state["epoch"], engine.evaluate(loader), engine.evaluate_ema(loader)
    raise ConfigError([Problem(relative(run_dir), "has no checkpoint to evaluate; train it first")])


def select_device(config: RunConfig) -> torch.device:
    """The device that the configuration names; `auto` is CUDA where there is one. Sets PyTorch's threads, too."""
    if config.system.threads is not None:
        torch.set_num_threads(config.system.threads)
    name = config.system.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError([Problem("system.device", f"'{name}' is not to be had on this machine; 'auto' takes what there is")])
    return torch.device(name)


class Training:
    """One attempt at a run."""

    def __init__(self, config: RunConfig, run: RunDir, lease: Lease, stop: StopSignals, watch: Watch) -> None:
        self.config, self.run_dir, self.lease, self.stop, self.watch = config, run, lease, stop, watch
        self.device = select_device(config)
        self.loader, self.val_loader = Loader(config, "train", self.device), Loader(config, "val", self.device)
        self.engine = Engine(config, self.device, len(self.loader))
        self.checkpoints = Checkpoints(run.checkpoints)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.window, self.whole = Mean(self.device), Mean(self.device)
        self.epoch = 0
        self.seconds = 0.0
        self.last: dict[str, float | None] = {}  # the figures of the last evaluation
        self.saved_at = time.monotonic()
        self.hardware = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu()
        self.provenance = provenance(self.hardware)

    def __enter__(self) -> Self:
        self.log = JsonLines(self.run_dir.metrics)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.log.close()

    def run(self) -> Result:
        """All epochs that are left."""
        write_json(self.run_dir.provenance, self.provenance)
        self._restore()
        total = self.config.recipe.epochs * len(self.loader)
        self.watch.begin(self.engine.iteration, total)
        try:
            while self.epoch < self.config.recipe.epochs:
                self._train_epoch()
                self._finish_epoch()
        except Diverged:
            return self._result("diverged")
        return self._result("done")

    def _train_epoch(self) -> None:
        system = self.config.system
        started = time.perf_counter()
        for images, labels in self.loader.epoch(self.epoch, self.engine.iteration - self.epoch * len(self.loader)):
            loss = self.engine.step(images, labels)
            self.window.add(loss)
            self.whole.add(loss)
            self.watch.advance()
            if self.engine.iteration % system.log_every == 0:
                started = self._clock(started)
                self._log("train", self.window.take())
            if self.stop.signal is not None:
                started = self._clock(started)
                self._save()
                raise Stopped(self.stop.signal.name)
            if time.monotonic() - self.saved_at > 60 * system.checkpoint_minutes:
                self._clock(started)
                self._save()
                started = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the evaluation would wait for what training has queued
        self._clock(started)

    def _clock(self, started: float) -> float:
        """Adds the time since `started` to the time spent in training; returns the present."""
        present = time.perf_counter()
        self.seconds += present - started
        return present

    def _finish_epoch(self) -> None:
        scores = self.engine.evaluate(self.val_loader)
        ema = self.engine.evaluate_ema(self.val_loader)
        figures = {"val_loss": scores.loss, "top1": scores.top1, "top5": scores.top5, "ema_top1": ema.top1 if ema else None}
        train_loss = self.whole.take()
        self._log("epoch", train_loss, **figures)
        self.last = {"train_loss": train_loss, **figures}
        self.epoch += 1
        self._save()

    def _log(self, kind: str, train_loss: float, **figures: float | None) -> None:
        """Adds a line to the metrics; Diverged if a loss is not finite, which JSON could not hold either."""
        self.lease.ensure()
        figures = {"train_loss": train_loss, **figures}
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
        record = {"kind": kind, "epoch": self.epoch + 1, "iteration": self.engine.iteration, "lr": self.engine.lr(), **finite}
        record |= {"images_per_s": round(self._speed(), 1), "seconds": round(self.seconds, 3)}
        self.log.append(record)
        if finite != figures:
            raise Diverged(f"epoch {self.epoch + 1}")
        self.watch.record(record)

    def _speed(self) -> float:
        return self.engine.iteration * self.config.recipe.global_batch / self.seconds if self.seconds else 0.0

    def _save(self) -> None:
        self.lease.ensure()
        state = {
            "engine": self.engine.state(),
            "epoch": self.epoch,
            "window": self.window.state(),
            "whole": self.whole.state(),
            "seconds": self.seconds,
            "last": self.last,
            "metrics_offset": self.log.offset,
        }
        self.checkpoints.save(self.engine.iteration, state)
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        """Goes on from the newest whole checkpoint whose metrics are all there, or starts anew."""
        length = self.log.offset
        for state in self.checkpoints.load(self.device):
            if state["metrics_offset"] > length:
                logger.warning("%s is shorter than its checkpoint says; an older one is taken", relative(self.run_dir.metrics))
                continue
            self.engine.restore(state["engine"])
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.window.restore(state["window"])
            self.whole.restore(state["whole"])
            self.last = state["last"]
            self.log.cut(state["metrics_offset"])
            break
        else:
            self.log.cut(0)
        self.checkpoints.forget_after(self.engine.iteration)

    def _result(self, status: str) -> Result:
        config, cost = self.config, complexity(self.config.model, self.config.data.image_size)
        last = self.last if status == "done" else {}
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None
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
                "dataset": config.data.dataset,
                "image_size": config.data.image_size,
                **asdict(cost),
                "images_per_s": self._speed(),
                "train_seconds": self.seconds,
                "peak_memory_mb": peak,
                "hardware": self.hardware,
                "versions": self.provenance["versions"],
                "commit": self.provenance["commit"],
                "attempts": self.lease.record["number"],
                "finished": now(),
            }
        )
