"""What augmentation draws for each training image in the data-loading workers, and the batches that take it
to the device.

timm draws: its RandAugment and its RandomErasing are called with a stand-in for the image, which notes what
they would do. So the numbers depend on seed, epoch and sample, as those of crops and flips do.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment
from timm.data.loader import fast_collate
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from roadmap.config import RunConfig
from roadmap.data.images import Transform
from roadmap.data.tensor_decoder import collate
from roadmap.rng import ERASE, RANDAUGMENT, seed_of

T = TypeVar("T")
Matrix = tuple[float, ...]
Box = tuple[int, int, int, int]  # top, bottom, left, right; the second and the fourth are outside
EMPTY: Box = (0, 0, 0, 0)
LEVELS = Image.fromarray(np.arange(256, dtype=np.uint8)[None])  # an image of every pixel value


class Draw(NamedTuple):
    """One of RandAugment's operations, by the name of timm's function, and its argument."""

    name: str
    argument: float


class Drawn(NamedTuple):
    """What is drawn for an image: its operations in order, and the boxes to erase, with the key of the noise
    that replaces them, a number of 32 bits.
    """

    operations: list[Draw]
    boxes: list[Box]
    key: int


class TransformedSample(NamedTuple):
    """A transformed uint8 image (C, H, W), its label, and in training what is drawn for it."""

    image: Any
    label: int
    drawn: Drawn | None = None


class Counts(NamedTuple):
    """How many images of a batch each kind of RandAugment's operations changes.

    `affine` moves pixels, `table` replaces values by a table that no image has a part in, and the others are
    timm's functions.
    """

    affine: int
    auto_contrast: int
    equalize: int
    table: int
    contrast: int
    color: int
    sharpness: int

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many images are changed together: by moving, by tables, by blending."""
        tabled = self.auto_contrast + self.equalize + self.table
        return self.affine, tabled, self.contrast + self.color + self.sharpness


class Operations(NamedTuple):
    """RandAugment of a batch. `counts` has an entry per layer: each image's first operation is in the first.

    `rows` (R,) are the images that change, by layer, then by kind, with their `arguments` (R, 6): a matrix
    for `affine`, else one number six times. `tables` (T, 256) are those of kind `table`, uint8.
    """

    counts: tuple[Counts, ...]
    rows: Tensor
    arguments: Tensor
    tables: Tensor


class Erasing(NamedTuple):
    """Erasing in a batch: the images `rows` (R,), with their `boxes` (R, most, 4), of which empty ones count
    for nothing, and the `keys` (R,) of their noise.
    """

    rows: Tensor
    boxes: Tensor
    keys: Tensor


class Batch(NamedTuple):
    """Images (N, C, H, W) and labels (N,), and what the device has still to do to the images."""

    images: Tensor
    labels: Tensor
    operations: Operations | None = None
    erasing: Erasing | None = None


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """The batch, or a part of it, with the function's result for each tensor."""
    found: Any = value
    if isinstance(value, Tensor):
        found = function(value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = type(value)(*(map_tensors(part, function) for part in value))
    return found  # type: ignore[no-any-return]


class Augmentation:
    """Draws for each image what the device will do to it, and makes batches of samples; only training
    `draws`.

    `transform` is timm's. Under `recipe.pipeline: pillow` it applies RandAugment itself, in the worker, so
    that erasing is left.
    """

    def __init__(self, config: RunConfig, transform: Transform, tensors: bool, draws: bool) -> None:
        recipe = config.recipe
        self.seed, self.size, self.channels = config.seed, config.data.image_size, config.model.in_chans
        self.stack: Any = collate if tensors else fast_collate
        self.operations = randaugment_of(transform) if draws and tensors else None
        erases = draws and recipe.random_erasing > 0
        self.erasing = RandomErasing(recipe.random_erasing, device="cpu") if erases else None
        if self.operations is not None:
            for op in self.operations.ops:
                op.aug_fn = partial(_note, op.aug_fn.__name__)
            # timm would convert it for each image
            self.operations.ops = np.array(self.operations.ops, dtype=object)

    @property
    def draws(self) -> bool:
        """Whether there is anything to draw."""
        return self.operations is not None or self.erasing is not None

    def draw(self, *counters: int) -> Drawn | None:
        """What is drawn for the image with these counters, such as epoch and number; None without
        anything to draw.
        """
        if not self.draws:
            return None
        operations: list[Draw] = []
        if self.operations is not None:
            number = seed_of(RANDAUGMENT, self.seed, *counters)
            random.seed(number)
            np.random.seed(number % 2**32)
            operations = self.operations([])
        boxes: list[Box] = []
        number = seed_of(ERASE, self.seed, *counters)
        if self.erasing is not None:
            random.seed(number)
            boxes = self.erasing(_Canvas(self.channels, self.size)).boxes
        return Drawn(operations, boxes, number % 2**32)

    def collate(self, samples: list[TransformedSample]) -> Batch:
        """The samples as a batch."""
        images, labels = self.stack([(image, label) for image, label, _ in samples])
        drawn = [sample.drawn for sample in samples if sample.drawn is not None]
        return Batch(images, labels, *self.params(drawn))

    def params(self, drawn: list[Drawn]) -> tuple[Operations | None, Erasing | None]:
        """What was drawn for the images of a batch, as small tensors."""
        operations = erasing = None
        if self.operations is not None:
            operations = batched([image.operations for image in drawn], self.size, self.size)
        if self.erasing is not None:
            rows = [row for row, image in enumerate(drawn) if image.boxes]
            most: int = self.erasing.max_count
            boxes = [drawn[row].boxes + [EMPTY] * (most - len(drawn[row].boxes)) for row in rows]
            keys = [drawn[row].key for row in rows]
            on_rows, of_boxes, of_keys = (
                torch.tensor(part, dtype=torch.int64) for part in (rows, boxes, keys)
            )
            erasing = Erasing(on_rows, of_boxes.reshape(-1, most, 4), of_keys)
        return operations, erasing


def randaugment_of(transform: Any) -> Any:
    """timm's RandAugment in its transform, None if it has none."""
    return next((part for part in transform.transforms if isinstance(part, auto_augment.RandAugment)), None)


def _note(name: str, noted: list[Draw], *arguments: float, **_: Any) -> list[Draw]:
    """Stands in for timm's function of that name, and for its image."""
    return [*noted, Draw(name, arguments[0] if arguments else 0.0)]


class _Canvas:
    """Stands in for an image, and notes the boxes that timm erases."""

    dtype = torch.float32

    def __init__(self, channels: int, size: int) -> None:
        self.shape = (channels, size, size)
        self.boxes: list[Box] = []

    def size(self) -> tuple[int, ...]:
        return self.shape

    def __setitem__(self, where: tuple[slice, slice, slice], _: Any) -> None:
        _, rows, columns = where
        self.boxes.append((rows.start, rows.stop, columns.start, columns.stop))


def batched(drawn: list[list[Draw]], height: int, width: int) -> Operations:
    """The operations that were drawn for each image of a batch, of that size in pixels."""
    changes = [
        (layer, KIND_OF[draw.name], row, draw)
        for row, draws in enumerate(drawn)
        for layer, draw in enumerate(draws)
    ]
    changes.sort(key=itemgetter(0, 1))
    counted = Counter((layer, kind) for layer, kind, _, _ in changes)
    layers, kinds = range(max(map(len, drawn), default=0)), range(len(Counts._fields))
    rows = [row for _, _, row, _ in changes]
    arguments = [_arguments(draw, height, width) for *_, draw in changes]
    tables = [TABLES[draw.name](draw.argument) for *_, draw in changes if draw.name in TABLES]
    return Operations(
        tuple(Counts(*(counted[layer, kind] for kind in kinds)) for layer in layers),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(arguments, dtype=torch.float32).reshape(-1, 6),
        torch.from_numpy(np.stack(tables) if tables else np.empty((0, 256), np.uint8)),
    )


def _arguments(draw: Draw, height: int, width: int) -> Matrix:
    """What an operation on an image of that size needs besides a table.

    A matrix maps the centers of pixels, in pixels, to the coordinates of `torch.nn.functional.grid_sample`,
    which are -1 and 1 at an image's edges.
    """
    if draw.name not in MATRICES:
        return (draw.argument,) * 6
    a, b, c, d, e, f = MATRICES[draw.name](draw.argument, width, height)
    x, y = 2 / width, 2 / height
    return x * a, x * b, x * c - 1, y * d, y * e, y * f - 1


def _table(name: str, argument: float) -> NDArray[np.uint8]:
    """What timm's function of that name makes of each pixel value, (256,)."""
    given = () if name == "invert" else (argument,)
    table: NDArray[np.uint8] = np.asarray(getattr(auto_augment, name)(LEVELS, *given))[0]
    return table


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

# Operations whose result for a pixel depends on its value and the argument alone: their tables.
TABLES: dict[str, Callable[[float], NDArray[np.uint8]]] = {
    name: partial(_table, name) for name in ("invert", "posterize", "solarize", "solarize_add", "brightness")
}
# By the names of timm's functions, the index of their kind in `Counts`.
KIND_OF = {
    **{name: index for index, name in enumerate(Counts._fields)},
    **dict.fromkeys(MATRICES, Counts._fields.index("affine")),
    **dict.fromkeys(TABLES, Counts._fields.index("table")),
}
