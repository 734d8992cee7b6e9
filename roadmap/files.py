"""Files that survive a kill at any moment: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roadmap.disk import explaining, reason
from roadmap.errors import config_error, relative

DOWNLOAD_TIMEOUT_S = 60.0


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the file system supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises a ConfigError with one clear message if `path` cannot be written inside."""
    try:
        yield
    except OSError as error:
        raise config_error(relative(path), f"cannot be written: {reason(error, path)}") from error


@contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which is created if needed; it ends with the process.

    `waiting` is called before waiting for another process. OSError if `path` cannot be written or its file
    system has no locks, as some parallel ones.
    """
    with path.open("ab") as file:  # NFS locks only files that are open for writing, so no folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # closing is not enough if a process was forked meanwhile, which inherits the file
            fcntl.flock(file, fcntl.LOCK_UN)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def leftovers(folder: Path, name: str) -> list[Path]:
    """The temporary files that killed processes left in `folder` for files whose name matches the regular
    expression `name`.
    """
    pattern = re.compile(rf"\.(?:{name})\.[^/]+\.\d+\.tmp")
    return [path for path in folder.glob(".*.tmp") if pattern.fullmatch(path.name)]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes all of `content` to `path`, or raises DiskError on a full disk and leaves `path` as it was."""
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
    """Writes `text` to `path` unless `path` exists, and returns whether it did.

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
        # names of files may not be valid text
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Writes all of `document` to `path` as JSON, or nothing."""
    write_atomic(path, json.dumps(document, indent=2) + "\n")


def download(
    url: str,
    path: Path,
    check_size: Callable[[int], object] = lambda size: None,
    stop: threading.Event | None = None,
    sync: bool = True,
) -> None:
    """Downloads all of `url` to `path`, or nothing; OSError or HTTPException if that fails.

    `check_size` is called with the announced number of bytes, 0 if unknown, and may raise. `stop` ends the
    download from another thread. Without `sync`, a power failure may truncate the file.
    """
    from urllib.request import Request, urlopen  # takes 50 ms, and few commands download anything

    # another thread of this process may still be writing its own temporary file
    temporary = temporary_path(path).with_suffix(f".{threading.get_ident()}.tmp")
    # hosts refuse urllib's own User-Agent
    with urlopen(Request(url, headers={"User-Agent": "torch.hub"}), timeout=DOWNLOAD_TIMEOUT_S) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_size(size)
        with explaining(path, size):
            try:
                received = 0
                with temporary.open("wb") as file:
                    while chunk := answer.read1(1 << 20):  # returns what has arrived, however slow the server
                        if stop is not None and stop.is_set():
                            return
                        received += file.write(chunk)
                    if size and received != size:
                        raise OSError(f"the connection broke after {received:,} of {size:,} bytes")
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


class JsonLines:
    """A log of one JSON object per line, which can be truncated to its length at a checkpoint.

    DiskError if it cannot be written.
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
        """Truncates the log to `offset` bytes."""
        self._file.truncate(offset)
        self._file.seek(offset)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line that other processes can read at once."""
        line = json.dumps(record).encode() + b"\n"
        with explaining(self.path, len(line)):
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with explaining(self.path):  # writes a line again that did not fit
            self._file.close()


def read_bytes(path: Path, tail_bytes: int | None = None) -> bytes:
    """A file's content, or its last `tail_bytes`; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            if tail_bytes is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail_bytes))
            return file.read()
    except OSError:
        return b""


def read_json_lines(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """The records of a log, or those in its last `tail_bytes`; none if it cannot be read.

    A truncated line, which is being written or was cut off by a kill, is skipped.
    """
    lines = read_bytes(path, tail_bytes).split(b"\n")
    return [record for line in lines if isinstance(record := _parse(line), dict)]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
