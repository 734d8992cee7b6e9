"""Images that cannot be read: each is named once, all processes of a loader count them together, and too many
end the run.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_uint8
from multiprocessing.sharedctypes import RawArray
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from roadmap.data.images import in_mode
from roadmap.terminal import count

logger = logging.getLogger(__name__)

LEFT_OUT = -1  # the label of an image that could not be read
MAX_LISTED = 3  # images in the message that ends a run; the log has all of them
MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # want of these says nothing of the image
# what Pillow raises
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class Unreadable(OSError):
    """An image cannot be read; the message names it."""


class CorruptImages(OSError):
    """More images cannot be read than `system.corrupt_images` lets pass; the message says which, and how to
    leave them out.
    """


@contextmanager
def reading(name: str | Callable[[], str], signs: tuple[type[Exception], ...] = DAMAGED) -> Iterator[None]:
    """Turns the errors that are signs of an image that cannot be read, by default what Pillow raises, into
    Unreadable.

    `name` may be a function where it takes time to say what the image is called.
    """
    try:
        yield
    except signs as error:
        if isinstance(error, Unreadable) or (isinstance(error, OSError) and error.errno in MACHINE):
            raise
        raise Unreadable(
            f"{name if isinstance(name, str) else name()} is not an image that can be read: {error}"
        ) from error


def decode(file: BinaryIO, mode: str, name: str) -> Image.Image:
    """The image in `file`, which is closed, in Pillow's `mode`; Unreadable if it is not one."""
    with reading(name), file:
        return in_mode(open_image(file), mode)


def open_image(file: BinaryIO) -> Image.Image:
    """The image in `file` as far as its header; ValueError in words of its own where it is none, for Pillow's
    hold an address in memory.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError(
            "it has no image format that is known" if file.seek(0, os.SEEK_END) else "it is empty"
        ) from error


class Corrupt:
    """Which of a data set's images could not be read, in memory that a loader's processes share.

    `name` says which an image is, None where only the log does. Those `beside` one another, such as of
    training and of validation, share what is allowed.
    """

    def __init__(
        self,
        length: int,
        allowed: int,
        name: Callable[[int], str] | None = None,
        beside: Corrupt | None = None,
    ) -> None:
        self.allowed, self.name = allowed, name
        self._flags = RawArray(c_uint8, max(1, length))
        # so that nobody looks through a million flags as long as all is well
        self._any = RawArray(c_uint8, 1)
        self._all: list[Corrupt] = beside._all if beside else []
        self._all.append(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"name": None}  # it would take a whole data set along

    def _view(self) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self._flags), dtype=np.uint8)

    def add(self, index: int, error: Exception) -> None:
        """Counts an image, and names it in the log, unless that was done before; it is left out where it is
        none too many.
        """
        if not self._flags[index]:
            self._flags[index] = self._any[0] = 1
            logger.warning("%s%s", error, "" if self.too_many else "; it is left out")

    def state(self) -> list[int]:
        """The numbers of the images that could not be read so far, sorted."""
        found: list[int] = np.flatnonzero(self._view()).tolist() if self._any[0] else []
        return found

    def restore(self, state: Iterable[int]) -> None:
        """Counts images that are known from elsewhere; numbers that the data set does not have are passed
        over.
        """
        for index in state:
            if 0 <= index < len(self._flags):
                self._flags[index] = self._any[0] = 1

    @property
    def count(self) -> int:
        """How many images could not be read so far."""
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
