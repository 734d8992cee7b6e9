"""A dataset whose images have numbers, in batches whose order does not depend on processes and workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data.augmentation import Augmentation, TransformedSample
from roadmap.data.corrupt import LEFT_OUT, Corrupt
from roadmap.data.datasets import ClassSubset, Source, make_source
from roadmap.data.digits import Split
from roadmap.data.images import Picture, Transform, Unreadable, image_mode, make_decoder
from roadmap.data.synthetic import Digits
from roadmap.errors import config_error
from roadmap.rng import SAMPLE, permutation, reseed

Key = tuple[int, int]


class Samples(Dataset[TransformedSample]):
    """Transformed uint8 images (C, H, W) with labels, by (epoch, index); the random numbers of the transform
    and of the augmentation on the device depend on those alone.

    Where an image cannot be read, the next one that can takes its place if `replace`, or else a black
    one with label -1.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        augmentation: Augmentation,
        seed: int | None,
        corrupt: Corrupt,
        blank: Picture,
        replace: bool,
    ) -> None:
        self.source = source
        self.transform = transform
        self.augmentation = augmentation
        self.seed = seed
        self.corrupt = corrupt
        self.blank = blank
        self.replace = replace

    def __getitem__(self, key: Key) -> TransformedSample:
        return TransformedSample(*self._transformed(*key), self.augmentation.draw(*key))

    def _transformed(self, epoch: int, index: int) -> tuple[Tensor, int]:
        image, label = self._read(index)
        if self.seed is not None:
            reseed(SAMPLE, self.seed, epoch, index)
        return self.transform(image), label

    def _read(self, index: int) -> tuple[Picture, int]:
        length = len(self.source)
        for number in range(index, index + (length if self.replace else 1)):
            try:
                image, label = self.source[number % length]
            except Unreadable as error:
                self.corrupt.add(number % length, error)
                if self.corrupt.too_many:  # the loader ends the run when it gets this batch
                    break
            else:
                # a negative label is an error, and -1 has a meaning
                return image, label if label >= 0 else label + LEFT_OUT
        return self.blank, LEFT_OUT


class CachedDataset(Samples):
    """Samples of a small dataset whose transform has nothing random about it, transformed once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory: dict[int, tuple[Tensor, int]] = {}

    def _transformed(self, epoch: int, index: int) -> tuple[Tensor, int]:
        if index not in self.memory:
            self.memory[index] = super()._transformed(epoch, index)
        return self.memory[index]


class NoisyDigits(Samples):
    """Samples of digits with fresh noise in each epoch."""

    source: Digits | ClassSubset

    def _transformed(self, epoch: int, index: int) -> tuple[Tensor, int]:
        self.source.draw_noise(epoch)
        return super()._transformed(epoch, index)


class TrainingBatches(Sampler[list[Key]]):
    """Keys of a process's micro-batches: its part of each complete global batch of the shuffled epoch."""

    def __init__(self, length: int, plan: BatchPlan, rank: int, seed: int) -> None:
        self.length = length
        self.plan = plan
        self.rank = rank
        self.seed = seed
        self.global_batch = plan.share * plan.world
        self.iterations = length // self.global_batch
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.iterations * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        order = permutation(self.length, self.seed, self.epoch)
        steps = [self.plan.positions(self.rank, step) for step in range(self.plan.accumulation)]
        for iteration in range(self.first, self.iterations):
            for positions in steps:
                yield [
                    (self.epoch, order[iteration * self.global_batch + position]) for position in positions
                ]


class EvaluationBatches(Sampler[list[Key]]):
    """Keys of a process's batches: every `world`-th image from its own on, in order and to the last."""

    def __init__(self, length: int, plan: BatchPlan, rank: int, batch: int) -> None:
        self.indices, self.batch = range(rank, length, plan.world), batch
        self.iterations = -(-len(self.indices) // batch)
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(self.first * self.batch, len(self.indices), self.batch):
            yield [(self.epoch, index) for index in self.indices[start : start + self.batch]]


class MapStyleFeed:
    """A dataset whose images have numbers, in a process's batches."""

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        transform: Transform,
        augmentation: Augmentation,
        plan: BatchPlan,
        rank: int,
        given: Any,
        beside: Corrupt | None,
    ) -> None:
        source, training = make_source(config, split, given), split == "train"
        self.images = len(source)
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.readers: str | None = None  # an image's position does not depend on them
        self.corrupt = Corrupt(len(source), config.system.corrupt_images, source.name, beside)
        if (
            source.labels is not None
            and len(source.labels)
            and source.num_classes in (None, config.model.num_classes)
        ):
            for label in (int(source.labels.min()), int(source.labels.max())):
                check_label(label, config, split)
        self.batches: TrainingBatches | EvaluationBatches
        if training:
            self.batches = TrainingBatches(len(source), plan, rank, config.seed)
            self.numbers = range(len(source))  # of the images that this process may read
        else:
            self.batches = EvaluationBatches(len(source), plan, rank, config.system.eval_batch)
            self.numbers = self.batches.indices
        self.iterations = self.batches.iterations
        self.batch = plan.micro if training else config.system.eval_batch
        seed = config.seed if training and config.recipe.augments else None
        blank = make_decoder(config, split).convert(
            Image.new(image_mode(config), (config.data.image_size,) * 2)
        )
        kind: type[Samples] = Samples
        if training and config.data.fresh_noise and isinstance(source, Digits | ClassSubset):
            kind = NoisyDigits
        elif isinstance(source, Digits) and seed is None:
            kind = CachedDataset
        self.samples = kind(source, transform, augmentation, seed, self.corrupt, blank, training)

    @property
    def digest(self) -> str | None:
        """The digest of the dataset's listing."""
        return self.samples.source.digest

    def loading(self) -> dict[str, Any]:
        """How a DataLoader makes batches of it."""
        return {"dataset": self.samples, "batch_sampler": self.batches}

    def seek(self, epoch: int, first: int) -> int:
        """Moves to an iteration; no batch from there on is to be dropped."""
        self.batches.epoch, self.batches.first = epoch, first
        return 0


def check_label(label: int, config: RunConfig, split: Split) -> None:
    """ConfigError if the model has no such class."""
    classes = config.model.num_classes
    if not 0 <= label < classes:
        what = f"has label {label} in {split}, but the {classes} classes of the model are 0 to {classes - 1}"
        raise config_error(f"dataset '{config.data.dataset}'", what)
