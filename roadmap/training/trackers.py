"""A run's metrics in TensorBoard or Weights & Biases (W&B), beside `metrics.jsonl`, which is written whatever
is tracked.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roadmap.config import RunConfig
from roadmap.deltas import NO_PROFILE
from roadmap.disk import explaining
from roadmap.errors import ConfigError, Problem
from roadmap.records import run_dir_of
from roadmap.training.callbacks import Callback, Callbacks

LOGIN_SECONDS = 30.0


class TensorBoard(Callback):
    """Curves over iterations in `run_dir`/tensorboard."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self._writer: Any = None

    def begin(self, done: int, total: int) -> None:
        """Hides what an earlier attempt has shown of the iterations after `done`, which are made again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.run_dir / "tensorboard", purge_step=done + 1)
        if not done:
            self._writer.add_text("config.yaml", f"```yaml\n{self.config.to_yaml()}```")

    def record(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve, on disk at once: a kill leaves no gap before the next checkpoint."""
        with explaining(self.run_dir / "tensorboard"):
            for name, value in curves(record).items():
                self._writer.add_scalar(name, value, record["iteration"])
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


class WandB(Callback):
    """A run of W&B, whose files are in `run_dir`/wandb; a resumed run goes on with it.

    WANDB_MODE decides where it is sent.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self._run: Any = None

    def begin(self, done: int, total: int) -> None:
        """Starts the run at W&B, or goes on with it."""
        import wandb

        config = self.config
        # it asks who you are, and nobody may be at the terminal
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
            reinit="create_new",  # several runs of one process must not become one
            settings=wandb.Settings(console="off"),  # the live bar's thousand lines
        )

    def record(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve; W&B keeps what it was shown of an iteration that is made again."""
        if record["iteration"] >= self._run.starting_step:
            self._run.log(curves(record), step=record["iteration"])

    def close(self) -> None:
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
    """A record's figures by the names of their curves, such as `epoch/top1`; what is unknown or no figure is
    left out.
    """
    figures = {
        name: value
        for name, value in record.items()
        if name != "iteration" and isinstance(value, int | float)
    }
    return {f"{record['kind']}/{name}": value for name, value in figures.items()}


def run_id(config: RunConfig) -> str:
    """W&B's name for the run: the same wherever its directory is, another for any other run."""
    return hashlib.sha256(run_dir_of(Path(), config).path.as_posix().encode()).hexdigest()[:16]
