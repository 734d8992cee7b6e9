"""Files that survive a kill at any moment: written aside, flushed, then renamed into place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roadmap.disk import explaining, reason
from roadmap.errors import config_error, relative


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the file system knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """One clear message, a ConfigError, where `path` cannot be written inside."""
    try:
        yield
    except OSError as error:
        raise config_error(relative(path), f"cannot be written: {reason(error, path)}") from error


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Sole right to what the file `path`, made if need be, stands for; it ends with the process that has it.

    `waiting` is called before another process is waited for. OSError where the right cannot be had, for
    `path` cannot be written or its file system has no locks, as some parallel ones.
    """
    with path.open("ab") as file:  # NFS locks only what is open for writing, so no folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # closing is not enough if a process was forked meanwhile, which has the file, too
            fcntl.flock(file, fcntl.LOCK_UN)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def leftovers(folder: Path, name: str) -> list[Path]:
    """What killed processes left in `folder`, by the names that `temporary_path` gives.

    They are those for files whose name matches the regular expression `name`.
    """
    pattern = re.compile(rf"\.(?:{name})\.[^/]+\.\d+\.tmp")
    return [path for path in folder.glob(".*.tmp") if pattern.fullmatch(path.name)]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Puts `content` at `path` whole or not at all; DiskError if the disk is full, and what was there before
    stays.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = temporary_path(path)
    with explaining(path, len(content)):
        try:
            _write_synced(temporary, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def create_exclusive(path: Path, text: str) -> bool:
    """Puts `text` at `path` only if nothing is there; False if something is.

    Exactly one of many callers wins, on NFS too.
    """
    temporary = temporary_path(path)
    with explaining(path, len(text)):
        try:
            _write_synced(temporary, text)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


def _write_synced(path: Path, content: str | bytes) -> None:
    with path.open("wb") as file:
        # names of files may be no text
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Puts `document` at `path` as JSON, whole or not at all."""
    write_atomic(path, json.dumps(document, indent=2) + "\n")


class JsonLines:
    """A log of one JSON object a line, which can be cut back to where a checkpoint saw it.

    DiskError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explaining(path):
            self._file = path.open("ab")

    @property
    def offset(self) -> int:
        """The log's length in bytes, all of it on disk."""
        with explaining(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def cut(self, offset: int) -> None:
        """Forgets everything after `offset`."""
        self._file.truncate(offset)
        self._file.seek(offset)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line that others can read at once."""
        line = json.dumps(record).encode() + b"\n"
        with explaining(self.path, len(line)):
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Ends the log."""
        with explaining(self.path):  # a line that did not fit is tried once more
            self._file.close()


def read_json_lines(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """The records of a log, or those in its last `tail_bytes`; none if it cannot be read.

    A torn line, being written or cut off by a kill, is left out.
    """
    try:
        with path.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return [record for line in lines if isinstance(record := _parse(line), dict)]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
