"""torchvision's random crops and flip of uint8 images, for a batch at once and bit for bit.

torchvision resizes uint8 images with weights of 16 bits: first each row, then each column, rounding after
both. Here the same weights stand in matrices, and sums of their products are exact in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchvision import transforms  # type: ignore[import-untyped]

from roadmap.config import Interpolation, RecipeSpec
from roadmap.data.tensor_decoder import RESIZE, Crop, resized_part

MOST_BITS, LARGEST = 22, 2**15  # of a weight, and the first that is no int16
Array = NDArray[np.float64]


class Place(NamedTuple):
    """A row of cached images, and how to crop and flip what is there."""

    row: int
    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0
    flipped: int = 0


class PlaceTransform:
    """Draws how the transform of tensors would crop and flip the image in a row; all images have one height
    and width.
    """

    def __init__(self, transform: Any, height: int, width: int) -> None:
        stages = {type(stage): stage for stage in transform.transforms}
        flip = stages.get(transforms.RandomHorizontalFlip)
        self.hflip: float | None = flip.p if flip else None
        self.padding = 0
        if padded := stages.get(transforms.RandomCrop):
            self.padding = padded.padding
            canvas = torch.empty(1, height + 2 * self.padding, width + 2 * self.padding, device="meta")
            self.draw = partial(padded.get_params, canvas, padded.size)
        else:
            crop, canvas = stages[Crop].timms, torch.empty(1, height, width, device="meta")
            self.draw = partial(crop.get_params, canvas, crop.scale, crop.ratio)

    def __call__(self, row: int) -> Place:
        top, left, height, width = self.draw()
        flipped = self.hflip is not None and bool(torch.rand(1) < self.hflip)  # as torchvision draws it
        return Place(row, top - self.padding, left - self.padding, height, width, int(flipped))


class PaddedCrop:
    """Squares of `size` pixels cut from images (N, C, size, size) with black padding, and flipped."""

    def __init__(self, padding: int, size: int) -> None:
        self.padding = padding
        self.size = size

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """uint8 images (N, C, size, size); `places` (N, 6) are those of the images."""
        _, top, left, _, _, flipped = (column[:, None] for column in places.unbind(1))
        padded = pad(images, [self.padding] * 4)
        pixels = torch.arange(self.size, device=images.device) + self.padding
        down, across = top + pixels, left + torch.where(flipped > 0, pixels.flip(0), pixels)
        rows = torch.arange(len(images), device=images.device)
        return padded[rows[:, None, None], :, down[:, :, None], across[:, None]].permute(0, 3, 1, 2)


class BatchCrop:
    """Images (N, C, height, width) cropped and flipped each by its place, and resized to `size`."""

    def __init__(self, recipe: RecipeSpec, height: int, width: int, size: int, device: torch.device) -> None:
        self.image_size = height, width
        self.size = [size, size]
        self.interpolation = RESIZE[recipe.train_interpolation]
        # MPS has no double precision
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        weights = resize_weights(max(height, width), size, recipe.train_interpolation)
        self.weights = torch.tensor(weights, dtype=torch.float32, device=device)

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """uint8 images (N, C, size, size); `places` (N, 6) are those of the images."""
        _, top, left, heights, widths, flipped = places.unbind(1)
        count, channels, height, width = images.shape
        across = self._matrices(left, widths, width)
        across = torch.where(flipped[:, None, None] > 0, across.flip(1), across)
        down = self._matrices(top, heights, height)
        rows = images.to(self.dtype).reshape(count, channels * height, width) @ across.mT
        columns = down[:, None] @ _rounded(rows).view(count, channels, height, -1)
        return _rounded(columns).to(torch.uint8)

    def _matrices(self, start: Tensor, length: Tensor, size: int) -> Tensor:
        """What each pixel of the result is made of, (N, pixels of the result, `size`)."""
        weights = self.weights.index_select(0, length)
        # weights before the start are taken from behind the end, where they are 0
        shifted = (torch.arange(size, device=start.device) - start[:, None]) % weights.shape[2]
        return weights.gather(2, shifted[:, None].expand(-1, weights.shape[1], -1)).to(self.dtype)

    def agrees_with_torchvision(self) -> bool:
        """Whether it makes of noise what torchvision makes of it on the CPU."""
        height, width = self.image_size
        noise = np.random.default_rng(0).integers(256, size=(1, 1, height, width), dtype=np.uint8)
        image, device = torch.from_numpy(noise), self.weights.device
        sizes = ((height, width), (height // 2 + 1, width), (height, width // 3 + 1), (1, 1))
        boxes = [(height - high, width - wide, high, wide) for high, wide in sizes]
        places = torch.tensor([Place(0, *box) for box in boxes], device=device)
        found = self(image.to(device).expand(len(boxes), -1, -1, -1), places)
        expected = [resized_part(image[0], box, self.size, self.interpolation) for box in boxes]
        return torch.equal(found.cpu(), torch.stack(expected))


def _rounded(sums: Tensor) -> Tensor:
    return sums.add_(0.5).floor_().clamp_(0, 255)


def resize_weights(longest: int, size: int, interpolation: Interpolation) -> Array:
    """The weights by which torchvision resizes a line of 0 to `longest` uint8 pixels to `size` with
    antialiasing: (lengths, pixels of the result, pixels of the line).

    Computed as torchvision does, operation by operation, so that they round alike.
    """
    lengths = np.arange(longest + 1)[:, None]
    scale, pixels = lengths / size, np.arange(size) + 0.5
    weights = np.zeros((longest + 1, size, longest))
    if interpolation == "nearest":
        nearest = np.floor(pixels.astype(np.float32) * scale.astype(np.float32)).astype(np.int64)
        np.put_along_axis(weights, np.minimum(nearest, np.maximum(lengths - 1, 0))[..., None], 1.0, 2)
        return weights
    radius, kernel = KERNELS[interpolation]
    spread = np.maximum(scale, 1.0)
    support, center = radius * spread, scale * pixels
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), lengths)
    taps = [
        np.where(first + tap < end, kernel((first + tap - center + 0.5) * (1.0 / spread)), 0.0)
        for tap in range(2 * math.ceil(radius * spread.max()) + 1)
    ]
    total = np.zeros_like(center)
    for part in taps:  # in order, for the sum depends on it
        total += part
    quantized = _quantized(np.stack(taps, axis=2) / np.where(total == 0, 1.0, total)[..., None])
    for tap in range(len(taps)):
        at = np.minimum(first + tap, longest - 1)[..., None]  # beyond the end the weight is 0
        found = np.take_along_axis(weights, at, 2) + quantized[..., tap, None]
        np.put_along_axis(weights, at, found, 2)
    return weights


def _quantized(weights: Array) -> Array:
    """The weights (lengths, pixels, taps) as those of 16 bits, with as many digits as a length's largest
    allows.
    """
    largest = weights.max((1, 2), keepdims=True)
    fitting = [0.5 + largest * 2.0 ** (bits + 1) < LARGEST for bits in range(MOST_BITS)]
    unit: Array = 2.0 ** np.sum(fitting, axis=0)
    quantized: Array = np.trunc(weights * unit + np.copysign(0.5, weights)) / unit
    return quantized


def _triangle(x: Array) -> Array:
    triangle: Array = np.maximum(1 - np.abs(x), 0)
    return triangle


def _cubic(x: Array) -> Array:
    x, a = np.abs(x), -0.5
    inner: Array = ((a + 2) * x - (a + 3)) * x * x + 1
    outer: Array = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


KERNELS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "bilinear": (1, _triangle),
    "bicubic": (2, _cubic),
}
