"""What an image becomes once it is read: an image of Pillow's, or a uint8 tensor for a training that never
leaves tensors.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from roadmap.config import RunConfig
from roadmap.data.corrupt import decode
from roadmap.data.digits import Split
from roadmap.data.images import in_mode

Picture = Any  # an image of Pillow's, or a uint8 tensor (C, H, W)


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
        """The image in `file`, which is closed; Unreadable if it is not one."""
        return decode(file, self.mode, name)

    def convert(self, image: Image.Image | NDArray[np.uint8]) -> Image.Image:
        """An image that is decoded already; an array is (H, W) or (H, W, C)."""
        return in_mode(Image.fromarray(image) if isinstance(image, np.ndarray) else image, self.mode)


def image_mode(config: RunConfig) -> str:
    """What Pillow calls images of as many channels as the model takes."""
    return "L" if config.model.in_chans == 1 else "RGB"


def wants_tensors(config: RunConfig, split: Split) -> bool:
    """Whether images are tensors from the decoding on; evaluation's never are, so that accuracies compare."""
    return config.recipe.pipeline == "tensor" and split == "train"


def make_decoder(config: RunConfig, split: Split) -> Decoder:
    """What decodes the images of a split."""
    if wants_tensors(config, split):
        from roadmap.data.tensor_decoder import TensorDecoder  # needs torch

        return TensorDecoder(image_mode(config))
    return PillowDecoder(image_mode(config))
