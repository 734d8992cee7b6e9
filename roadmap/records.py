"""What a run leaves on disk, and how to read it back: runs/<roadmap>/<profile>/<step>/seed<k>-<hash>/."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from blocks.spec import Spec
from roadmap.files import read_json_lines, write_atomic
from roadmap.lease import attempts, owner, read_attempt
from roadmap.recipe import RunConfig
from roadmap.strict_yaml import ConfigError, Problem, relative
from roadmap.tree import NO_PROFILE

RUN_FOLDER = re.compile(r"seed(\d+)-([0-9a-f]{8})")
LONGEST_ID = 250
FORMAT = 1
State = Literal["done", "diverged", "failed", "running", "stale", "pending"]


class Result(Spec):
    """The outcome of a finished run: accuracies are percent, of the last epoch, never the best on the validation set.

    A diverged run has no accuracy, and its `epochs` are those completed. Each of `processes` took `accumulation` times
    `micro_batch` images an iteration, and left `corrupt_images` out. `images_per_s` is the training loop's, evaluation
    apart; `train_seconds` adds up over attempts.
    """

    model_config = ConfigDict(extra="ignore")

    format: Literal[1]  # FORMAT
    status: Literal["done", "diverged"]
    roadmap: str
    step: str
    profile: str | None
    seed: int
    hash: str
    top1: float | None
    top5: float | None
    val_loss: float | None
    train_loss: float | None
    ema_top1: float | None
    epochs: int
    iterations: int
    global_batch: int
    processes: int = 1
    micro_batch: int | None = None
    accumulation: int = 1
    corrupt_images: int = 0
    dataset: str
    image_size: int
    params: int
    macs: int
    images_per_s: float
    train_seconds: float
    peak_memory_mb: float | None
    hardware: str
    versions: dict[str, str]
    commit: str | None
    attempts: int
    finished: str


class DamagedResult(ValueError):
    """A result.json that does not hold a result; the run counts as unfinished."""


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's own part of its path, the same wherever the runs are."""
        return "/".join(self.path.parts[-4:])

    @property
    def experiment(self) -> tuple[str, str]:
        """The roadmap and the profile."""
        return self.path.parts[-4], self.path.parts[-3]

    @property
    def step(self) -> str:
        """The step's id."""
        return self.path.parent.name

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.path.name.partition("-")[0].removeprefix("seed"))

    @property
    def hash(self) -> str:
        """The configuration's hash."""
        return self.path.name.partition("-")[2]

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, commit and hardware of the latest attempt."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: `train` records every few iterations, an `epoch` record after each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the last two checkpoints."""
        return self.path / "checkpoint"

    @property
    def result(self) -> Path:
        """The outcome; its presence means that the run is finished."""
        return self.path / "result.json"


def run_dir_of(runs: Path, config: RunConfig) -> RunDir:
    """Where a run with this configuration lives under `runs`; ConfigError if its step's id is too long for a folder."""
    if len(config.step) > LONGEST_ID:
        message = f"is longer than the {LONGEST_ID} letters that a folder can be named with; make it a step of your own"
        raise ConfigError([Problem(f"'{config.step[:40]}…'", message)])
    return RunDir(runs / config.roadmap / (config.profile or NO_PROFILE) / config.step / f"seed{config.seed}-{config.hash}")


def prepare(runs: Path, config: RunConfig) -> RunDir:
    """The run's directory with its config.yaml, made if need be; ConfigError if it holds the run of another configuration."""
    run = run_dir_of(runs, config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            write_atomic(run.config, config.to_yaml())
    except OSError as error:
        raise ConfigError([Problem(relative(run.path), f"cannot be made: {error.strerror}")]) from error
    check_config(run, config)
    return run


def check_config(run: RunDir, config: RunConfig) -> None:
    """ConfigError if the directory's config.yaml would give another result than `config`."""
    there = RunConfig.read(run.config)
    if (there.hash, there.seed) != (config.hash, config.seed):
        old, new = (_flat(c.model_dump(mode="json", include={"model", "recipe", "data", "seed"})) for c in (there, config))
        lines = [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new if old.get(key) != new[key]]
        raise ConfigError([Problem(relative(run.config), f"belongs to another configuration ({'; '.join(lines)}); move the folder away")])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_result(run: RunDir) -> Result | None:
    """The run's result, None while there is none; DamagedResult if the file is empty, torn, another run's or from a later version."""
    try:
        text = run.result.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedResult(f"{run.name}/result.json cannot be read: {error}") from error
    try:
        result = Result.model_validate_json(text)
    except ValidationError as error:
        raise DamagedResult(f"{run.name}/result.json {_damage(text, error)}") from error
    if (result.step, result.seed, result.hash) != (run.step, run.seed, run.hash):
        raise DamagedResult(f"{run.name}/result.json is damaged: it belongs to {result.step}/seed{result.seed}-{result.hash}")
    return result


def _damage(text: str, error: ValidationError) -> str:
    """What is wrong with a result.json, in a few words."""
    wrong = [str(item["loc"][0]) for item in error.errors() if item["loc"]]
    if not text.strip():
        return "is empty"
    if not wrong:
        return "is damaged: it is not JSON"
    if "format" in wrong:
        return f"is damaged: its format is unknown to this version ({FORMAT})"
    return f"is damaged: {', '.join(wrong)}"


@dataclass(frozen=True)
class Status:
    """Where a run stands. `record` is the last line of its metrics, `owner` the attempt that is at work on it.

    `why` says what went wrong, if anything did.
    """

    run: RunDir
    state: State
    result: Result | None = None
    record: dict[str, Any] | None = None
    why: str | None = None
    owner: dict[str, Any] | None = None


def status(run: RunDir) -> Status:
    """Where a run stands, read from its files alone.

    `stale` runs were begun and nobody is at work on them: killed or stopped, to be resumed. `failed` ones ended with an error.
    """
    why = None
    try:
        result = read_result(run)
    except DamagedResult as error:
        result, why = None, str(error)
    if result is not None:
        return Status(run, result.status, result)
    latest = read_json_lines(run.metrics, tail_bytes=4096)[-1:]
    record = latest[0] if latest else None
    if (working := owner(run.path)) is not None:
        return Status(run, "running", None, record, owner=working)
    files = attempts(run.path)
    if not files:
        return Status(run, "pending", None, record, why)
    last = read_attempt(files[-1])
    if last.get("outcome") == "failed":
        return Status(run, "failed", None, record, why or last.get("reason"))
    return Status(run, "stale", None, record, why)


def find_runs(root: Path) -> list[RunDir]:
    """All run directories below `root`, sorted; ConfigError if it cannot be read."""
    found: list[RunDir] = []
    try:
        root = root.resolve(strict=True)
        if not root.is_dir():
            raise NotADirectoryError(20, "it is not a folder")
    except OSError as error:
        raise ConfigError([Problem(relative(root), f"cannot be read as a folder of runs: {error.strerror}")]) from error

    def refuse(error: OSError) -> None:
        raise ConfigError([Problem(error.filename, f"cannot be read: {error.strerror}")])

    for folder, children, _ in os.walk(root, onerror=refuse):
        if RUN_FOLDER.fullmatch(Path(folder).name) and len(Path(folder).parts) > 4:
            children.clear()
            found.append(RunDir(Path(folder)))
    return sorted(found, key=lambda run: run.path)
