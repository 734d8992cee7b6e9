"""Where images come from: each kind of dataset as pictures with labels, in any order."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_dataset
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder  # type: ignore[import-untyped]

from roadmap.config import RunConfig
from roadmap.data.digits import Split
from roadmap.data.images import Picture, Unreadable, make_decoder, reading
from roadmap.data.labels import BadSample, label_of, labels_of
from roadmap.data.listing import find_images, in_order, listing_digest, printable, walk_files
from roadmap.data.locate import (
    check_splits,
    choose_classes,
    class_folders,
    class_names,
    data_dir,
    find_split,
    is_image_folder,
    kind_of,
    some,
    usual_names,
)
from roadmap.data.preflight import need_reader
from roadmap.data.shards import Shards
from roadmap.data.staging import DOWNLOAD_LOCK
from roadmap.data.synthetic import Digits, Synthetic
from roadmap.errors import config_error
from roadmap.files import locked


class Source(Protocol):
    """A dataset: images and labels by number, and what is known without reading an image; None is unknown."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes."""

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, in the order of their labels."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The labels of all images."""

    @property
    def digest(self) -> str:
        """16 hex digits of what identifies its samples in order, such as names and labels, without
        reading any image.

        The same in every process and for every copy of the data; another one where samples are added,
        removed, renamed or relabeled. The content of images is not part of it.
        """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> tuple[Picture, int]:
        """As the split's decoder makes it; Unreadable if the image cannot be read."""

    def name(self, number: int, /) -> str:
        """An image's name in messages."""


@dataclass(frozen=True)
class Listing:
    """The images in a split's class folders, by their paths in it, with their labels, in timm's order."""

    class_names: list[str]
    files: NDArray[np.bytes_]
    labels: NDArray[np.int64]


def list_images(config: RunConfig, split: Split) -> Listing:
    """The images of a `folder`; ConfigError if there are none. A million take seconds to list."""
    names, root = class_names(config), data_dir(config) / split_name(config, split)
    found = in_order(find_images(root, names))
    if not found:
        raise config_error(str(root), "has no images in its class folders")
    # Each worker would copy a million Python strings as it counts references to them.
    files = np.array([os.fsencode(file) for file, _ in found], dtype=np.bytes_)
    return Listing(names, files, np.array([label for _, label in found], dtype=np.int64))


def make_source(config: RunConfig, split: Split, given: Any = None) -> Source:
    """The configuration's dataset, or the one `given`, with the classes that it keeps; ConfigError if
    it is unavailable.

    What is given may also be the listing of the configuration's folder, which another process has read.
    """
    if config.model.in_chans not in (1, 3):
        raise config_error("model.in_chans", f"is {config.model.in_chans}; images have 1 channel or 3")
    if isinstance(given, Listing):
        return Folder(config, split, given)
    kind = kind_of(config.data)
    source = UserDataset(config, split, given) if given is not None else SOURCES[kind](config, split)
    return source if config.data.classes is None or kind == "folder" else ClassSubset(config, source)


def split_name(config: RunConfig, split: Split) -> str:
    """The dataset's name for a split."""
    return config.data.train_split if split == "train" else config.data.val_split


def open_timm(config: RunConfig, split: Split, **more: Any) -> Any:
    """The dataset of one of timm's dataset strings; ConfigError if timm cannot open it."""
    need_reader(config)
    name, system, root = split_name(config, split), config.system, config.system.data_dir
    with ExitStack() as stack:
        try:
            if system.download and root is not None:
                Path(root).mkdir(parents=True, exist_ok=True)
                # one process of a node downloads
                stack.enter_context(locked(Path(root) / DOWNLOAD_LOCK))
            return create_dataset(config.data.dataset, root=root, split=name, **more)
        except (RuntimeError, AssertionError, OSError, ValueError, TypeError, LookupError) as error:
            hint = (
                ""
                if system.download or kind_of(config.data) in ("hfds", "wds")
                else "; --set system.download=true may fetch it"
            )
            # it lists the splits
            if other := next((each for each in usual_names(name)[1:] if f"'{each}'" in str(error)), None):
                hint = f"; --set data.{split}_split={other}"
            where = f"dataset '{config.data.dataset}', split '{name}'"
            raise config_error(where, f"is unavailable: {' '.join(str(error).split())}{hint}") from error


class Folder:
    """Images in `data_dir`/<split>/<class>/ in timm's order: files with the suffixes in IMAGE_SUFFIXES, which
    are more than timm's.
    """

    def __init__(self, config: RunConfig, split: Split, listing: Listing | None = None) -> None:
        listing = listing or list_images(config, split)
        self.class_names, self._files, self.labels = listing.class_names, listing.files, listing.labels
        self.num_classes, self.decoder = len(self.class_names), make_decoder(config, split)
        self.root = data_dir(config) / split_name(config, split)

    @property
    def digest(self) -> str:
        return listing_digest(self._files, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        path = self._path(number)
        name = printable(path)
        with reading(name), open(path, "rb") as file:  # noqa: PTH123
            return self.decoder.decode(file, name), int(self.labels[number])

    def name(self, number: int) -> str:
        return printable(self._path(number))

    def _path(self, number: int) -> str:
        return f"{self.root}/{os.fsdecode(self._files[number])}"


class HuggingFace:
    """A dataset of Hugging Face's Hub, or a local one that the package `datasets` reads."""

    def __init__(self, config: RunConfig, split: Split) -> None:
        image, label = config.data.image_key or "image", config.data.label_key or "label"
        reader = open_timm(config, split, input_key=image, target_key=label).reader
        self._table, self._image, self._split = reader.dataset, image, reader.split
        table = self._table
        # timm adds an empty one if need be
        there = [name for name in table.column_names if name != image or any(table[:1][name])]
        for key in (image, label):
            if key not in there:
                raise config_error(
                    f"dataset '{config.data.dataset}'", f"has no '{key}', but {', '.join(there)}"
                )
        names = reader.class_to_idx
        self.decoder, self.class_names = make_decoder(config, split), sorted(names, key=names.get) or None
        self.num_classes = len(names) or None
        column, where = (
            np.asarray(table.with_format("numpy")[label][:]),
            f" of dataset '{config.data.dataset}'",
        )
        try:
            self.labels = labels_of(
                column, lambda number: self.name(number) + where, lambda number: table[number][label]
            )
        except BadSample as error:
            raise BadSample(f"{error}; data.label_key may name another column: {', '.join(there)}") from None

    @property
    def digest(self) -> str:
        return listing_digest(*self._table.column_names, self.labels)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        name = self.name(number)
        with reading(name):
            image = self._table[number][self._image] or {}  # None where the row has no image
            content, path = image.get("bytes") or b"", image.get("path")
            file = io.BytesIO(content) if content or not path else open(path, "rb")  # noqa: PTH123, SIM115 - decode closes it
        return self.decoder.decode(file, name), int(self.labels[number])

    def name(self, number: int) -> str:
        return f"row {number} of '{self._split}'"


class UserDataset:
    """A map-style Dataset of images and labels: of Pillow's, uint8 arrays (H, W) or (H, W, C), or uint8
    tensors (C, H, W).

    Its `classes`, `targets` and `samples` are used where they have the form of torchvision's.
    """

    def __init__(self, config: RunConfig, split: Split, items: Any) -> None:
        self._where = f"dataset '{config.data.dataset}'"
        self._items = items
        self.decoder = make_decoder(config, split)
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            raise config_error(
                self._where, f"is a {type(items).__name__}, which has no length or no items to choose from"
            )
        self.class_names = next(
            filter(None, (_strings(getattr(items, name, None)) for name in ("wnids", "classes"))), None
        )
        self.num_classes = len(self.class_names) if self.class_names else None
        self.labels = _integers(getattr(items, "targets", None), len(items))
        if len(items):
            with suppress(Unreadable):  # it is counted when it is read for a batch
                self[0]  # fails before training if the label is invalid

    @property
    def digest(self) -> str:
        return listing_digest(len(self), self.labels)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        # anything else may be a mistake in the Dataset's code
        with reading(lambda: self.name(number), (OSError,)):
            item = self._items[number]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise BadSample(
                    f"{self.name(number)} is a {type(item).__name__}; it must be an image and a label"
                )
            return self.decoder.convert(self._image(item[0], number)), label_of(
                item[1], lambda: self.name(number)
            )

    def _image(self, image: Any, number: int) -> Image.Image | NDArray[np.uint8]:
        if isinstance(image, Tensor):
            image = image.permute(1, 2, 0).numpy()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise BadSample(f"{self.name(number)} is an image of {image.dtype}; it must be of uint8")
            return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if not isinstance(image, Image.Image):
            raise BadSample(
                f"{self.name(number)} has a {type(image).__name__} for an image; it must be a PIL image, an"
                " array or a tensor"
            )
        return image

    def name(self, number: int) -> str:
        for attribute in ("samples", "imgs"):
            files = getattr(self._items, attribute, None)
            entry = files[number] if isinstance(files, list) and number < len(files) else None
            if isinstance(entry, tuple) and entry and isinstance(entry[0], str):
                return printable(entry[0])
        return f"item {number} of {self._where}"


def _strings(names: Any) -> list[str] | None:
    """A list of strings that can be printed, None for anything else."""
    return (
        [printable(name) for name in names]
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        else None
    )


def _integers(targets: Any, length: int) -> NDArray[np.int64] | None:
    """`length` integers as an array, None for anything else."""
    try:
        found = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal length, tensors that numpy cannot have
        return None
    return found.astype(np.int64) if found.shape == (length,) and found.dtype.kind in "iu" else None


class VisibleImageFolder(ImageFolder):  # type: ignore[misc]
    """torchvision's ImageFolder, in its order, without hidden files and links to a folder above them."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The class folders, sorted, and their labels."""
        names = sorted(class_folders(Path(directory)))
        return names, {name: label for label, name in enumerate(names)}

    @staticmethod
    def make_dataset(
        directory: str, class_to_idx: dict[str, int], *_: Any, **__: Any
    ) -> list[tuple[str, int]]:
        """Paths and labels of all images, also of those in folders below; ConfigError for a
        class without one.
        """
        found = []
        for name, label in class_to_idx.items():
            files = [
                file for file in walk_files(Path(directory, name)) if file.lower().endswith(IMG_EXTENSIONS)
            ]
            if not files:
                raise config_error(str(directory), f"has no images ({', '.join(IMG_EXTENSIONS)}) in {name}")
            # torchvision sorts folders, then the files of each
            files.sort(key=lambda file: file.rpartition("/")[::2])
            found += [(f"{directory}/{name}/{file}", label) for file in files]
        return found


def _torchvision(config: RunConfig, split: Split) -> Source:
    root, name = data_dir(config), split_name(config, split)
    if split == "train" and "train" not in name:  # timm takes any other name for the test images
        raise config_error("data.train_split", f"is '{name}'; torchvision calls it train")
    if is_image_folder(config.data):
        check_splits(root, {f"data.{split}_split": name}, synonyms=True)  # an evaluation needs no other
        return UserDataset(config, split, VisibleImageFolder(find_split(root, name)))
    return UserDataset(config, split, open_timm(config, split, download=config.system.download))


def _custom(config: RunConfig, split: Split) -> Source:
    raise config_error(
        f"dataset '{config.data.dataset}'",
        f"cannot be opened by name: pass the Dataset of {split} to roadmap.train.train",
    )


class ClassSubset:
    """A source's images of the classes that `data.classes` names, renumbered as they are sorted; labels
    without names by their number.
    """

    def __init__(self, config: RunConfig, source: Source) -> None:
        where = f"dataset '{config.data.dataset}'"
        if source.labels is None:
            raise config_error(
                "data.classes", f"needs to know the labels of {where} without reading it: it has no `targets`"
            )
        names = source.class_names
        known = (
            {name: label for label, name in enumerate(names)}
            if names
            else {str(label): label for label in np.unique(source.labels)}
        )
        chosen = choose_classes(known, config.data, where)
        if twice := [name for name in chosen if names and names.count(name) > 1]:
            raise config_error(
                where, f"has more than one class called {some(twice)}, so data.classes cannot choose it"
            )
        self.class_names = chosen if names else sorted(chosen, key=int)
        self.num_classes, self._source = len(chosen), source
        labels = np.full(len(source), -1, dtype=np.int64)
        for label, name in enumerate(self.class_names):
            labels[source.labels == known[name]] = label
        self._numbers = np.flatnonzero(labels >= 0)
        self.labels = labels[self._numbers]

    @property
    def digest(self) -> str:
        return listing_digest(self._source.digest, self._numbers, self.labels)

    def draw_noise(self, epoch: int) -> None:
        """As digits do, if it has some."""
        if isinstance(self._source, Digits):
            self._source.draw_noise(epoch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        return self._source[int(self._numbers[number])][0], int(self.labels[number])

    def name(self, number: int) -> str:
        return self._source.name(int(self._numbers[number]))


SOURCES: dict[str, Callable[[RunConfig, Split], Source]] = {
    "folder": Folder,
    "shards": lambda config, split: Shards(config, split_name(config, split), make_decoder(config, split)),
    "digits": Digits,
    "synthetic": Synthetic,
    "torch": _torchvision,
    "hfds": HuggingFace,
    "custom": _custom,
}
