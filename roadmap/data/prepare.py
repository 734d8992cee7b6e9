"""Converts an image folder to tar shards of smaller images, in many processes; after a kill it resumes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roadmap.config import RunConfig
from roadmap.data.listing import IMAGE_SUFFIXES
from roadmap.data.prepare_plan import (
    CLASSES_FILE,
    Finished,
    ShardOptions,
    SplitPlan,
    find_classes,
    find_samples,
    folder_config,
)
from roadmap.data.prepare_worker import FORK, Shared, begin, write_shard
from roadmap.data.shards import load_index
from roadmap.errors import ConfigError, Problem, config_error, relative
from roadmap.files import leftovers, locked, write_errors, write_json
from roadmap.provenance import usable_cores
from roadmap.signals import delaying_interrupts
from roadmap.terminal import count

REFRESH_S, LINE_S = 0.5, 10.0


def prepare_folder(arguments: argparse.Namespace) -> int:
    """The command: writes the shards, and prints how to train on them."""
    options = ShardOptions(arguments.size, arguments.quality, arguments.shard_images, arguments.seed)
    report = prepare(
        arguments.source,
        arguments.destination,
        options,
        splits=arguments.splits,
        workers=usable_cores() if arguments.workers is None else arguments.workers,
        corrupt_images=arguments.corrupt_images,
        console=Console(stderr=True, highlight=False, markup=False),
    )
    print(report)
    return 0


def prepare(
    source: Path,
    destination: Path,
    options: ShardOptions,
    *,
    splits: list[str],
    workers: int,
    corrupt_images: int,
    console: Console,
) -> str:
    """Writes the shards that are missing, and their index; returns what is there, and how a run reads it.

    ConfigError for what cannot be read or written, for shards of another plan, and for the first unreadable
    image beyond `corrupt_images`. Finished shards are kept in any case.
    """
    began = time.monotonic()
    _check(source, destination, options, splits, workers, corrupt_images)
    config = folder_config(source)
    classes = find_classes(config, splits)
    others: dict[str, Counter[str]] = {split: Counter() for split in splits}
    with console.status("listing the images"):
        samples = {split: find_samples(source / split, classes, others[split]) for split in splits}
    _name_others(others, console)
    with write_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
    with _alone(destination, console):
        plans = [SplitPlan(source / split, samples[split], destination, options) for split in splits]
        _write_classes(destination / CLASSES_FILE, classes)
        for plan in plans:
            plan.save()
            for leftover in leftovers(
                destination, rf"{re.escape(plan.name)}-\d{{6,}}\.tar|{re.escape(plan.path.name)}"
            ):
                leftover.unlink(missing_ok=True)
        try:
            _write_all(plans, options, workers, corrupt_images, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command resumes from here")
            raise
        with console.status("indexing the shards"):
            return _report(plans, destination, config, len(classes), time.monotonic() - began)


def _check(
    source: Path,
    destination: Path,
    options: ShardOptions,
    splits: list[str],
    workers: int,
    corrupt_images: int,
) -> None:
    problems = options.check()
    if workers < 1:
        problems.append(Problem("--workers", f"must be at least 1, not {workers}"))
    if corrupt_images < 0:
        problems.append(Problem("--corrupt-images", f"must be at least 0, not {corrupt_images}"))
    for split in splits:
        if Path(split).name != split or splits.count(split) > 1:
            problems.append(
                Problem("--splits", f"names '{split}', which is not a folder of {source}, or there twice")
            )
        elif destination.resolve().is_relative_to((source / split).resolve()):
            problems.append(
                Problem(
                    str(destination),
                    f"lies in {source / split}, where it would be a class; choose another destination",
                )
            )
    if problems:
        raise ConfigError(problems)


def _name_others(others: dict[str, Counter[str]], console: Console) -> None:
    """Prints how many files of each split are skipped for their suffixes, and which."""
    for split, suffixes in others.items():
        if suffixes:
            what = (
                f"{split}: {count(suffixes.total(), 'file')} skipped, for only"
                f" {', '.join(IMAGE_SUFFIXES)} are read"
            )
            console.print(
                f"{what}: {', '.join(sorted(suffix or 'no suffix' for suffix in suffixes))}",
                style="yellow",
                soft_wrap=True,
            )


@contextmanager
def _alone(destination: Path, console: Console) -> Iterator[None]:
    """Waits for any other process that writes there, and has others wait."""
    lock = destination / ".prepare.lock"
    with write_errors(destination):
        lock.touch()
    with ExitStack() as stack:
        waiting = partial(
            console.print, f"waiting for another process that writes to {destination}", soft_wrap=True
        )
        try:
            stack.enter_context(locked(lock, waiting))
        except OSError as error:
            console.print(
                f"{destination} cannot be locked ({error.strerror}): let no other process write there",
                soft_wrap=True,
            )
        yield


def _write_classes(path: Path, classes: list[str]) -> None:
    """The classes' names in the order of their labels, for readers of the shards; ConfigError where shards of
    other classes are there.
    """
    unused = any(path.parent.glob("prepared-*.json")) and not any(path.parent.glob("*.tar"))
    if not unused and path.exists() and path.read_bytes() != (json.dumps(classes, indent=2) + "\n").encode():
        raise config_error(
            relative(path),
            "names other classes: shards of another dataset are there; choose another destination",
        )
    with write_errors(path):
        write_json(path, classes)


def _write_all(
    plans: list[SplitPlan], options: ShardOptions, workers: int, allowed: int, console: Console
) -> None:
    left_out = [file for plan in plans for file in plan.left_out]
    if len(left_out) > allowed:
        what = f"{len(left_out)} images could not be read and are left out already, {left_out[0]} among them"
        raise config_error("--corrupt-images", f"must be at least {len(left_out)}: {what}")
    missing = [(plan, shard) for plan in plans for shard in plan.missing]
    if not missing:
        return
    shared, workers = Shared(len(left_out), allowed), min(workers, len(missing))
    pool = ProcessPoolExecutor(workers, mp_context=FORK, initializer=begin, initargs=(shared,))
    with delaying_interrupts():
        writing = {pool.submit(write_shard, shard, options): plan for plan, shard in missing}
    reader = threading.Thread(target=_read, args=(shared, console), daemon=True)
    reader.start()
    try:
        with PrepareProgress(shared, sum(len(shard.samples) for _, shard in missing), console) as progress:
            while writing:
                done = wait(writing, REFRESH_S, FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    _finish(future, writing.pop(future))
                progress.update(len(missing) - len(writing), len(missing))
    except BrokenProcessPool as error:
        what = f"died of {workers}, perhaps out of memory; try fewer: the finished shards are kept"
        raise config_error("--workers", f"one {what}") from error
    finally:
        shared.stop.value = True
        pool.shutdown(cancel_futures=True)
        shared.news.put(None)
        reader.join()


def _finish(future: Future[tuple[str, Finished]], plan: SplitPlan) -> None:
    name, record = future.result()
    plan.finished[name] = record
    plan.save()


def _read(shared: Shared, console: Console) -> None:
    """Prints the workers' messages until there are no more."""
    while (line := shared.news.get()) is not None:
        console.print(line, style="yellow", soft_wrap=True)


class PrepareProgress:
    """A live bar with images/s and time left; plain lines where there is no terminal."""

    def __init__(self, shared: Shared, total: int, console: Console) -> None:
        self.shared = shared
        self.total = total
        self.console = console
        self._began = self._printed = time.monotonic()
        columns = (
            TextColumn("preparing"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, shards: int, of: int) -> None:
        now, done = time.monotonic(), self.shared.done.value
        state = f"{shards} of {of} shards, {done / max(1e-9, now - self._began):.0f} images/s"
        self._bar.update(self._task, completed=done, description=state)
        if not self.console.is_terminal and (shards == of or now - self._printed > LINE_S):
            self._printed = now
            self.console.print(f"{done:,} of {self.total:,} images, {state}", soft_wrap=True)


def _report(
    plans: list[SplitPlan], destination: Path, config: RunConfig, classes: int, seconds: float
) -> str:
    """What is there, and the options that read it; also writes the index, so that the first
    run starts at once.
    """
    root = destination.resolve()
    options = ["data.dataset=shards", f"system.data_dir={root}"]
    lines = []
    for plan in plans:
        kind = "train" if plan.name.startswith("train") else "val"
        load_index(root, [shard.path.name for shard in plan.shards], config.data)
        option = f"data.{kind}_split={plan.pattern}"
        images, size = (
            sum(getattr(record, name) for record in plan.finished.values()) for name in ("images", "bytes")
        )
        lines.append(f"{plan.name}: {images:,} images in {count(len(plan.shards), 'shard')}, {decimal(size)}")
        if any(other.startswith(f"data.{kind}_split=") for other in options):
            lines.append(f"{plan.name}: is read with --set {shlex.quote(option)}")
        else:
            options.append(option)
        if plan.left_out:
            left_out = count(len(plan.left_out), "image")
            lines.append(
                f"{plan.name}: {left_out} left out that could not be read; {relative(plan.path)} names them"
            )
    if classes != config.model.num_classes:
        options.append(f"model.num_classes={classes}")
    words = " ".join(f"--set {shlex.quote(option)}" for option in options)
    return "\n".join([*lines, f"{seconds:,.0f} s; train on them with", words])
