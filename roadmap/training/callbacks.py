"""What follows a run: the live progress bar, and experiment trackers, which `metrics.jsonl` does not need."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roadmap.config import RunConfig
from roadmap.deltas import NO_PROFILE
from roadmap.disk import explaining
from roadmap.errors import ConfigError, Problem
from roadmap.records import run_dir_of

logger = logging.getLogger(__name__)
LOGIN_SECONDS = 30.0


class Callback:
    """Follows a run; this one ignores it.

    As a context manager it calls `on_setup` first and `on_end` in any case.
    """

    def on_setup(self) -> None:
        """A run may follow: its data and its network come next."""

    def on_train_start(self, done: int, total: int) -> None:
        """Training starts, or resumes, after `done` of `total` iterations."""

    def on_step(self) -> None:
        """The optimizer has made a step."""

    def on_log(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""

    def on_end(self) -> None:
        """Training has ended, however it did."""

    def __enter__(self) -> Self:
        self.on_setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_end()


class Callbacks(Callback):
    """Several callbacks as one; one that raises is dropped with a warning: no reason to stop training."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)

    def on_setup(self) -> None:
        self._notify("on_setup")

    def on_train_start(self, done: int, total: int) -> None:
        self._notify("on_train_start", done, total)

    def on_step(self) -> None:
        self._notify("on_step")

    def on_log(self, record: dict[str, Any]) -> None:
        self._notify("on_log", record)

    def on_end(self) -> None:
        self._notify("on_end")

    def _notify(self, event: str, *arguments: Any) -> None:
        for callback in tuple(self._callbacks):
            try:
                getattr(callback, event)(*arguments)
            except Exception as error:
                self._callbacks.remove(callback)
                logger.warning(
                    "%s fails and is left out from here on: %s: %s",
                    type(callback).__name__,
                    type(error).__name__,
                    error,
                )
                with suppress(Exception):
                    callback.on_end()


class LiveProgress(Callback):
    """A live bar with epoch, loss, accuracy, images/s and time left; where there is no terminal, plain
    lines, one per epoch.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, state="")
        self._state: dict[str, str] = {}

    def on_setup(self) -> None:
        self._bar.start()

    def on_train_start(self, done: int, total: int) -> None:
        self._bar.update(self._task, total=total, completed=done)
        if done:
            self.console.print(f"resumes after iteration {done} of {total}", highlight=False)

    def on_step(self) -> None:
        self._bar.advance(self._task)

    def on_log(self, record: dict[str, Any]) -> None:
        self._state["epoch"] = f"epoch {record['epoch']}"
        self._state["loss"] = f"loss {record['train_loss']:.3f}"
        self._state["speed"] = f"{record['images_per_s']:.0f} images/s"
        if record["kind"] == "epoch":
            self._state["accuracy"] = f"top-1 {record['top1']:.2f} %"
            if not self.console.is_terminal:
                self.console.print(", ".join(self._state.values()), highlight=False)
        self._bar.update(self._task, state="  ".join(self._state.values()))

    def on_end(self) -> None:
        self._bar.stop()


class TensorBoard(Callback):
    """Curves over iterations in `run_dir`/tensorboard."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self._writer: Any = None

    def on_train_start(self, done: int, total: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # hides what an earlier attempt has shown of the iterations after `done`, which are made again
        self._writer = SummaryWriter(self.run_dir / "tensorboard", purge_step=done + 1)
        if not done:
            self._writer.add_text("config.yaml", f"```yaml\n{self.config.to_yaml()}```")

    def on_log(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve, on disk at once: a kill leaves no gap before the next checkpoint."""
        with explaining(self.run_dir / "tensorboard"):
            for name, value in curves(record).items():
                self._writer.add_scalar(name, value, record["iteration"])
            self._writer.flush()

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB(Callback):
    """A run of Weights & Biases (W&B), whose files are in `run_dir`/wandb; WANDB_MODE decides where it is
    sent. A resumed run resumes there, too.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self._run: Any = None

    def on_train_start(self, done: int, total: int) -> None:
        import wandb

        config = self.config
        # it asks for a login, and the terminal may be unattended
        wandb.setup(wandb.Settings(login_timeout=LOGIN_SECONDS))
        self._run = wandb.init(
            project=config.roadmap,
            group=config.step,
            name=f"{config.step}-seed{config.seed}",
            tags=[config.profile or NO_PROFILE],
            id=run_id(config),
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=self.run_dir,
            reinit="create_new",  # several runs of one process stay several runs
            settings=wandb.Settings(console="off"),  # the live bar's thousand lines
        )

    def on_log(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve; W&B keeps what it has of an iteration that is made again."""
        if record["iteration"] >= self._run.starting_step:
            self._run.log(curves(record), step=record["iteration"])

    def on_end(self) -> None:
        """Waits until W&B has everything."""
        if self._run is not None:
            self._run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def make_trackers(config: RunConfig, run_dir: Path) -> Callback:
    """All trackers of the configuration as one; ConfigError if a package is missing."""
    check_trackers(config)
    return Callbacks(TRACKERS[name](config, run_dir) for name in dict.fromkeys(config.system.trackers))


def check_trackers(config: RunConfig) -> None:
    """ConfigError if the package of one of the configuration's trackers is not installed."""
    missing = [name for name in config.system.trackers if not _installed(name)]
    if missing:
        problems = [f"'{name}' is not installed; pip install 'convnext-roadmap[{name}]'" for name in missing]
        raise ConfigError([Problem("system.trackers", problem) for problem in problems])


def _installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # without an origin it is but a folder of that name


def curves(record: dict[str, Any]) -> dict[str, float]:
    """A record's metrics by the names of their curves, such as `epoch/top1`, without unknown ones."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in record.items()
        if name != "iteration" and isinstance(value, int | float)
    }


def run_id(config: RunConfig) -> str:
    """W&B's name for the run: the same wherever its directory is, another for any other run."""
    return hashlib.sha256(run_dir_of(Path(), config).path.as_posix().encode()).hexdigest()[:16]
