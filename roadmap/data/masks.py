"""Images and their masks in folders, for segmentation and detection: where they are, and how they are read.

A split's images are in DATA/train/images and their masks, by the same names, in DATA/train/masks; or in
DATA/images/train and DATA/masks/train. Synonyms such as `validation` and `annotations` are found, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from roadmap.data.images import in_mode, open_image, reading
from roadmap.data.listing import images_in
from roadmap.data.locate import some, usual_names
from roadmap.errors import config_error, relative
from roadmap.provenance import usable_cores
from roadmap.weight_files import read_class_map

KINDS = {"images": ("images", "image"), "masks": ("masks", "annotations", "labels")}
CLASS_NAMES = "classes.txt"
# of Pillow: 1 bit, 8 bits, 8 bits with a palette, 16 bits, and 16 bits as older versions of Pillow read them
INDEX_MODES = ("1", "L", "P", "I;16", "I")


@dataclass(frozen=True)
class LabeledImage:
    """The files of an image and its mask."""

    image: Path
    mask: Path


def labeled_images(root: Path, split: str) -> list[LabeledImage]:
    """The images of a split that have masks, by name; ConfigError if there are none, or any has no mask."""
    images, masks = _folder(root, "images", split), _folder(root, "masks", split)
    by_stem = {Path(name).stem: masks / name for name in images_in(masks)}
    names = sorted(images_in(images))
    if not names:
        raise config_error(relative(images), "has no images")
    if missing := [name for name in names if Path(name).stem not in by_stem]:
        message = f"has no mask of {some(missing)}; a mask has the name of its image, such as a.png for a.jpg"
        raise config_error(relative(masks), message)
    return [LabeledImage(images / name, by_stem[Path(name).stem]) for name in names]


def _folder(root: Path, kind: str, split: str) -> Path:
    """The folder of a split's images or masks."""
    names = [(one, other) for one in usual_names(split) for other in KINDS[kind]]
    places = [place for one, other in names for place in (root / one / other, root / other / one)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise config_error(relative(root), f"has no folder {split}/{kind}, nor {kind}/{split}")
    return found


def class_names(root: Path) -> list[str] | None:
    """The names in the data's classes.txt, one per line; None if there is no such file."""
    path = root / CLASS_NAMES
    return read_class_map(path) if path.is_file() else None


def read_image(path: Path) -> Image.Image:
    """An image in RGB, upright as its EXIF data asks; Unreadable if it is none."""
    with reading(relative(path)), path.open("rb") as file:
        return in_mode(ImageOps.exif_transpose(open_image(file)), "RGB")


def readable_images(folder: Path) -> list[Path]:
    """The images in a folder, by name; ConfigError if there are none, or one of them cannot be read.

    It reads every file, so that not a part of them is written.
    """
    paths = [folder / name for name in sorted(images_in(folder))]
    if not paths:
        raise config_error(relative(folder), "has no images")
    for path in paths:
        try:
            read_image(path)
        except OSError as error:
            raise config_error("", str(error)) from error
    return paths


def read_mask(path: Path) -> NDArray[np.int32]:
    """The values of a mask, (H, W); Unreadable unless it is an image of one channel without loss."""
    with reading(relative(path)), path.open("rb") as file:
        mask = open_image(file)
        if mask.mode not in INDEX_MODES:
            raise ValueError(f"a mask has one channel, and its mode is {mask.mode}")
        if mask.format in ("JPEG", "MPO"):
            raise ValueError("JPEG changes the values of a mask; write PNG")
        return np.asarray(mask).astype(np.int32)


def _values(pair: LabeledImage) -> list[int]:
    """The values in a mask; ConfigError if it or its image cannot be read, or their sizes differ."""
    try:
        mask, size = read_mask(pair.mask), read_image(pair.image).size
    except OSError as error:
        raise config_error("", str(error)) from error
    if size != mask.shape[::-1]:
        message = f"is {mask.shape[1]}x{mask.shape[0]} pixels, and its image {size[0]}x{size[1]}"
        raise config_error(relative(pair.mask), message)
    values: list[int] = np.unique(mask).tolist()
    return values


def values_in(pairs: Sequence[LabeledImage]) -> dict[int, Path]:
    """All values in the masks, each with the first mask that has it; ConfigError as in `_values`.

    It reads every file, so that training does not end at one of them hours later.
    """
    found: dict[int, Path] = {}
    with ThreadPoolExecutor(usable_cores()) as threads:
        for pair, values in zip(pairs, threads.map(_values, pairs), strict=True):
            for value in values:
                found.setdefault(value, pair.mask)
    return dict(sorted(found.items()))
