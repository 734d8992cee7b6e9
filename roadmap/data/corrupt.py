"""Counting unreadable images: each is named once, all processes of a loader count together, and too
many end the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from ctypes import c_uint8
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadmap.terminal import count

logger = logging.getLogger(__name__)

LEFT_OUT = -1  # the label of an image that could not be read
MAX_LISTED = 3  # images in the message that ends a run; the log has all of them


class CorruptImages(OSError):
    """More images are unreadable than `system.corrupt_images` allows; the message lists the first, and how
    to leave them out.
    """


class Corrupt:
    """The images of a dataset that could not be read, in memory that a loader's processes share.

    `name` returns an image's name, None where only the log has it. Those `beside` one another, such as of
    training and of validation, share what is allowed.
    """

    def __init__(
        self,
        length: int,
        allowed: int,
        name: Callable[[int], str] | None = None,
        beside: Corrupt | None = None,
    ) -> None:
        self.allowed = allowed
        self.name = name
        self._flags = RawArray(c_uint8, max(1, length))
        self._any = RawArray(c_uint8, 1)  # spares a search through a million flags as long as all is well
        self._all: list[Corrupt] = beside._all if beside else []
        self._all.append(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"name": None}  # it would take a whole dataset along

    def _view(self) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self._flags), dtype=np.uint8)

    def add(self, index: int, error: Exception) -> None:
        """Counts an image, and names it in the log, unless that was done before."""
        if not self._flags[index]:
            self._flags[index] = self._any[0] = 1
            logger.warning("%s%s", error, "" if self.too_many else "; it is left out")

    def state(self) -> list[int]:
        """The numbers of the images that could not be read so far, sorted."""
        found: list[int] = np.flatnonzero(self._view()).tolist() if self._any[0] else []
        return found

    def restore(self, state: Iterable[int]) -> None:
        """Counts images that are known from elsewhere; numbers that the dataset does not have are ignored."""
        for index in state:
            if 0 <= index < len(self._flags):
                self._flags[index] = self._any[0] = 1

    @property
    def count(self) -> int:
        """The number of images that could not be read so far."""
        return int(np.count_nonzero(self._view())) if self._any[0] else 0

    @property
    def too_many(self) -> bool:
        """Whether the run is to end."""
        return sum(corrupt.count for corrupt in self._all) > self.allowed

    def check(self) -> None:
        """CorruptImages if there are too many, all `beside` one another together."""
        if not self.too_many:
            return
        found = [(corrupt.name, index) for corrupt in self._all for index in corrupt.state()]
        names = [name(index) for name, index in found[:MAX_LISTED] if name]
        hint = f"; --set system.corrupt_images={len(found)} leaves {'it' if len(found) == 1 else 'these'} out"
        if names and len(found) == 1:
            raise CorruptImages(f"{names[0]} is not an image that can be read{hint}")
        which = ", ".join(names) or "the log names them"
        more = f" and {len(found) - len(names)} more" if names and len(found) > len(names) else ""
        many = f"{count(len(found), 'image')} cannot be read, system.corrupt_images lets {self.allowed} pass"
        raise CorruptImages(f"{many}: {which}{more}{hint}")
