"""Datasets that can only be read one image after the other: `wds/`, `tfds/` and `hfids/` of timm."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from ctypes import c_int64
from functools import partial
from itertools import islice
from multiprocessing.sharedctypes import RawArray
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch.utils.data import IterableDataset, get_worker_info

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data.augmentation import Augmentation, TransformedSample
from roadmap.data.corrupt import LEFT_OUT, Corrupt, CorruptImages
from roadmap.data.datasets import open_timm
from roadmap.data.digits import Split
from roadmap.data.images import DAMAGED, UNKNOWN_FORMAT, Picture, Transform, image_mode, in_mode
from roadmap.data.labels import BadSample, field_in, label_in, label_of
from roadmap.data.listing import is_hidden, printable
from roadmap.data.locate import data_dir, kind_of
from roadmap.data.preflight import check_pipeline
from roadmap.errors import config_error
from roadmap.rng import SAMPLE, reseed, seed_of

STREAM = "stream"
FLAGS = 1 << 16  # images have no numbers here; a hash of their names stands in


class Stream(IterableDataset[TransformedSample]):
    """Transformed images of a stream, each process and worker its part, shuffled by seed and epoch as
    timm's readers do.

    An epoch is the same for the same number of processes and workers. It resumes in its middle by reading
    the images before again, without transforming them. Training takes as many images as the stream
    announces, over and over its shards if need be; evaluation takes each once, in batches that end with the
    part of a worker.
    """

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        transform: Transform,
        augmentation: Augmentation,
        plan: BatchPlan,
        rank: int,
        beside: Corrupt | None,
        workers: int,
    ) -> None:
        self.config = config
        self.transform = transform
        self.augmentation = augmentation
        self.plan = plan
        self.rank = rank
        self.training = split == "train"
        self.workers = max(1, workers)
        self.batch = plan.micro if self.training else config.system.eval_batch
        self.reader = self._open(split)
        self.images = int(self.reader.num_samples)
        self.corrupt = Corrupt(FLAGS, config.system.corrupt_images, beside=beside)
        self.iterations = self._iterations()
        self.digest: str | None = None  # unknown until all of it is read
        self.readers: str | None = f"{plan.world} x {self.workers} x {self.batch}"
        self._position = RawArray(c_int64, 2)  # epoch and first batch, shared with workers that live on

    def _open(self, split: Split) -> Any:
        data, kind, where = (
            self.config.data,
            kind_of(self.config.data),
            f"dataset '{self.config.data.dataset}'",
        )
        if data.classes is not None:
            raise config_error(
                "data.classes", f"cannot choose from {where}: a stream would have to be read to be counted"
            )
        if self.training:
            check_pipeline(self.config)
        if kind != "hfids":
            data_dir(self.config)
        # jpg is what timm decodes it to
        image_key = f"{data.image_key};jpg" if kind == "wds" and data.image_key else data.image_key
        reader = open_timm(
            self.config, split, is_training=self.training, batch_size=self.batch,
            seed=seed_of(STREAM, self.config.seed) % 2**31,
            input_img_mode="" if kind == "wds" else image_mode(self.config),  # _Decode converts
            input_key=image_key, target_key=data.label_key, download=self.config.system.download,
        ).reader  # fmt: skip
        if not reader.num_samples:
            raise config_error(
                where, "does not announce how many images it has; add their number: 'val-{00..03}.tar|50000'"
            )
        shards = len(reader.split_info.filenames) if kind == "wds" else None
        if self.training and shards is not None and shards < self.plan.world * self.workers:
            readers = f"{self.plan.world} processes of {self.workers} workers"
            raise config_error(
                where, f"has {shards} shards for {readers}, of which each needs one; lower system.workers"
            )
        return reader

    @property
    def num_classes(self) -> int | None:
        """The number of its classes, None if unknown."""
        return len(self.reader.class_to_idx) or None

    @property
    def class_names(self) -> list[str] | None:
        """The names of its classes, in the order of their labels, None if unknown."""
        names = self.reader.class_to_idx
        return sorted(names, key=names.get) or None

    def _iterations(self) -> int:
        if self.training:
            return self.images // (self.plan.share * self.plan.world)
        # approximately: each worker's last batch may be smaller
        return -(-self.images // (self.plan.world * self.batch))

    def loading(self) -> dict[str, Any]:
        """How a DataLoader makes batches of it."""
        return {"dataset": self, "batch_size": self.batch, "drop_last": self.training}

    def seek(self, epoch: int, first: int) -> int:
        """Moves to an iteration; returns how many batches from there on are to be dropped.

        Workers make batches in rotation, so an epoch can only be entered at a batch of the first of them.
        """
        batch = first * self.plan.accumulation if self.training else first
        skipped = batch - batch % self.workers if self.training else 0
        self._position[:] = [epoch, skipped]
        return batch - skipped

    def __iter__(self) -> Iterator[TransformedSample]:
        epoch, skipped = self._position
        info = get_worker_info()
        worker = info.id if info else 0
        self._begin(epoch, worker)
        ahead = skipped // self.workers * self.batch
        end = None
        if self.training:
            total = self.iterations * self.plan.accumulation
            end = len(range(worker, total, self.workers)) * self.batch
        count = ahead
        try:
            for image, label in self._read(worker, ahead, end):
                place = (epoch, self.rank, worker, count)
                reseed(SAMPLE, self.config.seed, *place)
                yield TransformedSample(self.transform(image), label, self.augmentation.draw(*place))
                count += 1
        except CorruptImages:  # the loader ends the run when it gets a batch, so it gets one
            size = self.config.data.image_size
            black = self.transform(Image.new(image_mode(self.config), (size, size)))
            yield from [TransformedSample(black, LEFT_OUT, self.augmentation.draw(epoch))] * self.batch
            return
        if end is not None and count < end:
            raise RuntimeError(
                f"the stream '{self.config.data.dataset}' ended after {count} of a worker's {end} images"
            )

    def _read(self, worker: int, first: int, end: int | None) -> Iterator[tuple[Picture, int]]:
        """A worker's images and labels from number `first` on; BadSample for an invalid one."""
        where = f"of worker {worker} of process {self.rank} in dataset '{self.config.data.dataset}'"
        number = first
        try:
            for image, label in islice(self.reader, first, end):
                yield image, label_of(label, f"image {number} {where}")
                number += 1
        except (
            AttributeError,
            UnidentifiedImageError,
        ) as error:  # no image at all, or one that `datasets` cannot decode
            raise BadSample(f"image {number} {where} cannot be decoded: {_why(error)}") from error

    def _begin(self, epoch: int, worker: int) -> None:
        """Sets timm's reader to the start of an epoch, as if it had not been used before."""
        reader = self.reader
        reader.set_epoch(epoch)
        if kind_of(self.config.data) != "wds":
            reader.dist_rank, reader.dist_num_replicas = self.rank, self.plan.world
            return
        # As if all workers of all processes were one process's: its evaluation then takes each image exactly
        # once.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        reader.global_worker_id, reader.global_num_workers = (
            self.rank * self.workers + worker,
            self.plan.world * self.workers,
        )
        reader.worker_info, reader.worker_seed = (
            True,
            seed_of(STREAM, self.config.seed, epoch, reader.global_worker_id),
        )
        reader._lazy_init()
        for stage in reader.ds.pipeline:
            if "handler" in getattr(stage, "kw", {}):
                stage.kw["handler"] = _reraise  # timm would skip what it cannot read
                if stage.args and isinstance(stage.args[0], partial):
                    key = self.config.data.label_key or reader.split_info.alt_label or None
                    stage.args = (_Decode(stage.args[0], self.corrupt, image_mode(self.config), key),)
                else:
                    stage.kw["select_files"] = _is_visible


def _why(error: Exception) -> str:
    """What is wrong with an image; Pillow's message about an unknown format holds an address in memory."""
    return UNKNOWN_FORMAT if isinstance(error, UnidentifiedImageError) else str(error)


def _is_visible(member: str) -> bool:
    return not is_hidden(member)


def _reraise(error: Exception) -> bool:
    if isinstance(error, ValueError) and "duplicate file name" in str(error):
        member = str(error.args[0]).partition(": ")[0]
        raise BadSample(
            f"a shard has two members {printable(member)}; adjacent samples need different names"
        ) from error
    raise error


class _Decode:
    """timm's decoding of a sample, in `mode`, without unreadable images; CorruptImages if they are too many.

    BadSample if its label is missing or invalid: `key` names a field of its JSON, None is its text.
    """

    def __init__(
        self, decode: Callable[[dict[str, Any]], Any], corrupt: Corrupt, mode: str, key: str | None
    ) -> None:
        self.decode = decode
        self.corrupt = corrupt
        self.mode = mode
        self.key = key

    def __call__(self, sample: dict[str, Any]) -> Any:
        name = f"{sample['__key__']} in {sample['__url__']}"
        self._check_label(sample, name)
        try:
            decoded = self.decode(sample)
            return decoded and decoded | {"jpg": in_mode(decoded["jpg"], self.mode)}  # timm's name for it
        except DAMAGED as error:
            # samples may share a name
            content = b"".join(part for part in sample.values() if isinstance(part, bytes))
            number = zlib.crc32(content, zlib.crc32(os.fsencode(name))) % FLAGS
            self.corrupt.add(
                number, OSError(f"{printable(name)} is not an image that can be read: {_why(error)}")
            )
            self.corrupt.check()
            return None

    def _check_label(self, sample: dict[str, Any], name: str) -> None:
        member = "cls" if self.key is None else "json"
        where = f"{printable(sample['__key__'])}.{member} in {sample['__url__']}"
        if member not in sample:
            there = ", ".join(sorted(key for key in sample if not key.startswith("__")))
            raise BadSample(
                f"sample '{printable(sample['__key__'])}' in {sample['__url__']} has no label: no member"
                f" {member}, but {there}"
            )
        if self.key is None:
            label_in(sample[member], where)
        else:
            label_of(field_in(sample[member], self.key, where), where)
