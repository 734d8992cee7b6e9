"""Where the time of an iteration goes: a few iterations under torch.profiler."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from statistics import fmean

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from roadmap.disk import free_space, megabytes
from roadmap.errors import config_error, relative
from roadmap.files import temporary_path, write_atomic
from roadmap.terminal import count
from roadmap.training.callbacks import Callback

logger = logging.getLogger(__name__)

WARM_UP = 5
ROWS = 30


class Profiler(Callback):
    """Profiles `steps` iterations after WARM_UP others, which a run makes on CUDA or on the CPU alone.

    `run_dir`/profile gets a Chrome trace, trace-<first iteration>.json, and operators.txt with the time of
    each iteration and the operators by self time. A run with fewer iterations left is profiled to its end.
    ConfigError for `steps` below 1.
    """

    def __init__(self, run_dir: Path, steps: int, *, cuda: bool = False) -> None:
        if steps < 1:
            raise config_error("--profile-steps", f"must be at least 1, not {steps}")
        self.folder = run_dir / "profile"
        self.steps = steps
        self.cuda = cuda
        self._profile: profile | None = None
        self._first = 1
        self._warm_up = WARM_UP
        self._active = steps
        self._times: list[float] = []  # seconds of each iteration, warm-up and all
        self._since = 0.0

    def on_train_start(self, done: int, total: int) -> None:
        """Starts to warm up; the last iteration that is left is profiled in any case."""
        left = total - done
        if left < 1:
            logger.warning("nothing is left of the run to profile")
            return
        self._warm_up = min(WARM_UP, left - 1)
        self._active = min(self.steps, left - self._warm_up)
        self._first, self._times = done + self._warm_up + 1, []
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        plan = schedule(wait=0, warmup=self._warm_up, active=self._active, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()
        self._since = time.perf_counter()

    def on_step(self) -> None:
        if self._profile is None:
            return
        if self.cuda and len(self._times) + 1 in (self._warm_up, self._warm_up + self._active):
            torch.cuda.synchronize()  # each side of the window times what it has queued
        self._times.append(time.perf_counter() - self._since)
        self._profile.step()
        if len(self._times) == self._warm_up + self._active:
            self.on_end()
        self._since = time.perf_counter()

    def on_end(self) -> None:
        """Ends the profile, complete or not, and writes it."""
        if self._profile is None:
            return
        ended, self._profile = self._profile, None
        ended.stop()
        made = max(0, len(self._times) - self._warm_up)
        if made < self.steps:
            logger.warning(
                "the run ended after %d of the %d iterations that were to be profiled", made, self.steps
            )

    def _write(self, ready: profile) -> None:
        times = self._times[self._warm_up :]
        if not times:
            return
        self.folder.mkdir(exist_ok=True)
        trace = self.folder / f"trace-{self._first}.json"
        temporary = temporary_path(trace)
        try:
            ready.export_chrome_trace(str(temporary))
            if not temporary.exists():  # PyTorch raises nothing where the disk is full
                raise OSError(f"{relative(trace)} cannot be written ({megabytes(free_space(trace))} free)")
            temporary.replace(trace)
        finally:
            temporary.unlink(missing_ok=True)
        table = ready.key_averages().table(
            sort_by=f"self_{'cuda' if self.cuda else 'cpu'}_time_total", row_limit=ROWS
        )
        write_atomic(self.folder / "operators.txt", self._summary(times) + table)

    def _summary(self, times: list[float]) -> str:
        """Milliseconds from each iteration to the next, which include loading data and any evaluation."""
        device = torch.cuda.get_device_name() if self.cuda else "CPU"
        lines = [
            f"iteration {self._first + number}: {1e3 * seconds:.3f} ms"
            for number, seconds in enumerate(times)
        ]
        return "\n".join(
            [
                f"{count(len(times), 'iteration')} on {device}, {1e3 * fmean(times):.3f} ms on average",
                *lines,
                "",
                "",
            ]
        )
