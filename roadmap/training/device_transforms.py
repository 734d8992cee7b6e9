"""Augmentation on the device by the parameters that come with a batch: without a generator, without reading
from the device, and never image by image.

RandAugment applies each operation to all images that drew it. Each gives the integer pixel values of timm's
on Pillow's images, except auto-contrast where a value should be an exact integer: Pillow rounds its factor
first and may fall below it, so the brightest pixel of an image of values 0 to 25 becomes 254 there, and 255
here. Rotation, shear and translation interpolate by `recipe.train_interpolation`: bilinear and nearest as
Pillow does; bicubic with PyTorch's kernel, whose parameter is -0.75 where that of Pillow's transforms is -1,
so its edges are a little softer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import equalize  # type: ignore[import-untyped]

from roadmap.config import RunConfig
from roadmap.data.augmentation import AFFINE, MATRICES, Batch, Erasing, Operations, randaugment_of
from roadmap.data.loader import WHITE, build_transform
from roadmap.errors import config_error

SAMPLING = {Resampling.NEAREST: "nearest", Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
LUMA, HALF, UNIT = (19595.0, 38470.0, 7471.0), 32768.0, 65536.0  # Pillow's gray of a color, in 65536ths
SLACK = 1 / 1024  # pixel values by which interpolation in single precision may fall short of an integer


class RandAugment:
    """timm's RandAugment of float images (N, C, H, W) of integer pixel values, 0 to 255, on a device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        ops = randaugment_of(build_transform(config, True)).ops
        unknown = sorted({op.aug_fn.__name__ for op in ops} - APPLY.keys() - MATRICES.keys())
        if unknown:
            what = f"has {', '.join(unknown)}, which is unavailable on a device; --set recipe.pipeline=pillow"
            raise config_error(f"recipe.randaugment '{config.recipe.randaugment}'", what)
        settings = ops[0].kwargs
        self.fill = torch.tensor(settings["fillcolor"], dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.sampling = SAMPLING[settings["resample"]]

    def __call__(self, images: Tensor, drawn: Operations) -> Tensor:
        """The images, changed in place, each by what was drawn for it."""
        start = 0
        for name, count in zip(drawn.names, drawn.counts, strict=True):
            part = slice(start, start + count)
            rows = drawn.rows[part]
            changed = self._apply(name, images.index_select(0, rows), drawn.arguments[part])
            images.index_copy_(0, rows, changed)
            start = part.stop
        return images

    def _apply(self, name: str, images: Tensor, arguments: Tensor) -> Tensor:
        if name == AFFINE:
            return affine(images, arguments, self.fill, self.sampling)
        return APPLY[name](images, arguments[:, :1, None, None])


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
    top, bottom, left, right = drawn.boxes[..., None, None].unbind(2)
    y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # (R, most, H, W)
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
    places = torch.arange(math.prod(shape), device=keys.device)
    bits = _hash(_hash(places) ^ keys[:, None])
    # an odd multiple of 2**-23, which is exact in single precision
    uniform = ((bits >> 9) * 2 + 1 - 2**23).to(torch.float32) * 2.0**-23
    return torch.erfinv(uniform).mul_(math.sqrt(2)).view(-1, *shape)


def _hash(numbers: Tensor) -> Tensor:
    """Maps the numbers of 32 bits (as int64) one to one to unrelated ones."""
    for _ in range(2):
        numbers = ((numbers >> 16 ^ numbers) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers >> 16 ^ numbers


def affine(images: Tensor, matrices: Tensor, fill: Tensor, sampling: str) -> Tensor:
    """Images (N, C, H, W) moved each by its matrix (N, 6); what comes from outside has the color
    `fill` (1, C, 1, 1).
    """
    height, width = images.shape[-2:]
    y, x = (torch.arange(size, device=images.device) + 0.5 for size in (height, width))
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    columns, rows = a * x + b * y[:, None] + c, d * x + e * y[:, None] + f
    grid = torch.stack([columns * (2 / width) - 1, rows * (2 / height) - 1], dim=-1)
    moved = functional.grid_sample(images, grid, mode=sampling, padding_mode="border", align_corners=False)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return torch.where(inside[:, None], _truncated(moved.add_(SLACK)), fill)


def _truncated(values: Tensor) -> Tensor:
    """Pixel values as Pillow stores them, in place: fractions are cut off."""
    return values.clamp_(0, WHITE).floor_()


def _gray(images: Tensor) -> Tensor:
    """Each pixel as Pillow's gray, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (weight * images[:, channel, None] for channel, weight in enumerate(LUMA))
    return torch.floor((red + green + blue + HALF) / UNIT)


def _blend(images: Tensor, start: Tensor, factor: Tensor) -> Tensor:
    """From `start`, at factor 0, through the image, at 1, and beyond."""
    return _truncated(start + factor * (images - start))


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    gray = _gray(images).to(torch.int64)
    count = gray[0].numel()
    mean = (2 * gray.sum((1, 2, 3), keepdim=True) + count) // (2 * count)
    return _blend(images, mean.to(images.dtype), factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    smooth = images.clone()  # Pillow leaves the border as it is
    inner = images[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = _truncated(
        (9 * functional.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13 + 0.5
    )
    return _blend(images, smooth, factor)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, _truncated((images - low) * WHITE / (high - low).clamp(min=1)), images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    equal: Tensor = equalize(images.to(torch.uint8))
    return equal.to(images.dtype)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = torch.exp2((8 - bits).clamp(min=0))
    return torch.floor(images / step) * step


# By the names of timm's functions: of images and their arguments (N, 1, 1, 1).
APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda images, _: WHITE - images,
    "posterize": _posterize,
    "solarize": lambda images, threshold: torch.where(images < threshold, images, WHITE - images),
    "solarize_add": lambda images, add: torch.where(images < 128, (images + add).clamp(max=WHITE), images),
    "color": lambda images, factor: _blend(images, _gray(images), factor),
    "contrast": _contrast,
    "brightness": lambda images, factor: _blend(images, torch.zeros_like(images), factor),
    "sharpness": _sharpness,
}
