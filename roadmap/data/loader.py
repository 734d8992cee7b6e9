"""From a dataset to batches on the device, in an order and with augmentations that depend only on seed, epoch
and sample; what the data-loading workers need, and a wait for them that ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import islice
from multiprocessing.connection import Listener
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomCrop, Resize  # type: ignore[import-untyped]

from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.data.augmentation import Augmentation, Batch, map_tensors
from roadmap.data.cache import Cache, DeviceImages, stack_places
from roadmap.data.corrupt import LEFT_OUT, Corrupt, CorruptImages
from roadmap.data.digits import Split
from roadmap.data.images import Transform, wants_tensors
from roadmap.data.iterable_style import Stream
from roadmap.data.locate import STREAMS, kind_of
from roadmap.data.map_style import MapStyleFeed, check_label
from roadmap.data.preflight import check_cache
from roadmap.data.tensor_decoder import for_tensors
from roadmap.data.workers import shared_bytes, workers_in, workers_of
from roadmap.errors import ConfigError, config_error
from roadmap.signals import obey_parent
from roadmap.terminal import mib

logger = logging.getLogger(__name__)

WHITE = 255  # the pixel value of 1 in a mean or a standard deviation
SHARED_MEMORY = Path("/dev/shm")
DRAWN_BYTES = 512  # of an image whose pixels are on the device: its place, and what augmentation draws
POLL_S = 5.0
WARN_S, TIMEOUT_S = 60.0, 600.0
# how PyTorch's RuntimeError begins; another one, should it ever change, ends the run
TIMED_OUT = "DataLoader timed out"

Waiting = Callable[[float], None]


class NoBatch(OSError):
    """No batch has come for minutes; the message names what may be in the way."""


class Loader:
    """Normalized float batches (N, C, H, W), channels_last, with labels (N,), on the device: those
    of process `rank`.

    In training, `recipe.pipeline: tensor` leaves pixel values of 0 to 255, which the engine augments and
    normalizes. Training gives the plan's micro-batches of complete global batches, evaluation each of the
    split's `images` once among all processes. A label of -1 marks an image of the evaluation that could not
    be read. `plan` is one process's by default. `config` is the staged one. `source` stands in for its
    dataset. With the loader `beside` it, it shares what `system.corrupt_images` allows this process. While a
    batch does not come, `waiting` is called with the seconds so far every few seconds, and may raise;
    NoBatch ends the wait.
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
        plan = plan or plan_batches(config)
        check_cache(config)
        name, tensors = f"dataset '{config.data.dataset}'", wants_tensors(config, split)
        transform = build_transform(config, split == "train")
        augmentation = Augmentation(config, transform, tensors, draws=split == "train")
        if tensors:
            transform = for_tensors(transform, config.recipe)
        self._feed: MapStyleFeed | Stream
        shared = None if beside is None else beside.corrupt
        streams = kind_of(config.data) in STREAMS and source is None
        workers = workers_of(config, device.type, streams)
        if streams:
            self._feed = Stream(config, split, transform, augmentation, plan, rank, shared, workers)
        else:
            self._feed = MapStyleFeed(config, split, transform, augmentation, plan, rank, source, shared)
        self.corrupt: Corrupt = self._feed.corrupt
        self.images, classes = self._feed.images, self._feed.num_classes
        if classes is not None and classes != config.model.num_classes:
            counts = f"has {classes} classes in {split}, the model {config.model.num_classes}"
            raise config_error(name, f"{counts}; --set model.num_classes={classes}")
        least = plan.share * plan.world if split == "train" else 1
        if self.images < least:
            raise config_error(name, f"has {self.images} images in {split}, less than a batch of {least}")
        batch_bytes = self._feed.batch * config.model.in_chans * config.data.image_size**2
        cut: DeviceImages | None = None
        if config.system.cache != "none" and isinstance(self._feed, MapStyleFeed):
            cache = Cache(
                config,
                split,
                self._feed.samples,
                self._feed.numbers,
                partial(fitting_workers, workers),
                plan.world,
            )
            if config.system.cache == "device":
                self._feed.samples, cut = cache.on_device(device)
                augmentation.stack = stack_places
                batch_bytes = self._feed.batch * DRAWN_BYTES
                workers = workers if augmentation.draws or self._feed.samples.seed is not None else 0
            else:
                self._feed.samples = cache.on_host()
        if config.system.workers == "auto" and not streams:
            workers = fitting_workers(workers, batch_bytes)
        check_workers(workers, batch_bytes)
        self.workers = workers
        loader: Any = DataLoader(
            **self._feed.loading(), num_workers=workers, collate_fn=augmentation.collate,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0,
            worker_init_fn=partial(obey_parent, os.getpid()), timeout=POLL_S if workers else 0,
        )  # fmt: skip
        self._batches = ValidatedBatches(loader, self._feed, config, split, waiting)
        mean, std = ((0.0,), (1 / WHITE,)) if tensors else (config.data.mean, config.data.std)
        self._loader = Prefetcher(self._batches, mean, std, device, cut)

    def __len__(self) -> int:
        """Iterations of an epoch; in an evaluation, batches of this process."""
        return self._feed.iterations

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """This process's micro-batches of an epoch from iteration `first`, `plan.accumulation` in each."""
        dropped = self._feed.seek(epoch, first)
        yield from islice(self._loader, dropped, None)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a position in it refers to, which must be the same for a run that resumes there: JSON
        values by their names.

        `images` and the `digest` of their listing, None where data can only be streamed; then `readers` is
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
        """The classes' names, in label order; None unless the data names all of the model's."""
        names = self._feed.class_names
        return names if names is not None and len(names) == self._batches.config.model.num_classes else None

    def close(self) -> None:
        """Ends the workers, for which Python would take seconds each at its exit."""
        self._batches.close()


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
        self.loader = loader
        self.feed = feed
        self.config = config
        self.split = split
        self.waiting = waiting

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._arriving():
            try:
                self._check(int(batch.labels.min()), int(batch.labels.max()))
            except (ConfigError, CorruptImages):
                self.close()
                raise
            yield batch

    def _arriving(self) -> Iterator[Batch]:
        """The DataLoader's batches; NoBatch if none comes for TIMEOUT_S."""
        try:
            batches = iter(self.loader)
        except RuntimeError as error:  # workers of an earlier epoch that do not answer, such as stopped ones
            if not str(error).startswith(TIMED_OUT):
                raise
            self.close()
            batches = iter(self.loader)
        asked, warned = time.monotonic(), False
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(TIMED_OUT):
                    raise
                seconds = time.monotonic() - asked
                self.waiting(seconds)
                if seconds > TIMEOUT_S:
                    raise NoBatch(f"no batch has come for {seconds:.0f} s {self._origin()}") from error
                if seconds > WARN_S and not warned:
                    logger.warning("no batch has come for %.0f s %s", seconds, self._origin())
                    warned = True
            else:
                yield batch
                asked, warned = time.monotonic(), False

    def _origin(self) -> str:
        """Which workers were asked for a batch, and what they may lack."""
        words = f"from {self.loader.num_workers} data-loading workers"
        if SHARED_MEMORY.is_dir():
            usage = shutil.disk_usage(SHARED_MEMORY)
            words += f"; {SHARED_MEMORY} has {mib(usage.free)} of {mib(usage.total)} free"
        return f"{words}; if the storage answers, try --set system.workers=0"

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
        """Ends the workers; the next epoch starts others."""
        workers: Any = self.loader._iterator
        if workers is not None:
            workers._shutdown_workers()
            self.loader._iterator = None


class Prefetcher:
    """The batches on the device, their images normalized, in float32 and channels_last; with `cut`, images
    come as places, and are cut from those on the device.

    On CUDA a stream of its own makes the transfers: that of a batch overlaps with the training on the one
    before, whose kernels are still queued when the training loop asks for the next.
    """

    def __init__(
        self,
        batches: ValidatedBatches,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        cut: DeviceImages | None = None,
    ) -> None:
        self.batches = batches
        self.device = device
        self.cut = cut
        self.mean, self.std = (
            torch.tensor([WHITE * value for value in values], device=device).view(1, -1, 1, 1)
            for values in (mean, std)
        )
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            sent = self._send(batch)
            images = sent.images if self.cut is None else self.cut(sent.images)
            images = images.to(torch.float32, memory_format=torch.channels_last)
            yield sent._replace(images=images.sub_(self.mean).div_(self.std))

    def _send(self, batch: Batch) -> Batch:
        def to_device(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        if self.stream is None:
            return map_tensors(batch, to_device)
        training = torch.cuda.current_stream(self.device)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(training)  # or the next transfer could take its memory while it is in use
            return tensor

        with torch.cuda.stream(self.stream):
            sent = map_tensors(batch, to_device)
        training.wait_stream(self.stream)
        return map_tensors(sent, keep)


def fitting_workers(workers: int, batch_bytes: int) -> int:
    """That many data-loading workers, or as many as have room for batches of `batch_bytes`, with a
    warning.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = min(workers, workers_in(free, batch_bytes))
    if fitting < workers:
        logger.warning(
            "%s has %s free, room for %d of %d data-loading workers; a container gets more with --shm-size",
            SHARED_MEMORY,
            mib(free),
            fitting,
            workers,
        )
    return fitting


def check_workers(workers: int, batch_bytes: int) -> None:
    """ConfigError where batches of `batch_bytes` cannot come from that many data-loading workers.

    A worker whose batch does not fit into shared memory loses it without an error, and so does one whose
    socket cannot be made.
    """
    if not workers:
        return
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        what = f"is where data-loading workers make their sockets, and they cannot: {error.strerror or error}"
        raise config_error(
            f"TMPDIR {gettempdir()}", f"{what}; set TMPDIR=/tmp, or --set system.workers=0"
        ) from error
    if not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, shared_bytes(workers, batch_bytes)
    if needed > free:
        fitting = workers_in(free, batch_bytes)
        what = (
            f"has {mib(free)} free, and {workers} data-loading workers need {mib(needed)} for batches of"
            f" {mib(batch_bytes)}"
        )
        fixes = f"--set system.workers={fitting} fits; a container gets more with --shm-size"
        raise config_error(str(SHARED_MEMORY), f"{what}; {fixes}")


def build_transform(config: RunConfig, training: bool) -> Transform:
    """timm's transform from a picture to a uint8 tensor (C, H, W), by the recipe."""
    recipe = config.recipe
    transform = create_transform(
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
    stages: list[Any] = transform.transforms
    if training and recipe.crop_padding is not None:
        edge = config.data.image_size
        resize = Resize(edge, str_to_interp_mode(recipe.train_interpolation))
        stages[:1] = [resize, RandomCrop(edge, padding=recipe.crop_padding)]  # in place of timm's crop
    composed: Transform = Compose(stages)
    return composed
