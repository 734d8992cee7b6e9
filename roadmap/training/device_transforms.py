"""Augmentation on the device by the parameters that come with a batch: without a generator, without reading
from the device, never image by image, and with few operators, for each takes microseconds of the training
thread.

RandAugment changes all images that drew an operation of a kind at once. Each operation gives the integer
pixel values of timm's on Pillow's images, except auto-contrast where a value should be an exact integer:
Pillow rounds its factor first and may fall below it, so the brightest pixel of an image of values 0 to 25
becomes 254 there, and 255 here. Rotation, shear and translation interpolate by
`recipe.train_interpolation`: bilinear and nearest as Pillow does; bicubic with PyTorch's kernel, whose
parameter is -0.75 where that of Pillow's transforms is -1, so its edges are a little softer.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional

from roadmap.config import RunConfig
from roadmap.data.augmentation import KIND_OF, Batch, Counts, Erasing, Operations, randaugment_of
from roadmap.data.loader import WHITE, build_transform
from roadmap.errors import config_error

SAMPLING = {Resampling.NEAREST: "nearest", Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's gray of a color, exact in single precision
SLACK = 1 / 1024  # pixel values by which interpolation in single precision may fall short of an integer


class RandAugment:
    """timm's RandAugment of float images (N, C, H, W) of integer pixel values, 0 to 255, on a device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        ops = randaugment_of(build_transform(config, True)).ops
        unknown = sorted({op.aug_fn.__name__ for op in ops} - KIND_OF.keys())
        if unknown:
            what = f"has {', '.join(unknown)}, which is unavailable on a device; --set recipe.pipeline=pillow"
            raise config_error(f"recipe.randaugment '{config.recipe.randaugment}'", what)
        settings = ops[0].kwargs
        self.fill = torch.tensor(settings["fillcolor"], dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.sampling = SAMPLING[settings["resample"]]
        luma = (1.0,) if config.model.in_chans == 1 else LUMA
        self.luma = torch.tensor(luma, device=device).view(1, -1, 1, 1)
        self.levels = torch.arange(256.0, device=device)

    def __call__(self, images: Tensor, drawn: Operations) -> Tensor:
        """The images, changed in place, each by what was drawn for it."""
        groups = [size for counts in drawn.counts for size in counts.groups]
        parts = zip(torch.split(drawn.rows, groups), torch.split(drawn.arguments, groups), strict=True)
        of_layers = [counts.table for counts in drawn.counts]
        tables = torch.split(drawn.tables.to(images.dtype), of_layers)
        for counts, of_layer in zip(drawn.counts, tables, strict=True):
            for change in (self._move, self._map, self._blend):
                rows, arguments = next(parts)
                if len(rows):
                    changed = change(images.index_select(0, rows), counts, arguments, of_layer)
                    images.index_copy_(0, rows, changed)
        return images

    def _move(self, images: Tensor, _: Counts, matrices: Tensor, __: Tensor) -> Tensor:
        return affine(images, matrices, self.fill, self.sampling)

    def _map(self, images: Tensor, counts: Counts, _: Tensor, tables: Tensor) -> Tensor:
        """Replaces each pixel value by a table's; an image and channel of auto-contrast and of equalize has
        one of its own.
        """
        pixels = images.flatten(2)
        values = pixels.to(torch.int64)
        equalized = values[counts.auto_contrast : counts.auto_contrast + counts.equalize]
        found = [
            _auto_contrast(pixels[: counts.auto_contrast], self.levels),
            _equalize(equalized, self.levels),
            tables[:, None].expand(-1, images.shape[1], -1),
        ]
        return torch.cat(found).gather(2, values).view(images.shape)

    def _blend(self, images: Tensor, counts: Counts, arguments: Tensor, _: Tensor) -> Tensor:
        """From an image's mean gray value, its grayscale image, or itself smoothed, at factor 0, through the
        image, at 1, and beyond.
        """
        grayed, pixels = counts.contrast + counts.color, images[0, 0].numel()
        gray = (images[:grayed] * self.luma).sum(1, keepdim=True).add_(0.5).floor_()  # as Pillow rounds
        flat = gray[: counts.contrast]
        total = flat.sum((1, 2, 3), keepdim=True, dtype=torch.int64)
        flat.copy_(total.add_(pixels // 2).div_(pixels, rounding_mode="floor"))
        sharpened = images[grayed:]
        start = torch.cat([gray.expand(-1, images.shape[1], -1, -1), sharpened])
        inner = start[grayed:, :, 1:-1, 1:-1]  # Pillow leaves the border as it is
        smooth = functional.avg_pool2d(sharpened, 3, stride=1, divisor_override=1).add_(inner, alpha=4)
        inner.copy_(_truncated(smooth.div_(13).add_(0.5)))
        return _truncated(images.sub_(start).mul_(arguments[:, 0].view(-1, 1, 1, 1)).add_(start))


class DeviceTransform:
    """What is left to the device: under `recipe.pipeline: tensor` RandAugment, if any, and normalization; in
    both pipelines erasing.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        recipe = config.recipe
        self.tensors, self.erase_mode = recipe.pipeline == "tensor", recipe.erase_mode
        self.augment = RandAugment(config, device) if self.tensors and recipe.randaugment else None
        self.changes = self.tensors or recipe.random_erasing > 0 or recipe.mixes  # mixing is in place
        self.mean, self.std = (
            torch.tensor([WHITE * value for value in values], device=device).view(1, -1, 1, 1)
            for values in (config.data.mean, config.data.std)
        )

    def __call__(self, batch: Batch) -> Tensor:
        """The batch's images, augmented and normalized, and free to be mixed in place; the batch stays as it
        is.
        """
        images = batch.images.clone(memory_format=torch.preserve_format) if self.changes else batch.images
        if self.tensors:
            if self.augment is not None and batch.operations is not None:
                images = self.augment(images, batch.operations)
            images.sub_(self.mean).div_(self.std)
        if batch.erasing is not None:
            erase(images, batch.erasing, self.erase_mode)
        return images


def erase(images: Tensor, drawn: Erasing, mode: str) -> Tensor:
    """The images (N, C, H, W), changed in place: their boxes are filled as in timm's modes, with 0 for
    `const`, a random color for each box for `rand`, and noise for `pixel`.
    """
    channels, height, width = images.shape[1:]
    most = drawn.boxes.shape[1]
    places = torch.arange(max(height, width), device=images.device)
    first, end = torch.split(
        drawn.boxes.view(-1, most, 2, 2), 1, dim=3
    )  # of rows and of columns, (R, most, 2, 1)
    rows, columns = ((places >= first) & (places < end)).unbind(2)
    inside = rows[..., :height, None] & columns[..., None, :width]  # (R, most, H, W)
    if mode == "pixel":
        fill = normal(drawn.keys, 1, channels, height, width)  # boxes of an image that overlap agree
    elif mode == "rand":
        fill = normal(drawn.keys, most, channels, 1, 1)
    else:
        fill = images.new_zeros(1, 1, 1, 1, 1)
    part = images.index_select(0, drawn.rows)
    for number, color in enumerate(fill.expand(-1, most, -1, -1, -1).unbind(1)):
        part = torch.where(inside[:, number, None], color.to(part.dtype), part)
    return images.index_copy_(0, drawn.rows, part)


def normal(keys: Tensor, *shape: int) -> Tensor:
    """Standard normal numbers (len(keys), *shape), functions of an image's key (of 32 bits) and the place
    alone: a generator's would depend on the other images of the batch.
    """
    bits = _hash(_hashed_places(math.prod(shape), keys.device) ^ keys[:, None])
    # an odd multiple of 2**-23 between -1 and 1, which is exact in single precision
    uniform = (bits >> 9).to(torch.float32).mul_(2.0**-22).add_(2.0**-23 - 1)
    return torch.erfinv(uniform).mul_(math.sqrt(2)).view(-1, *shape)


@lru_cache(maxsize=1)
def _hashed_places(count: int, device: torch.device) -> Tensor:
    """The numbers from 0 on, hashed: the same for each batch."""
    return _hash(torch.arange(count, device=device))


def _hash(numbers: Tensor) -> Tensor:
    """Maps the numbers of 32 bits (as int64) one to one to unrelated ones."""
    for _ in range(2):
        numbers = (numbers >> 16).bitwise_xor_(numbers).mul_(0x45D9F3B).bitwise_and_(0xFFFFFFFF)
    return (numbers >> 16).bitwise_xor_(numbers)


def affine(images: Tensor, matrices: Tensor, fill: Tensor, sampling: str) -> Tensor:
    """Images (N, C, H, W) moved each by its matrix (N, 6), from the centers of pixels to the coordinates of
    `grid_sample`; what comes from outside has the color `fill` (1, C, 1, 1).
    """
    height, width = images.shape[-2:]
    y, x = _centers(height, images.device), _centers(width, images.device)
    of_x, of_y, shift = matrices.view(-1, 1, 1, 2, 3).unbind(-1)  # (N, 1, 1, 2)
    grid = of_x * x + (of_y * y.unsqueeze(1) + shift)  # (N, H, W, 2)
    moved = functional.grid_sample(images, grid, mode=sampling, padding_mode="border", align_corners=False)
    inside = ((grid >= -1) & (grid < 1)).all(-1)
    return torch.where(inside[:, None], _truncated(moved.add_(SLACK)), fill)


@lru_cache(maxsize=2)
def _centers(size: int, device: torch.device) -> Tensor:
    """Where pixels have their centers, (size, 1)."""
    return torch.arange(0.5, size, device=device)[:, None]


def _truncated(values: Tensor) -> Tensor:
    """Pixel values as Pillow stores them, in place: fractions are cut off."""
    return values.clamp_(0, WHITE).floor_()


def _auto_contrast(pixels: Tensor, levels: Tensor) -> Tensor:
    """For each image and channel of `pixels` (N, C, H * W), which value each of the 256 becomes."""
    low, high = pixels.aminmax(dim=2, keepdim=True)
    table = (levels - low).mul_(WHITE).div_((high - low).clamp_(min=1)).floor_()
    return torch.where(high > low, table, levels)


def _equalize(values: Tensor, levels: Tensor) -> Tensor:
    """The same of integer values (N, C, H * W)."""
    pixels, one = values.shape[2], values.new_ones(1, dtype=torch.int32)
    histogram = values.new_zeros(*values.shape[:2], len(levels), dtype=torch.int32)
    histogram.scatter_add_(2, values, one.expand_as(values))
    below = histogram.cumsum(2).sub_(histogram)
    # as many pixels a level as there are without those of the brightest value
    step = (below * (below < pixels)).amax(2, keepdim=True).div_(WHITE, rounding_mode="floor")
    table = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=WHITE)
    return torch.where(step > 0, table, levels)
