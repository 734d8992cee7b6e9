"""Training images as uint8 tensors, from the file to the batch: torchvision's decoding and resizing,
timm's random crops.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import Resize, functional  # type: ignore[import-untyped]

from roadmap.config import RecipeSpec
from roadmap.data.images import JPEG, in_mode, open_image, reading

try:
    from torchvision.io import decode_jpeg  # type: ignore[import-untyped]
except ImportError:  # torchvision plans to remove it; Pillow has the same pixels, a little slower
    decode_jpeg = None

READ_MODES = {"L": "GRAY", "RGB": "RGB"}  # torchvision's names for Pillow's modes
RESIZE = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST_EXACT,  # Pillow's nearest
}


class TensorDecoder:
    """uint8 tensors (C, H, W), pixel after pixel in memory as resizing is fastest; their pixels are
    those of Pillow.

    torchvision decodes the JPEGs for which that holds, Pillow all else: other formats, CMYK, colors for a
    gray model, and whatever torchvision cannot read, so that errors are always Pillow's.
    """

    def __init__(self, mode: str) -> None:
        self.mode, self.channels = mode, len(mode)

    def decode(self, file: BinaryIO, name: str) -> Tensor:
        """The image in `file`, which is closed; Unreadable if it is not one."""
        with reading(name), file:
            content = file.read()
            image = open_image(io.BytesIO(content))  # its header alone
            if decode_jpeg is not None and image.format in JPEG and image.mode in ("L", self.mode):
                with suppress(RuntimeError):
                    pixels: Tensor = decode_jpeg(
                        torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=READ_MODES[self.mode]
                    )
                    return pixels
            return self.convert(image)

    def convert(self, image: Image.Image | NDArray[np.uint8]) -> Tensor:
        """An image that is decoded already; an array is (H, W) or (H, W, C)."""
        if isinstance(image, np.ndarray) and image[0].size != image.shape[1] * self.channels:
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            image = np.array(image if image.mode == self.mode else in_mode(image, self.mode))
        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        return pixels.reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1)


class Crop:
    """timm's random crop with its random numbers, resized as a tensor."""

    def __init__(self, timms: Any, interpolation: InterpolationMode) -> None:
        self.timms, self.size, self.interpolation = timms, list(timms.size), interpolation

    def __call__(self, image: Tensor) -> Tensor:
        """An image (C, H, W) of the size that the network takes."""
        box = self.timms.get_params(image, self.timms.scale, self.timms.ratio)
        return resized_part(image, box, self.size, self.interpolation)


def resized_part(
    image: Tensor, box: tuple[int, int, int, int], size: list[int], interpolation: InterpolationMode
) -> Tensor:
    """The part of an image (C, H, W) in the box of top, left, height and width, resized."""
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    part = part.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # or resizing would take twice as long
    resized: Tensor = functional.resize(part, size, interpolation=interpolation, antialias=True)
    return resized


def for_tensors(timms: Any, recipe: RecipeSpec) -> Callable[[Tensor], Tensor]:
    """timm's transform of Pillow's images as one of uint8 tensors (C, H, W), by the same random numbers,
    without RandAugment.
    """
    interpolation = RESIZE[recipe.train_interpolation]
    swaps: dict[type, Callable[[Any], list[Any]]] = {
        RandomResizedCropAndInterpolation: lambda crop: [Crop(crop, interpolation)],
        transforms.Resize: lambda resize: [Resize(resize.size, interpolation, antialias=True)],
        RandAugment: lambda _: [],
    }
    stages = [
        part for stage in timms.transforms for part in swaps.get(type(stage), lambda stage: [stage])(stage)
    ]
    transform: Callable[[Tensor], Tensor] = transforms.Compose(stages)
    return transform


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch of images (N, C, H, W), channels_last as they are, and labels (N,)."""
    images = torch.stack([image.permute(1, 2, 0) for image, _ in samples]).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in samples])
