"""Images that cannot be read: each is named once, all processes of a loader count them together, and too many end the run."""

from __future__ import annotations

import errno
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_uint8
from multiprocessing.sharedctypes import RawArray
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

logger = logging.getLogger(__name__)

LEFT_OUT = -1  # the label of an image that could not be read
NAMED = 3  # images in the message that ends a run; the log has all of them
MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # want of these says nothing of the image
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)  # what Pillow raises


class Unreadable(OSError):
    """An image cannot be read; the message names it."""


class CorruptImages(OSError):
    """More images cannot be read than `system.corrupt_images` lets pass."""


@contextmanager
def reading(name: str, signs: tuple[type[Exception], ...] = DAMAGED) -> Iterator[None]:
    """Turns the errors that are signs of an image that cannot be read, by default what Pillow raises, into Unreadable."""
    try:
        yield
    except signs as error:
        if isinstance(error, Unreadable) or (isinstance(error, OSError) and error.errno in MACHINE):
            raise
        raise Unreadable(f"{name} is not an image that can be read: {error}") from error


def decode(file: BinaryIO, mode: str, name: str) -> Image.Image:
    """The image in `file`, which is closed, in Pillow's `mode`; Unreadable if it is not one."""
    with reading(name), file:
        return Image.open(file).convert(mode)


class Corrupt:
    """Which of a data set's images could not be read, in memory that a loader's processes share."""

    def __init__(self, length: int, allowed: int) -> None:
        self.allowed = allowed
        self._flags = RawArray(c_uint8, max(1, length))
        self._any = RawArray(c_uint8, 1)  # so that nobody looks through a million flags as long as all is well

    def _view(self) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self._flags), dtype=np.uint8)

    def add(self, index: int, error: Exception) -> None:
        """Counts an image, and names it in the log, unless that was done before."""
        if not self._flags[index]:
            self._flags[index] = self._any[0] = 1
            logger.warning("%s; it is left out", error)

    @property
    def count(self) -> int:
        """How many images could not be read so far."""
        return int(np.count_nonzero(self._view())) if self._any[0] else 0

    @property
    def too_many(self) -> bool:
        """Whether the run is to end."""
        return self.count > self.allowed

    def check(self, name: Callable[[int], str] | None = None) -> None:
        """CorruptImages if there are too many; `name` says which an image is, None where only the log does."""
        if not self.too_many:
            return
        count, first = self.count, np.flatnonzero(self._view())[:NAMED].tolist()
        which = ", ".join(map(name, first)) if name else "the log names them"
        if name and count == 1:
            raise CorruptImages(f"{which} is not an image that can be read; --set system.corrupt_images=1 leaves it out")
        more = f" and {count - NAMED} more" if name and count > NAMED else ""
        raise CorruptImages(f"{count} images cannot be read, system.corrupt_images lets {self.allowed} pass: {which}{more}")
