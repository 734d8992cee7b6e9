"""RandAugment on the device: timm draws for each image, and each operation takes all images that drew it.

Each operation gives the integer pixel values of timm's on Pillow's images, except auto-contrast where a value
should be an exact integer: Pillow rounds its factor first and may fall below it, so the brightest pixel of an
image of values 0 to 25 becomes 254 there, and 255 here. Rotation, shear and translation interpolate by
`recipe.train_interpolation`: bilinear and nearest as Pillow does; bicubic with PyTorch's kernel, whose
parameter is -0.75 where that of Pillow's transforms is -1, so its edges are a little softer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Resampling
from timm.data import auto_augment
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import equalize  # type: ignore[import-untyped]

from roadmap.config import RunConfig
from roadmap.data.loader import WHITE, build_transform
from roadmap.errors import config_error
from roadmap.rng import seed_of

RANDAUGMENT = "randaugment"  # the purpose of its random numbers
AFFINE = "affine"
SAMPLING = {Resampling.NEAREST: "nearest", Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
LUMA, HALF, UNIT = (19595.0, 38470.0, 7471.0), 32768.0, 65536.0  # Pillow's gray of a color, in 65536ths
SLACK = 1 / 1024  # pixel values by which interpolation in single precision may fall short of an integer
Matrix = tuple[float, ...]


class Draw(NamedTuple):
    """One of timm's operations, by the name of its function, and its argument."""

    name: str
    argument: float


class Batched(NamedTuple):
    """An operation and the images of a batch that it applies to, each with its arguments."""

    name: str
    rows: list[int]
    arguments: list[Matrix]


class RandAugment:
    """timm's RandAugment of float images (N, C, H, W) of integer pixel values, 0 to 255, on a device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        stages = build_transform(config, True).transforms  # type: ignore[attr-defined]
        self.timm: Any = next(stage for stage in stages if isinstance(stage, auto_augment.RandAugment))
        unknown = sorted({op.aug_fn.__name__ for op in self.timm.ops} - APPLY.keys() - MATRICES.keys())
        if unknown:
            what = f"has {', '.join(unknown)}, which is unavailable on a device; --set recipe.pipeline=pillow"
            raise config_error(f"recipe.randaugment '{config.recipe.randaugment}'", what)
        self.device, settings = device, self.timm.ops[0].kwargs
        self.fill = torch.tensor(settings["fillcolor"], dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.sampling = SAMPLING[settings["resample"]]
        for op in self.timm.ops:
            op.aug_fn = partial(_note, op.aug_fn.__name__)
        self.timm.ops = np.array(self.timm.ops, dtype=object)  # timm would convert it for each image

    def draw(self, seed: int, iteration: int, position: int) -> list[Draw]:
        """The operations for the image at a position of an iteration's global batch, in order, as
        timm draws them.
        """
        number = seed_of(RANDAUGMENT, seed, iteration, position)
        random.seed(number)
        np.random.seed(number % 2**32)
        drawn: list[Draw] = self.timm([])
        return drawn

    def __call__(self, images: Tensor, seed: int, iteration: int, positions: Iterable[int]) -> Tensor:
        """The images, changed in place, with the random numbers of their positions."""
        return self.apply(images, [self.draw(seed, iteration, position) for position in positions])

    def apply(self, images: Tensor, drawn: list[list[Draw]]) -> Tensor:
        """The images, changed in place, each by what was drawn for it."""
        steps = list(batched(drawn, *images.shape[-2:]))
        rows = self._send([row for step in steps for row in step.rows], torch.int64)
        arguments = self._send([argument for step in steps for argument in step.arguments], torch.float32)
        start = 0
        for step in steps:
            part = slice(start, start + len(step.rows))
            images.index_copy_(
                0, rows[part], self._apply(step.name, images.index_select(0, rows[part]), arguments[part])
            )
            start = part.stop
        return images

    def _send(self, values: list[Any], dtype: torch.dtype) -> Tensor:
        tensor = torch.tensor(values, dtype=dtype)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )

    def _apply(self, name: str, images: Tensor, arguments: Tensor) -> Tensor:
        if name == AFFINE:
            return affine(images, arguments, self.fill, self.sampling)
        return APPLY[name](images, arguments[:, :1, None, None])


class DeviceTransform:
    """What `recipe.pipeline: tensor` leaves to the device: RandAugment, if any, and normalization."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.seed = config.seed
        self.augment = RandAugment(config, device) if config.recipe.randaugment is not None else None
        self.mean, self.std = (
            torch.tensor([WHITE * value for value in values], device=device).view(1, -1, 1, 1)
            for values in (config.data.mean, config.data.std)
        )

    def __call__(self, images: Tensor, iteration: int, positions: Iterable[int]) -> Tensor:
        """Images of pixel values (N, C, H, W) at these positions of the global batch,
        augmented and normalized.
        """
        images = images.clone(memory_format=torch.preserve_format)
        if self.augment is not None:
            images = self.augment(images, self.seed, iteration, positions)
        return images.sub_(self.mean).div_(self.std)


def _note(name: str, noted: list[Draw], *arguments: float, **_: Any) -> list[Draw]:
    """Stands in for timm's function of that name, and for its image."""
    return [*noted, Draw(name, float(arguments[0]) if arguments else 0.0)]


def batched(drawn: list[list[Draw]], height: int, width: int) -> Iterable[Batched]:
    """The operations in order: each image's first, then its second; geometric ones count as one."""
    for layer in range(max(map(len, drawn), default=0)):
        steps: dict[str, Batched] = {}
        for row, draws in enumerate(drawn):
            if layer < len(draws):
                name, argument = draws[layer]
                moves = name in MATRICES
                step = steps.setdefault(AFFINE if moves else name, Batched(AFFINE if moves else name, [], []))
                step.rows.append(row)
                step.arguments.append(MATRICES[name](argument, width, height) if moves else (argument,) * 6)
        yield from steps.values()


def _rotate(degrees: float, width: int, height: int) -> Matrix:
    """Around the center, counterclockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


# Where a pixel of the result comes from, (ax + by + c, dx + ey + f), as Pillow has it; by timm's argument,
# width and height.
MATRICES: dict[str, Callable[[float, int, int], Matrix]] = {
    "rotate": _rotate,
    "shear_x": lambda factor, width, height: (1, factor, 0, 0, 1, 0),
    "shear_y": lambda factor, width, height: (1, 0, 0, factor, 1, 0),
    "translate_x_rel": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "translate_y_rel": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}


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
