"""What a run leaves on disk, and how to read it back: runs/<roadmap>/<profile>/<step>/seed<k>-<hash>/."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from blocks.spec import Spec
from roadmap.config import RunConfig, flatten
from roadmap.deltas import NO_PROFILE
from roadmap.disk import reason
from roadmap.errors import ConfigError, Problem, config_error, relative
from roadmap.files import read_json_lines, write_atomic, write_errors
from roadmap.lease import attempts, owner, read_attempt

RUN_FOLDER = re.compile(r"seed(\d+)-([0-9a-f]{8})")
LONGEST_ID = 250
FORMAT = 1  # of result.json
State = Literal["done", "diverged", "newer", "failed", "running", "cancelled", "stale", "pending"]
FINISHED = ("done", "diverged", "newer")  # not to be trained again


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
        return self.path.parts[-2]

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
        """The resolved configuration; its `system` is what was asked for last, before the run finished."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, commit and hardware of the latest attempt."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """A JSON object a line: `train` records every few iterations, `epoch` records after evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the last two checkpoints."""
        return self.path / "checkpoint"

    @property
    def result(self) -> Path:
        """The outcome; its presence means that the run is finished."""
        return self.path / "result.json"

    @property
    def cancelled(self) -> Path:
        """An empty file that keeps workers off the run, from its cancellation until it is submitted again."""
        return self.path / "cancelled"

    def cancel(self) -> None:
        """Keeps workers from the run, whatever becomes of this machine."""
        write_atomic(self.cancelled, "")

    def renew(self) -> None:
        """Lets workers take the run again, if it was cancelled."""
        self.cancelled.unlink(missing_ok=True)


class Result(Spec):
    """The outcome of a finished run: accuracies are percent, of the last epoch, never the best on the
    validation set.

    A diverged run has no accuracy, and its `epochs` are those completed. Each of `processes` took
    `accumulation` times `micro_batch` images an iteration, and left `corrupt_images` out. `images_per_s` is
    the training loop's, evaluation apart; `train_seconds` adds up over attempts.
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


class NewerResult(ConfigError):
    """A result.json that a later version has written: the run is finished, and must not be trained again over
    its result.
    """


def run_dir_of(runs: Path, config: RunConfig) -> RunDir:
    """Where a run of this configuration lives under `runs`; ConfigError if its step's id is too long."""
    if len(config.step) > LONGEST_ID:
        message = (
            f"is longer than the {LONGEST_ID} letters that a folder can be named with; make it a step of"
            " your own"
        )
        raise config_error(f"'{config.step[:40]}…'", message)
    return RunDir(
        runs
        / config.roadmap
        / (config.profile or NO_PROFILE)
        / config.step
        / f"seed{config.seed}-{config.hash}"
    )


def prepare(runs: Path, config: RunConfig) -> RunDir:
    """The run's directory, made if need be; its config.yaml holds `config`, which the next attempt trains,
    unless the run is finished.

    ConfigError if the directory holds the run of another configuration, or cannot be written.
    """
    run = run_dir_of(runs, config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            write_atomic(run.config, config.to_yaml())
            return run
    except OSError as error:
        raise config_error(relative(run.path), f"cannot be made: {reason(error, run.path)}") from error
    if _has_text(run.config, config.to_yaml()):  # parsing it would take fifty times as long
        return run
    if check_config(run, config) != config and status(run).state not in FINISHED:
        with write_errors(run.config):
            _replace_config(run, config)
    return run


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:  # whoever parses it says why
        return False


def _replace_config(run: RunDir, config: RunConfig) -> None:
    """Has the next attempt train `config`; one that is at work has read the file already."""
    made = run.config.stat().st_mtime_ns
    write_atomic(run.config, config.to_yaml())
    # which stands for when the run was made: steps are listed in that order
    os.utime(run.config, ns=(made, made))


def check_config(run: RunDir, config: RunConfig) -> RunConfig:
    """The configuration in the run's config.yaml; ConfigError if it gives another result than `config`."""
    there = RunConfig.read(run.config)
    if (there.hash, there.seed) != (config.hash, config.seed):
        old, new = (
            flatten(c.model_dump(mode="json", include={"model", "recipe", "data", "seed"}))
            for c in (there, config)
        )
        lines = [
            f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new if old.get(key) != new[key]
        ]
        raise config_error(
            relative(run.config),
            f"belongs to another configuration ({'; '.join(lines)}); move the folder away",
        )
    return there


def read_result(run: RunDir) -> Result | None:
    """The run's result, None while there is none; DamagedResult if the file is empty, torn or another run's,
    NewerResult if it is newer.
    """
    try:
        content = run.result.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedResult(f"{run.name}/result.json cannot be read: {error.strerror}") from error
    result = parse_result(f"{run.name}/result.json", content)
    if (result.step, result.seed, result.hash) != (run.step, run.seed, run.hash):
        raise DamagedResult(
            f"{run.name}/result.json is damaged: it belongs to {result.step}/seed{result.seed}-{result.hash}"
        )
    return result


def parse_result(name: str, content: bytes) -> Result:
    """The result in the file `name`; DamagedResult if it is empty, torn or incomplete, NewerResult if a later
    version wrote it.
    """
    try:
        return Result.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(name, content, error) from error


def _refusal(name: str, content: bytes, error: ValidationError) -> DamagedResult | NewerResult:
    """What is wrong with a result.json, in a few words."""
    wrong = [str(item["loc"][0]) for item in error.errors() if item["loc"]]
    if not wrong:
        return DamagedResult(f"{name} is damaged: it is not JSON" if content.strip() else f"{name} is empty")
    if "format" not in wrong:
        return DamagedResult(f"{name} is damaged: {', '.join(wrong)}")
    version = json.loads(content).get("format")
    if not isinstance(version, int) or version <= FORMAT:
        return DamagedResult(f"{name} is damaged: its format is unknown to this version ({FORMAT})")
    message = (
        f"was written by a later version (format {version}, this one reads {FORMAT}); update this code to"
        " collect it"
    )
    return NewerResult([Problem(name, message)])


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    `record` is the last line of its metrics, `owner` the attempt that is at work on it.

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

    `stale` runs were begun and nobody is at work on them: killed or stopped, to be resumed. `failed` ones
    ended with an error. `cancelled` ones are left alone until they are submitted again, however far they are.
    `newer` ones have a result that only a later version can read; they, too, are not trained again.
    """
    why = None
    try:
        if (result := read_result(run)) is not None:
            return Status(run, result.status, result)
    except NewerResult as error:
        return Status(run, "newer", why=str(error))
    except DamagedResult as error:
        why = str(error)
    latest = read_json_lines(run.metrics, tail_bytes=4096)[-1:]
    record = latest[0] if latest else None
    with suppress(FileNotFoundError):  # the run is being deleted
        if (working := owner(run.path)) is not None:
            return Status(run, "running", None, record, owner=working)
    files = attempts(run.path)
    last = read_attempt(files[-1]) if files else {}
    with suppress(FileNotFoundError):
        # asked for it by name, NFS may go on saying that it is not there
        if run.cancelled in run.path.iterdir():
            return Status(run, "cancelled", None, record, why or last.get("reason"))
    if not files:
        return Status(run, "pending", None, record, why)
    if last.get("outcome") == "failed":
        return Status(run, "failed", None, record, why or last.get("reason"))
    return Status(run, "stale", None, record, why)


def find_runs(root: Path) -> list[RunDir]:
    """All run directories below `root`, sorted; ConfigError if it, or a folder in it, cannot be read.

    Links are followed. Each real folder is visited once, by its own path rather than by that of a link to it.
    """
    try:
        tree = run_tree(root)
        tree.stat()
        return [RunDir(path) for path in sorted(map(Path, _run_folders(str(tree))))]
    except OSError as error:
        where = relative(Path(error.filename or root))
        raise config_error(where, f"cannot be read as a folder of runs: {error.strerror}") from error


def run_tree(root: Path) -> Path:
    """The absolute path of a folder of runs, without '..' and with its links, for the names of runs are parts
    of their paths.
    """
    here = Path.cwd()
    with suppress(OSError):
        shell = Path(os.environ.get("PWD", ""))  # which keeps the links that led here
        here = shell if shell.is_absolute() and shell.samefile(here) else here
    parts = (here / root).parts
    # only what '..' follows must be resolved to be right
    ups = len(parts) - parts[::-1].index("..") if ".." in parts else 1
    return Path(*parts[:ups]).resolve(strict=True).joinpath(*parts[ups:])


def _run_folders(tree: str) -> Iterator[str]:
    """The run directories at and below `tree`: first those that lead through no link, then those behind the
    links on the way.
    """
    links, seen = deque([tree]), set[str]()
    while links:
        folder = links.popleft()
        yield from _walk(folder, os.path.realpath(folder), seen, links)


def _walk(folder: str, real: str, seen: set[str], links: deque[str]) -> Iterator[str]:
    """Run directories at and below `folder`, themselves not searched; links to folders go into `links`."""
    if real in seen:
        return
    seen.add(real)
    if folder.count(os.sep) > 3 and RUN_FOLDER.fullmatch(folder.rpartition(os.sep)[2]):
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            below = sorted(
                (entry.name, entry.is_symlink()) for entry in entries if entry.is_symlink() or entry.is_dir()
            )
    except FileNotFoundError:
        return  # removed since its parent was read
    for name, is_link in below:
        path = f"{folder.rstrip(os.sep)}{os.sep}{name}"
        if not is_link:
            yield from _walk(path, f"{real.rstrip(os.sep)}{os.sep}{name}", seen, links)
        elif Path(path).is_dir():
            links.append(path)
