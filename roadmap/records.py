"""What a run leaves on disk, and how to read it back: runs/<roadmap>/<profile>/<step>/seed<k>-<hash>/."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
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
from roadmap.steps_file import Percent

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
        """The run's part of its path, without the folder of all runs."""
        return "/".join(self.path.parts[-4:])

    @property
    def experiment(self) -> tuple[str, str]:
        """The roadmap and the profile."""
        return self.path.parts[-4], self.path.parts[-3]

    @property
    def step(self) -> str:
        return self.path.parts[-2]

    @property
    def seed(self) -> int:
        return int(self.path.name.partition("-")[0].removeprefix("seed"))

    @property
    def hash(self) -> str:
        return self.path.name.partition("-")[2]

    @property
    def config(self) -> Path:
        """The resolved configuration; its `system` is that of the last submission before the run finished."""
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
        """Keeps workers off the run, even if this machine fails."""
        write_atomic(self.cancelled, "")

    def renew(self) -> None:
        """Lets workers take the run again, if it was cancelled."""
        self.cancelled.unlink(missing_ok=True)


WAITING = 0.1  # a share of waiting for data in the training time above which it is reported


class Result(Spec):
    """The outcome of a finished run; accuracies are in percent, of the last epoch, never of the best one.

    A diverged run has no accuracy, and its `epochs` are those completed. The accuracies are of `val_images`
    images, None in results of earlier versions. Each of `processes` trained on
    `accumulation` times `micro_batch` images per iteration, and `corrupt_images` were skipped. `images_per_s`
    is the speed of training after each attempt's first iterations, which compile and search for algorithms,
    without waits for data. `train_seconds` is the time of all iterations of all attempts at that pace, with
    the waits, which are `data_seconds`; None in results of earlier versions, which count all as training.
    On a GPU, `runs_per_gpu` runs were trained at a time, this one among them.
    """

    model_config = ConfigDict(extra="ignore")

    format: Literal[1]  # FORMAT
    status: Literal["done", "diverged"]
    roadmap: str
    step: str
    profile: str | None
    seed: int
    hash: str
    top1: Percent | None
    top5: Percent | None
    val_loss: float | None
    train_loss: float | None
    ema_top1: Percent | None
    val_images: int | None = None
    epochs: int
    iterations: int
    global_batch: int
    processes: int = 1
    runs_per_gpu: int = 1
    micro_batch: int | None = None
    accumulation: int = 1
    corrupt_images: int = 0
    dataset: str
    image_size: int
    params: int
    macs: int
    images_per_s: float
    train_seconds: float
    data_seconds: float | None = None
    peak_memory_mb: float | None
    hardware: str
    versions: dict[str, str]
    commit: str | None
    attempts: int
    finished: str


def accuracies(results: Iterable[Result]) -> dict[int, float]:
    """Top-1 in % by seed, without the runs that diverged."""
    return {result.seed: result.top1 for result in results if result.top1 is not None}


class DamagedResult(ValueError):
    """A result.json that does not hold a result; the run counts as unfinished."""


class NewerResult(ConfigError):
    """A result.json of a later version: the run is finished, and must not be trained again."""


def run_dir_of(runs: Path, config: RunConfig) -> RunDir:
    """The directory of a run of this configuration; ConfigError if its step's id is too long."""
    if len(config.step) > LONGEST_ID:
        message = (
            f"is longer than a folder's name can be, {LONGEST_ID} letters; make it a step of a steps file"
        )
        raise config_error(f"'{config.step[:40]}…'", message)
    profile = config.profile or NO_PROFILE
    return RunDir(runs / config.roadmap / profile / config.step / f"seed{config.seed}-{config.hash}")


def prepare(runs: Path, config: RunConfig) -> RunDir:
    """The run's directory, created if needed, with `config` in its config.yaml unless the run is finished.

    The next attempt trains what is in config.yaml. ConfigError if the directory holds the run of another
    configuration, or cannot be written.
    """
    run = run_dir_of(runs, config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            write_atomic(run.config, config.to_yaml())
            return run
    except OSError as error:
        raise config_error(relative(run.path), f"cannot be created: {reason(error, run.path)}") from error
    if _has_text(run.config, config.to_yaml()):  # parsing it takes fifty times as long
        return run
    if check_config(run, config) != config and status(run).state not in FINISHED:
        with write_errors(run.config):
            _replace_config(run, config)
    return run


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:  # RunConfig.read reports it
        return False


def _replace_config(run: RunDir, config: RunConfig) -> None:
    """Makes the next attempt train `config`; one that is running has read the file already."""
    created = run.config.stat().st_mtime_ns
    write_atomic(run.config, config.to_yaml())
    os.utime(run.config, ns=(created, created))  # steps are listed in the order of these times


def check_config(run: RunDir, config: RunConfig) -> RunConfig:
    """The configuration in the run's config.yaml; ConfigError if it gives another result than `config`."""
    there = RunConfig.read(run.config)
    if (there.hash, there.seed) != (config.hash, config.seed):
        parts = {"model", "recipe", "data", "seed"}
        old, new = (flatten(c.model_dump(mode="json", include=parts)) for c in (there, config))
        lines = [f"{key}: {old.get(key)} there, {new[key]} now" for key in new if old.get(key) != new[key]]
        message = f"belongs to another configuration ({'; '.join(lines)}); move the folder away"
        raise config_error(relative(run.config), message)
    return there


def read_result(run: RunDir) -> Result | None:
    """The run's result, None while there is none.

    DamagedResult if the file is empty, truncated or another run's, NewerResult if a later version wrote it.
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
    """The result in the file `name`; DamagedResult and NewerResult as in `read_result`."""
    try:
        return Result.model_validate_json(content)
    except ValidationError as error:
        raise _result_error(name, content, error) from error


def _result_error(name: str, content: bytes, error: ValidationError) -> DamagedResult | NewerResult:
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
    """The state of a run.

    `record` is the last line of its metrics, `owner` the attempt that is running, and `why` what went wrong.
    """

    run: RunDir
    state: State
    result: Result | None = None
    record: dict[str, Any] | None = None
    why: str | None = None
    owner: dict[str, Any] | None = None


def status(run: RunDir) -> Status:
    """The state of a run, from its files only.

    `stale` runs were started and no process is running them: they were killed or stopped, and can be resumed.
    `failed` ones ended with an error. `cancelled` ones are not run until they are submitted again. `newer`
    ones have a result that only a later version can read, and are not trained again.
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
    with suppress(FileNotFoundError, NotADirectoryError):
        # NFS may cache that a name does not exist, so list the folder
        if run.cancelled in run.path.iterdir():
            return Status(run, "cancelled", None, record, why or last.get("reason"))
    if not files:
        return Status(run, "pending", None, record, why)
    if last.get("outcome") == "failed":
        return Status(run, "failed", None, record, why or last.get("reason"))
    return Status(run, "stale", None, record, why)


def find_runs(root: Path) -> list[RunDir]:
    """All run directories below `root`, sorted; ConfigError if it, or a folder in it, cannot be read.

    Links are followed. Each real folder is visited once, by its real path if that is below `root`.
    """
    try:
        tree = run_tree(root)
        tree.stat()
        return [RunDir(path) for path in sorted(map(Path, _run_folders(str(tree))))]
    except OSError as error:
        where = relative(Path(error.filename or root))
        fix = f"; unpack it: mkdir -p runs && tar xJf {where} -C runs" if where.endswith(".tar.xz") else ""
        raise config_error(where, f"cannot be read as a folder of runs: {error.strerror}{fix}") from error


def run_tree(root: Path) -> Path:
    """The absolute path of a folder of runs without '..', but with its links, which are in runs' names."""
    here = Path.cwd()
    with suppress(OSError):
        shell = Path(os.environ.get("PWD", ""))  # has the links of the current folder
        here = shell if shell.is_absolute() and shell.samefile(here) else here
    parts = (here / root).parts
    # links before a '..' must be resolved
    ups = len(parts) - parts[::-1].index("..") if ".." in parts else 1
    return Path(*parts[:ups]).resolve(strict=True).joinpath(*parts[ups:])


def _run_folders(tree: str) -> Iterator[str]:
    """The run directories at and below `tree`: first those without a link in their path, then the others."""
    links, seen = deque([tree]), set[str]()
    while links:
        folder = links.popleft()
        yield from _walk(folder, os.path.realpath(folder), seen, links)


def _walk(folder: str, real: str, seen: set[str], links: deque[str]) -> Iterator[str]:
    """Run directories at and below `folder`, which are not searched; links to folders go into `links`."""
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
