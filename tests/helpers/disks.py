"""File systems of a test's own, in memory: full, read-only or out of inodes for real."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; where none can be mounted, the test is skipped."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of one's own needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, free: int = 0) -> Path:
    """A file that leaves `free` bytes of the file system, less than a page of which is not to be had."""
    system, filler = os.statvfs(folder), folder / "filler"
    with filler.open("ab") as file:
        file.write(bytes(max(0, system.f_bavail * system.f_frsize - free)))
    return filler
