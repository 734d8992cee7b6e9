"""Reading an image: what is damaged, gray levels of more than 8 bits, and the decoder of each pipeline."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS
from PIL.TiffImagePlugin import TiffImageFile

from roadmap.config import RunConfig
from roadmap.data.digits import Split

Picture = Any  # an image of Pillow's, or a uint8 tensor (C, H, W)
Transform = Callable[[Picture], Any]  # to a uint8 tensor (C, H, W) of the network's size
JPEG = ("JPEG", "MPO")  # Pillow's names for the format

MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # the machine lacks something, the image may be intact
# what Pillow raises
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
UNKNOWN_FORMAT = "it has no image format that is known"
# formats whose levels end at 65535 where Pillow keeps them in 32 bits, as it did before version 11
DEEP = ("PNG", "PPM")


class Unreadable(OSError):
    """An image cannot be read; the message names it."""


@contextmanager
def reading(name: str | Callable[[], str], signs: tuple[type[Exception], ...] = DAMAGED) -> Iterator[None]:
    """Raises Unreadable for errors that are signs of an unreadable image, by default those of Pillow.

    `name` may be a function where it takes time to find the image's name.
    """
    try:
        yield
    except signs as error:
        if isinstance(error, Unreadable) or (isinstance(error, OSError) and error.errno in MACHINE):
            raise
        raise Unreadable(
            f"{name if isinstance(name, str) else name()} is not an image that can be read: {error}"
        ) from error


def open_image(file: BinaryIO) -> Image.Image:
    """The image in `file` up to its header; ValueError where it is none, with a message of our own, because
    Pillow's holds an address in memory.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError(UNKNOWN_FORMAT if file.seek(0, os.SEEK_END) else "it is empty") from error


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """A copy of the image in Pillow's `mode`, one of 8 bits; OSError if its levels' range is unknown."""
    return in_8_bits(image).convert(mode)


def in_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per pixel value: of 16 bits the highest 8 are kept, where Pillow would clip gray
    levels at 255; OSError if their range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in DEEP):
        bits = image.tag_v2.get(BITS, (16,))[0] if isinstance(image, TiffImageFile) else 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(
            f"its gray levels are of 32 bits (mode {image.mode}), and nothing defines which is white"
        )
    return image


class Decoder(Protocol):
    """Makes pictures of one kind, in the channels that the model takes."""

    def decode(self, file: BinaryIO, name: str) -> Picture:
        """The image in `file`, which is closed; Unreadable if it is not one."""

    def convert(self, image: Image.Image | NDArray[np.uint8]) -> Picture:
        """An image that is decoded already; an array is (H, W) or (H, W, C).

        OSError if the range of its levels is not known.
        """


class PillowDecoder:
    """Images of Pillow's, in its `mode`."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def decode(self, file: BinaryIO, name: str) -> Image.Image:
        with reading(name), file:
            return in_mode(open_image(file), self.mode)

    def convert(self, image: Image.Image | NDArray[np.uint8]) -> Image.Image:
        return in_mode(Image.fromarray(image) if isinstance(image, np.ndarray) else image, self.mode)


def image_mode(config: RunConfig) -> str:
    """Pillow's mode for images of as many channels as the model takes."""
    return "L" if config.model.in_chans == 1 else "RGB"


def wants_tensors(config: RunConfig, split: Split) -> bool:
    """Whether images are decoded to tensors; evaluation's never are, so that accuracies compare."""
    return config.recipe.pipeline == "tensor" and split == "train"


def make_decoder(config: RunConfig, split: Split) -> Decoder:
    """The decoder of a split's images."""
    if wants_tensors(config, split):
        from roadmap.data.tensor_decoder import TensorDecoder  # needs torch

        return TensorDecoder(image_mode(config))
    return PillowDecoder(image_mode(config))
