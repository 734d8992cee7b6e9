"""The last two checkpoints of a run: intact, verified, and never the only copy while another is written."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadmap.disk import explaining, file_system, free_space, megabytes
from roadmap.errors import config_error, relative
from roadmap.files import leftovers, sync_folder, temporary_path
from roadmap.weight_files import CHECKPOINT, checkpoint_files

KEEP = 2
ENTRY_BYTES = 300  # per tensor in a file of PyTorch's, for header, name and alignment
logger = logging.getLogger(__name__)


class Checkpoints:
    """A folder of checkpoints `<iteration>-<digest>.pt`; the digest of its bytes verifies a file.

    Files of other names there, such as a user's copies, are neither read, counted nor deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """The checkpoints, newest first."""
        return checkpoint_files(self.folder)

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint and deletes all but two.

        DiskError if the disk is full; those before it stay.
        """
        path = self.folder / f"{iteration:09d}.pt"
        temporary = temporary_path(path)
        with explaining(path, state_bytes(state)):
            self.folder.mkdir(exist_ok=True)
            for partial in leftovers(self.folder, r"\d{9,}\.pt"):
                partial.unlink(missing_ok=True)
            try:
                with temporary.open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.folder / f"{iteration:09d}-{_digest(temporary)}.pt")
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(self.folder)
        for old in self.files()[KEEP:]:
            old.unlink(missing_ok=True)

    def shortage(self, size: int, saves: int) -> str | None:
        """A message if the disk has no room for the checkpoints, of `size` bytes each, that are there at once
        during `saves` saves; None if it has.

        While one is written, those before it are there, too. The space of existing files counts.
        """
        there = [path.stat().st_size for path in self.files()]
        size, files = max(there, default=size), min(KEEP + 1, len(there) + saves)
        needed, free = files * size - sum(there), free_space(self.folder)
        if needed <= free:
            return None
        checkpoints = f"{files} checkpoints of {megabytes(size)}" if files > 1 else "a checkpoint"
        where = f"{relative(self.folder)} needs {megabytes(needed)} for {checkpoints}"
        return f"{where}, and {file_system(self.folder)} has {megabytes(free)} free"

    def forget_after(self, iteration: int) -> None:
        """Deletes later checkpoints: damaged, or with their metrics lost."""
        for path in self.files():
            if _parts(path)[0] > iteration:
                path.unlink(missing_ok=True)

    def load(self) -> Iterator[dict[str, Any]]:
        """The intact checkpoints, newest first, on the CPU; a damaged one is skipped with a warning.

        OSError for one that cannot be read at the moment: it may be intact, and a run that resumed without it
        would lose what it holds.
        """
        for path in self.files():
            try:
                intact = _digest(path) == _parts(path)[1]
                state = self.read(path.name) if intact else None
            except FileNotFoundError:
                continue  # deleted meanwhile, for a newer one
            if state is None:
                logger.warning("checkpoint %s is damaged and skipped", relative(path))
                continue
            yield state

    def newest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint, None if there is none; ConfigError if one cannot be
        read at the moment.
        """
        try:
            return next(self.load(), None)
        except OSError as error:
            raise config_error(relative(self.folder), f"cannot be read: {error.strerror or error}") from error

    def read(self, name: str) -> dict[str, Any]:
        """The checkpoint in the file `name`, which is known to be intact, on the CPU: a device may
        not hold it twice.
        """
        state: dict[str, Any] = torch.load(self.folder / name, map_location="cpu", weights_only=True)
        return state | {"name": name}


def state_bytes(state: Any) -> int:
    """The approximate bytes of a state on disk: its tensors, each with its header in the file."""
    if isinstance(state, Tensor):
        return state.nbytes + ENTRY_BYTES
    values: Iterable[Any] = (
        state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    )
    return sum(map(state_bytes, values))


def _parts(path: Path) -> tuple[int, str]:
    """The iteration and the digest in the name of a checkpoint."""
    match = CHECKPOINT.fullmatch(path.name)
    assert match, path
    return int(match[1]), match[2]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
