"""What takes seconds to work out and is always the same: kept in the user's cache folder, under all that
decides it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from roadmap.files import write_atomic

FOLDER = "convnext-roadmap"


def kept(name: str, decided_by: str, make: Callable[[], str]) -> str:
    """What `make` returns, from the cache if it was made before with the same `decided_by`.

    A file that is damaged, or was made from anything else, counts for nothing; where none can be written,
    nothing is kept.
    """
    path = cache_folder() / f"{name}-{sha256(decided_by.encode()).hexdigest()[:16]}"
    with suppress(OSError, ValueError):
        digest, _, text = path.read_bytes().partition(b"\n")
        if digest.decode() == _digest(decided_by, text):
            return text.decode()
    made = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{_digest(decided_by, made.encode())}\n".encode() + made.encode())
    return made


def versions(packages: Iterable[str]) -> str:
    """Which versions of packages are installed, without importing them."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def cache_folder() -> Path:
    """Where the user has programs keep what can be made again; a relative path in XDG_CACHE_HOME does not
    count, by its standard.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / FOLDER


def _digest(decided_by: str, text: bytes) -> str:
    return sha256(sha256(decided_by.encode()).digest() + text).hexdigest()
