"""Clear errors for full and read-only disks, also where a library hides the system's error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roadmap.errors import relative

FILE_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class DiskError(OSError):
    """A file cannot be written because of its file system; `strerror` names it and the cause."""

    def __str__(self) -> str:
        return (
            f"{relative(Path(self.filename))} cannot be written: {self.strerror}"
            if self.filename
            else str(self.strerror)
        )


def megabytes(size: int) -> str:
    """A number of bytes, in MB if it is large."""
    return f"{size:,} bytes" if size < 100_000 else f"{size / 1e6:,.1f} MB"


def file_system(path: Path) -> Path:
    """The mount point of the file system that holds `path`, or would hold it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path


def free_space(path: Path) -> int:
    """The bytes that this user may add to the file system of `path`; disk quotas are unknown."""
    return shutil.disk_usage(file_system(path)).free


def disk_error(error: BaseException, path: Path | None = None, needed: int | None = None) -> DiskError | None:
    """A DiskError for `error` if its cause is a full or read-only file system, else None.

    `path` is the file that was being written, by default the one that the error names, and `needed` its size.
    """
    beneath = system_error(error)
    if beneath is None or beneath.errno not in FILE_SYSTEM_ERRORS:
        return None
    if isinstance(beneath, DiskError):
        return beneath
    path = path or (
        Path(os.fsdecode(beneath.filename)) if isinstance(beneath.filename, str | bytes) else None
    )
    if path is None:
        return DiskError(beneath.errno, beneath.strerror)
    return DiskError(beneath.errno, _lack(beneath.errno, file_system(path), needed), str(path))


def reason(error: OSError, path: Path, needed: int | None = None) -> str:
    """Why `path`, of `needed` bytes, could not be written, without its name."""
    return (disk_error(error, path, needed) or error).strerror or str(error)


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error that `error` is or arose from, which libraries hide behind their own."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            return found
        found = found.__cause__ or found.__context__
    return None


def _lack(code: int, where: Path, needed: int | None) -> str:
    if code == errno.EROFS:
        return f"{where} is mounted read-only"
    wanted = f"needed {megabytes(needed)}, " if needed is not None else ""
    if code == errno.EDQUOT:
        return f"the disk quota on {where} is used up ({wanted}free unknown)"
    system = os.statvfs(where)
    if system.f_files and not system.f_favail:
        return f"no space left on {where} for another file (all {system.f_files:,} inodes are taken)"
    return f"no space left on {where} ({wanted}free {megabytes(free_space(where))})"


@contextmanager
def explaining(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raises a DiskError if `path`, of `needed` bytes, cannot be written to a full or read-only file system.

    Any other error of the operating system replaces the library's error that hides it. The removal of what
    was written belongs inside, since the message gives the free space at the end.
    """
    try:
        yield
    except Exception as error:
        beneath = disk_error(error, path, needed) or system_error(error)
        if beneath is None or beneath is error:
            raise
        raise beneath from error
