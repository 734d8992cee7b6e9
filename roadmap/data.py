"""From a data set to batches on the device, in an order and with augmentations that depend only on seed, epoch and sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from roadmap.check_data import class_names
from roadmap.digits import CLASSES, Split, load_digits
from roadmap.randomness import SAMPLE, permutation, reseed
from roadmap.recipe import RunConfig
from roadmap.strict_yaml import ConfigError, Problem

Key = tuple[int, int]
Transform = Callable[[Image.Image], Tensor]


class Digits(Dataset[tuple[Image.Image, int]]):
    """The digits of `roadmap.digits` as 8x8 grey images."""

    def __init__(self, config: RunConfig, split: Split) -> None:
        self.images, self.labels = load_digits(config.data, split)
        self.num_classes = CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


class Folder(Dataset[tuple[Image.Image, int]]):
    """Images in `data_dir`/train/<class>/ and `data_dir`/val/<class>/, read by timm."""

    def __init__(self, config: RunConfig, split: Split) -> None:
        root, names = config.system.data_dir, class_names(config.system.data_dir)
        self.num_classes = len(names)
        try:
            labels = {name: label for label, name in enumerate(names)}
            self._reader: Any = create_dataset("", root=root, split=split, class_map=labels).reader
        except RuntimeError as error:
            raise ConfigError([Problem(f"{root}/{split}", str(error))]) from error
        self._mode = "L" if config.model.in_chans == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self._reader[index]
        try:
            with file:
                return Image.open(file).convert(self._mode), int(label)
        except OSError as error:  # timm would quietly take the next image, and count that one twice
            raise OSError(f"{self._reader.filename(index, absolute=True)} is not an image that can be read") from error


DATASETS: dict[str, Callable[[RunConfig, Split], Digits | Folder]] = {"digits": Digits, "folder": Folder}


class Samples(Dataset[tuple[Tensor, int]]):
    """Transformed uint8 images (C, H, W) with labels, by (epoch, index); the transform's random numbers depend on those alone."""

    def __init__(self, source: Digits | Folder, transform: Transform, seed: int | None) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.source[index]
        if self.seed is not None:
            reseed(SAMPLE, self.seed, epoch, index)
        return self.transform(image), label


class Remembered(Samples):
    """Samples of a small data set with nothing random about them, transformed once."""

    def __init__(self, source: Digits | Folder, transform: Transform) -> None:
        super().__init__(source, transform, seed=None)
        self.memory: dict[int, tuple[Tensor, int]] = {}

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index = key[1]
        if index not in self.memory:
            self.memory[index] = super().__getitem__(key)
        return self.memory[index]


class Batches(Sampler[list[Key]]):
    """Keys of the batches of an epoch: shuffled and whole for training, in order and to the last sample for evaluation."""

    def __init__(self, length: int, batch: int, seed: int | None) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.length, self.batch)
        return whole + (self.seed is None and rest > 0)

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(range(self.length)) if self.seed is None else permutation(self.length, self.seed, self.epoch)
        for number in range(self.first, len(self)):
            yield [(self.epoch, index) for index in order[number * self.batch : (number + 1) * self.batch]]


class Loader:
    """Normalised float batches (N, C, H, W), channels_last, with labels (N,), on the device."""

    def __init__(self, config: RunConfig, split: Split, device: torch.device) -> None:
        training, name = split == "train", f"dataset '{config.data.dataset}'"
        source = DATASETS[config.data.dataset](config, split)
        if source.num_classes != config.model.num_classes:
            counts = f"has {source.num_classes} classes in {split}, the model {config.model.num_classes}"
            raise ConfigError([Problem(name, f"{counts}; --set model.num_classes={source.num_classes}")])
        batch = config.recipe.global_batch if training else config.system.eval_batch
        self.images = len(source)
        self.batches = Batches(len(source), batch, config.seed if training else None)
        if not len(self.batches):
            raise ConfigError([Problem(name, f"has {len(source)} images in {split}, less than a batch of {batch}")])
        samples = build_samples(config, source, training)
        workers = config.system.workers
        loader: Any = DataLoader(
            samples, batch_sampler=self.batches, num_workers=workers, collate_fn=fast_collate,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip
        self._loader = PrefetchLoader(loader, config.data.mean, config.data.std, config.model.in_chans, device)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on."""
        self.batches.epoch, self.batches.first = epoch, first
        for images, labels in self._loader:
            yield images.contiguous(memory_format=torch.channels_last), labels


def build_samples(config: RunConfig, source: Digits | Folder, training: bool) -> Samples:
    """The transformed samples of a data set; those of a small one are remembered if nothing about them is random."""
    transform = build_transform(config, training)
    if training and config.recipe.augments:
        return Samples(source, transform, config.seed)
    return Remembered(source, transform) if isinstance(source, Digits) else Samples(source, transform, None)


def build_transform(config: RunConfig, training: bool) -> Transform:
    """timm's transform from a PIL image to a uint8 tensor (C, H, W), as the recipe wants it."""
    recipe = config.recipe
    transform: Transform = create_transform(
        config.data.image_size,
        is_training=training and recipe.augments,
        scale=recipe.crop_scale,
        hflip=recipe.hflip,
        color_jitter=None,
        auto_augment=recipe.randaugment,
        interpolation=recipe.train_interpolation if training else recipe.eval_interpolation,
        crop_pct=recipe.eval_crop_pct,
        mean=config.data.mean,
        std=config.data.std,
        use_prefetcher=True,
    )
    return transform
