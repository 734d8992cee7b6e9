"""Gray levels of more than 8 bits, which Pillow clips: brought to 8 if their range is known, else refused."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS
from PIL.TiffImagePlugin import TiffImageFile

# formats whose levels end at 65535 where Pillow keeps them in 32 bits, as it did before version 11
DEEP = ("PNG", "PPM")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """A copy of the image in Pillow's `mode`, one of 8 bits; OSError if its levels' range is unknown."""
    return in_8_bits(image).convert(mode)


def in_8_bits(image: Image.Image) -> Image.Image:
    """The image, or its gray levels by their highest 8 bits, as Pillow has colors of 16; OSError if their
    range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in DEEP):
        bits = image.tag_v2.get(BITS, (16,))[0] if isinstance(image, TiffImageFile) else 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(
            f"its gray levels are of 32 bits (mode {image.mode}), and nothing says which of them is white"
        )
    return image
