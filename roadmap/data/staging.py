"""The data of a run on a node's own disk: copied there once per node, completely or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from threading import Event
from urllib.error import HTTPError

from roadmap.config import RunConfig
from roadmap.data.listing import find_images, readable, walk_files
from roadmap.data.locate import (
    class_names,
    data_dir,
    expand,
    find_shards,
    is_remote,
    is_staged,
    kind_of,
    make_stage_dir,
    need_stage_dir,
)
from roadmap.disk import disk_error, reason
from roadmap.errors import config_error
from roadmap.files import download, locked, write_errors

DOWNLOAD_LOCK = ".download.lock"  # held while torchvision downloads a dataset to `data_dir`
COPIES_AT_ONCE = 8
DOWNLOADS_AT_ONCE = 4
ATTEMPTS, PAUSE_S = 3, 1.0


def stage(config: RunConfig) -> RunConfig:
    """The configuration with `data_dir` on `stage_dir`, where its files are copied unless they
    are there already.

    Any number of a node's processes may call at once: one copies, the others wait. A folder is copied with
    the classes that the configuration reads, shards are those that it names; of any other kind, all of
    `data_dir` is copied, unless it is yet to be downloaded. Shards at a URL are downloaded, all of them,
    because an epoch is shuffled over all. ConfigError where that fails, which leaves nothing half copied. A
    staged configuration is returned as it is.
    """
    system, kind = config.system, kind_of(config.data)
    remote = is_remote(config)
    if system.data_dir is None or (remote and kind == "wds"):  # which streams from a URL as it is
        return config
    if remote and kind != "shards":
        raise config_error(system.data_dir, "is a URL, from which only shards and wds/ are read")
    if remote:
        need_stage_dir(config)
    if system.stage_dir is None:
        return config
    staged = system.data_dir
    if is_staged(config):
        folder = make_stage_dir(config)
        staged = str(
            _fetch_all(config, system.data_dir.rstrip("/"), folder) if remote else _copy_all(config, folder)
        )
    return config.model_copy(
        update={"system": system.model_copy(update={"data_dir": staged, "stage_dir": None})}
    )


def _copy_all(config: RunConfig, folder: Path) -> Path:
    source = data_dir(config).resolve()
    began = time.time()
    lock = folder / f".{source.name}-{_digest(str(source), str(config.data.model_dump()))}.lock"
    with ExitStack() as stack:
        _enter(stack, lock)
        if (downloading := source / DOWNLOAD_LOCK).exists():
            with suppress(OSError):  # a folder that cannot be written has no downloads
                stack.enter_context(locked(downloading))
        copied = Path(os.fsdecode(lock.read_bytes()) or "/nowhere")
        if lock.stat().st_mtime >= began and copied.is_dir():
            return copied  # checked by the process that this one waited for
        sizes = _sizes(source, _files(config, source))
        target = folder / f"{source.name}-{_digest(str(source), str(sorted(sizes.items())))}"
        if not _holds(target, sizes):
            _copy(source, target, sizes)
        lock.write_bytes(os.fsencode(target))
    return target


def _enter(stack: ExitStack, lock: Path) -> None:
    try:
        stack.enter_context(locked(lock))
    except OSError as error:
        what = f"cannot take the lock {lock.name}: {error.strerror}; choose another folder"
        raise config_error(f"system.stage_dir {lock.parent}", what) from error


def _digest(*words: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join(words))).hexdigest()[:12]


def _files(config: RunConfig, root: Path) -> Iterator[str]:
    """The files in `root` that the configuration reads, by their paths in it."""
    data, splits = config.data, list(dict.fromkeys((config.data.train_split, config.data.val_split)))
    if kind_of(data) == "shards":
        yield from (name for split in splits for name in find_shards(config, split))
    elif kind_of(data) == "folder":
        classes = class_names(config)
        yield from (f"{split}/{file}" for split in splits for file, _ in find_images(root / split, classes))
    else:
        yield from walk_files(root)


def _sizes(root: Path, files: Iterable[str]) -> dict[str, int]:
    """The sizes of files in `root` by their paths in it; ConfigError where one cannot be read."""
    with readable():
        return {name: os.stat(f"{root}/{name}").st_size for name in files}  # noqa: PTH116 - a million of them


def _holds(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether all files are in `folder`, with these sizes: temporary folders may be purged of old files."""
    try:
        return all(os.stat(f"{folder}/{name}").st_size == size for name, size in sizes.items())  # noqa: PTH116
    except OSError:
        return False


def _copy(source: Path, target: Path, sizes: dict[str, int]) -> None:
    partial_copy = target.with_name(f".{target.name}.{os.uname().nodename}.partial")
    for leftover in (partial_copy, target):
        shutil.rmtree(leftover, ignore_errors=True)
    needed = sum(sizes.values())
    _check_space(target.parent, source, needed)
    try:
        try:
            for folder in sorted({(partial_copy / name).parent for name in sizes}):
                folder.mkdir(parents=True, exist_ok=True)
            _in_threads(
                COPIES_AT_ONCE, lambda name, _: shutil.copyfile(source / name, partial_copy / name), sizes
            )
            partial_copy.rename(target)
        finally:
            shutil.rmtree(partial_copy, ignore_errors=True)
    except OSError as error:
        what = f"cannot take {source} ({needed:,} bytes): {reason(error, target, needed)}"
        raise config_error(str(target.parent), what) from error


def _check_space(folder: Path, source: Path | str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"has {free:,} bytes left, and {source} needs {needed:,}; choose another system.stage_dir"
        raise config_error(str(folder), what)


def _fetch_all(config: RunConfig, address: str, folder: Path) -> Path:
    """The folder with all shards of both splits; each is downloaded unless it is there, and renamed to its
    name when it is complete.
    """
    target = folder / f"{address.rpartition('/')[2]}-{_digest(address)}"
    names = [name for split in (config.data.train_split, config.data.val_split) for name in expand(split)]
    for name in names:
        if any(sign in name for sign in "*?[") or ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise config_error(
                f"pattern '{name}'", f"cannot name shards of {address}: name them with braces, {{0000..0127}}"
            )
    with write_errors(target):
        target.mkdir(exist_ok=True)
    with ExitStack() as stack:
        _enter(stack, target / ".lock")
        for leftover in target.rglob(".*.tmp"):
            leftover.unlink()
        missing = [name for name in dict.fromkeys(names) if not (target / name).is_file()]
        _in_threads(DOWNLOADS_AT_ONCE, partial(_fetch, address, target), missing)
    return target


def _in_threads(threads: int, work: Callable[[str, Event], object], names: Iterable[str]) -> None:
    """Calls `work` for each name; the first error, or a signal, ends all at once.

    The event that `work` gets is set then, and no thread is waited for: a silent server takes minutes.
    """
    ended = Event()
    # of daemons: Python waits at its exit for those of concurrent.futures
    with ThreadPool(threads) as pool:
        try:
            for _ in pool.imap_unordered(lambda name: work(name, ended), names):
                pass
        finally:
            ended.set()


def _fetch(address: str, folder: Path, name: str, ended: Event) -> None:
    url, path = f"{address}/{name}", folder / name
    for attempt in range(ATTEMPTS):
        if ended.wait(PAUSE_S * attempt):
            return None
        try:
            return download(url, path, partial(_check_space, path.parent, url), ended, sync=False)
        except HTTPError as error:
            why = f"{error.code} {error.reason}"
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            why = reason(error, path) if isinstance(error, OSError) else str(error)
            if disk_error(error) is not None:
                break
    raise config_error(url, f"cannot be fetched to {folder}: {why}")
