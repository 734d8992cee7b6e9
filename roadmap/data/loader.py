"""From a data set to batches on the device, in an order and with augmentations that depend only on seed,
epoch and sample.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from timm.data import create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from torch import Tensor
from torch.utils.data import DataLoader

from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.data.arrival import POLL_S, Waiting, arriving, check_workers
from roadmap.data.corrupt import LEFT_OUT, CorruptImages
from roadmap.data.decoder import Picture, wants_tensors
from roadmap.data.digits import Split
from roadmap.data.iterable_style import Stream
from roadmap.data.map_style import MapStyleFeed, check_label
from roadmap.data.preflight import STREAMS, kind_of
from roadmap.data.staging import stage
from roadmap.data.tensor_decoder import collate, for_tensors
from roadmap.strict_yaml import ConfigError, config_error

Transform = Callable[[Picture], Tensor]
GREYS = 255  # what a mean or a standard deviation of 1 stands for


class ValidatedBatches:
    """A DataLoader's batches, with a clear error in place of the first that must not reach the network."""

    def __init__(
        self,
        loader: DataLoader[Any],
        feed: MapStyleFeed | Stream,
        config: RunConfig,
        split: Split,
        waiting: Waiting,
    ) -> None:
        self.loader, self.feed, self.config, self.split, self.waiting = loader, feed, config, split, waiting

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in arriving(self.loader, self.close, self.waiting):
            try:
                self._check(int(labels.min()), int(labels.max()))
            except (ConfigError, CorruptImages):
                self.close()
                raise
            yield images, labels

    def _check(self, low: int, high: int) -> None:
        self.feed.corrupt.check()
        if low == LEFT_OUT and self.split == "train":
            raise CorruptImages(
                f"dataset '{self.config.data.dataset}' has no image in {self.split} that can be read"
            )
        for label in (low, high):
            if label != LEFT_OUT:
                check_label(label if label >= 0 else label - LEFT_OUT, self.config, self.split)

    def close(self) -> None:
        """Ends the workers."""
        workers: Any = self.loader._iterator
        if workers is not None:
            workers._shutdown_workers()
            self.loader._iterator = None


class Loader:
    """Normalized float batches (N, C, H, W), channels_last, with labels (N,), on the device: those of process
    `rank`.

    In training, `recipe.pipeline: tensor` leaves gray levels, 0 to 255, which the engine augments before it
    normalizes them. Training gives the plan's micro-batches of whole global batches, evaluation each of the
    split's `images` once among all processes. A label of -1 marks an image of the evaluation that could not
    be read. `source` stands in for the data set that the configuration names. With the loader `beside` it, it
    shares what `system.corrupt_images` allows this process. While a batch does not come, `waiting` is called
    with the seconds so far every few seconds, and may raise; NoBatch ends the wait.
    """

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        device: torch.device,
        *,
        rank: int = 0,
        plan: BatchPlan | None = None,
        source: Any = None,
        beside: Loader | None = None,
        waiting: Waiting = lambda seconds: None,
    ) -> None:
        config, plan = stage(config), plan or plan_batches(config)
        name, tensors = f"dataset '{config.data.dataset}'", wants_tensors(config, split)
        transform = build_transform(config, split == "train")
        if tensors:
            transform = for_tensors(transform, config.recipe)
        self._feed: MapStyleFeed | Stream
        shared = None if beside is None else beside._feed.corrupt
        if kind_of(config.data) in STREAMS and source is None:
            self._feed = Stream(config, split, transform, plan, rank, shared)
        else:
            self._feed = MapStyleFeed(config, split, transform, plan, rank, source, shared)
        self.images, classes = self._feed.images, self._feed.num_classes
        if classes is not None and classes != config.model.num_classes:
            counts = f"has {classes} classes in {split}, the model {config.model.num_classes}"
            raise config_error(name, f"{counts}; --set model.num_classes={classes}")
        least = plan.share * plan.world if split == "train" else 1
        if self.images < least:
            raise config_error(name, f"has {self.images} images in {split}, less than a batch of {least}")
        workers = config.system.workers
        check_workers(config, self._feed.batch * config.model.in_chans * config.data.image_size**2)
        loader: Any = DataLoader(
            **self._feed.loading(), num_workers=workers, collate_fn=collate if tensors else fast_collate,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0,
            worker_init_fn=partial(obey_parent, os.getpid()), timeout=POLL_S if workers else 0,
        )  # fmt: skip
        self._batches = ValidatedBatches(loader, self._feed, config, split, waiting)
        mean, std = (0.0, 1 / GREYS) if tensors else (config.data.mean, config.data.std)
        self._loader = PrefetchLoader(self._batches, mean, std, config.model.in_chans, device)

    def __len__(self) -> int:
        """Iterations of an epoch; in an evaluation, batches of this process."""
        return self._feed.iterations

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a position in it is measured in, which must be the same for a run that resumes there: JSON
        values by their names.

        `images` and the `digest` of their listing, None where data can only be streamed; then `readers` says
        how processes and workers share the stream. `classes` are the names in the order of their labels, None
        if the data has none.
        """
        return {
            "images": self.images,
            "digest": self._feed.digest,
            "readers": self._feed.readers,
            "classes": self.class_names,
        }

    @property
    def class_names(self) -> list[str] | None:
        """What the classes are called, in label order; None unless the data says it of all of the model's."""
        names = self._feed.class_names
        return names if names is not None and len(names) == self._batches.config.model.num_classes else None

    @property
    def corrupt(self) -> int:
        """How many images could not be read so far."""
        return self._feed.corrupt.count

    def corrupt_state(self) -> list[int]:
        """The numbers of those images, sorted; in a stream, hashes of their names."""
        return self._feed.corrupt.state()

    def restore_corrupt(self, state: Iterable[int]) -> None:
        """Counts images that an earlier attempt or another process could not read, even if too many."""
        self._feed.corrupt.restore(state)

    def check_corrupt(self) -> None:
        """CorruptImages if this loader and those beside it count more than `system.corrupt_images` allows."""
        self._feed.corrupt.check()

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's micro-batches of an epoch from iteration `first` on, `plan.accumulation` in each."""
        dropped = self._feed.seek(epoch, first)
        for number, (images, labels) in enumerate(self._loader):
            if number >= dropped:
                yield images.contiguous(memory_format=torch.channels_last), labels

    def close(self) -> None:
        """Ends the workers; left to find out that nobody needs them, Python takes seconds for each."""
        self._batches.close()


def obey_parent(parent: int, worker: int) -> None:
    """Has a worker leave signals to the process that it works for: one to all processes must not end it under
    that one's hands.

    `parent` is that process: Python may have started the worker from another, its fork server.
    """
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent,), name="signals", daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def build_transform(config: RunConfig, training: bool) -> Transform:
    """timm's transform from a picture to a uint8 tensor (C, H, W), as the recipe wants it."""
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
        crop_mode=recipe.eval_crop_mode,
        mean=config.data.mean,
        std=config.data.std,
        use_prefetcher=True,
    )
    return transform
