"""Images that are decoded once, and stay in memory or on the device: `system.cache`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from roadmap.config import RunConfig
from roadmap.data.corrupt import LEFT_OUT
from roadmap.data.crops import BatchCrop, PaddedCrop, Place, PlaceTransform
from roadmap.data.datasets import Source
from roadmap.data.digits import Split
from roadmap.data.images import Picture, Transform, Unreadable, wants_tensors
from roadmap.data.map_style import Samples
from roadmap.errors import ConfigError, config_error
from roadmap.signals import obey_parent
from roadmap.terminal import mib

CHUNK = 64  # images that are decoded and kept together
PROBED = 16  # images whose sizes stand for those of all
# variables with the number of a run's processes on a node
LOCAL = ("LOCAL_WORLD_SIZE", "SUBMITIT_LOCAL_NTASKS", "SLURM_NTASKS_PER_NODE")
GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**62  # bytes
Decoded = tuple[Tensor, int, str | None]


class Chunk(NamedTuple):
    """Decoded images, one after the other, with their shapes (N, 3), their labels, and why one could not be
    read.
    """

    pixels: Tensor
    shapes: NDArray[np.int64]
    labels: list[int]
    errors: list[str | None]


class Decoding(Dataset[Decoded]):
    """Each image as it is kept, a uint8 tensor, with its label, and why it could not be read.

    It is the transformed image (C, H, W) if nothing about that is random, or else the decoded one (H, W, C).
    """

    def __init__(self, samples: Samples) -> None:
        self.source = samples.source
        self.transform = samples.transform if samples.seed is None else None

    def __getitem__(self, number: int) -> Decoded:
        try:
            picture, label = self.source[number]
        except Unreadable as error:
            return torch.empty(0, 0, 0, dtype=torch.uint8), LEFT_OUT, str(error)
        if self.transform is not None:
            return torch.as_tensor(self.transform(picture)), label, None
        if isinstance(picture, Tensor):
            return picture.permute(1, 2, 0), label, None
        return torch.from_numpy(np.atleast_3d(np.array(picture))), label, None

    def chunks(self, numbers: range, workers: int) -> Iterator[Chunk]:
        """The images with these numbers, in order."""
        loader: Any = DataLoader(
            self, CHUNK, sampler=numbers, num_workers=workers, collate_fn=_packed,
            worker_init_fn=partial(obey_parent, os.getpid()),
        )  # fmt: skip
        for chunk in loader:
            # what comes from a worker lies in shared memory, of which there may be little
            yield chunk._replace(pixels=chunk.pixels.clone()) if workers else chunk


def _packed(found: list[Decoded]) -> Chunk:
    images, labels, errors = zip(*found, strict=True)
    pixels = torch.cat([image.reshape(-1) for image in images])
    return Chunk(pixels, np.array([image.shape for image in images]), list(labels), list(errors))


class CachedSource:
    """A source whose images `numbers` have been decoded; its pictures are the images' positions in it."""

    def __init__(self, source: Source, numbers: range) -> None:
        self.source = source
        self.numbers = numbers
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.labels = source.labels
        self.kept: list[int] = []  # labels
        self.errors: dict[int, str] = {}  # of images that cannot be read, by position

    @property
    def digest(self) -> str:
        return self.source.digest

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        position = self.numbers.index(number)
        if position in self.errors:
            raise Unreadable(self.errors[position])
        return self.picture(position), self.kept[position]

    def name(self, number: int) -> str:
        return self.source.name(number)

    def picture(self, position: int) -> Picture:
        """The image at a position."""
        return position

    def add(self, chunk: Chunk) -> None:
        """Appends the labels of more images, and why some cannot be read."""
        start = len(self.kept)
        self.kept += chunk.labels
        self.errors |= {start + row: error for row, error in enumerate(chunk.errors) if error is not None}


class HostSource(CachedSource):
    """One that keeps the images, and returns them as `restore` makes pictures of them."""

    def __init__(self, source: Source, numbers: range, restore: Callable[[Tensor], Picture]) -> None:
        super().__init__(source, numbers)
        self.restore = restore
        self.chunks: list[Tensor] = []
        self.places: list[NDArray[np.int64]] = []  # by chunk: where an image starts, and its shape

    def picture(self, position: int) -> Picture:
        chunk, row = divmod(position, CHUNK)
        start, high, wide, deep = self.places[chunk][row].tolist()
        pixels = self.chunks[chunk][start : start + high * wide * deep]
        return self.restore(pixels.view(high, wide, deep))

    def add(self, chunk: Chunk) -> None:
        super().add(chunk)
        sizes = chunk.shapes.prod(axis=1)
        self.chunks.append(chunk.pixels)
        self.places.append(np.column_stack([np.cumsum(sizes) - sizes, chunk.shapes]))


class DeviceImages:
    """uint8 images (N, C, H, W) on the device, from which batches are cut as their places are."""

    def __init__(self, images: Tensor, crop: BatchCrop | PaddedCrop | None) -> None:
        self.images = images
        self.crop = crop

    def __call__(self, places: Tensor) -> Tensor:
        """uint8 images (B, C, size, size) of places (B, 6)."""
        images = self.images.index_select(0, places[:, 0])
        return images if self.crop is None else self.crop(images, places)


class Cache:
    """What makes the cache of a split's images `numbers`: those that this process will read."""

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        samples: Samples,
        numbers: range,
        fitting: Callable[[int], int],
        world: int,
    ) -> None:
        """`fitting` is the number of workers that can send chunks of that many bytes, and `world` that of the
        run's processes.
        """
        self.config = config
        self.split = split
        self.samples = samples
        self.numbers = numbers
        self.fitting = fitting
        self.world = world
        self.decoding = Decoding(samples)
        self.random = samples.seed is not None

    def on_host(self) -> Samples:
        """The samples from memory; ConfigError where it does not have the room."""
        image_bytes = self._probe(None)
        samples, restore = self.samples, _itself
        if self.random:
            restore = _as_tensor if wants_tensors(self.config, self.split) else _as_image
        source = HostSource(samples.source, self.numbers, restore)
        for chunk in self.decoding.chunks(self.numbers, self.fitting(CHUNK * image_bytes)):
            source.add(chunk)
        if self.random:
            return self._samples(source, samples.transform, samples.blank)
        return self._samples(source, _itself, samples.transform(samples.blank))

    def on_device(self, device: torch.device) -> tuple[Samples, DeviceImages]:
        """Samples whose images are places, and what cuts these from the images on the device; ConfigError
        where it does not have the room, or images that are to be cropped differ in size.
        """
        image_bytes = self._probe(device)
        source = CachedSource(self.samples.source, self.numbers)
        blank = len(self.numbers)  # behind the others, and black
        images: Tensor | None = None
        for chunk in self.decoding.chunks(self.numbers, self.fitting(CHUNK * image_bytes)):
            start = len(source.kept)
            source.add(chunk)
            rows = np.array([row for row, error in enumerate(chunk.errors) if error is None], dtype=np.int64)
            if not len(rows):
                continue
            shape = chunk.shapes[rows[0]] if images is None else _shape_of(images, self.random)
            if len(other := rows[(chunk.shapes[rows] != shape).any(axis=1)]):
                raise self._uneven(self.numbers[start + int(other[0])], chunk.shapes[other[0]], shape)
            found = chunk.pixels.view(len(rows), *shape.tolist())
            found = found.permute(0, 3, 1, 2) if self.random else found
            if images is None:
                images = torch.zeros(blank + 1, *found.shape[1:], dtype=torch.uint8, device=device)
            images[torch.from_numpy(rows + start).to(device)] = found.to(device)
        edge = self.config.data.image_size
        if images is None:  # none can be read
            channels = self.config.model.in_chans
            images = torch.zeros(blank + 1, channels, edge, edge, dtype=torch.uint8, device=device)
        if not self.random:
            return self._samples(source, Place, blank), DeviceImages(images, None)
        height, width = images.shape[2:]
        transform = PlaceTransform(self.samples.transform, height, width)
        crop = self._crop(height, width, device)
        return self._samples(source, transform, blank), DeviceImages(images, crop)

    def _crop(self, height: int, width: int, device: torch.device) -> BatchCrop | PaddedCrop:
        """What cuts images of that height and width; ConfigError where that is not possible on the device."""
        recipe, edge = self.config.recipe, self.config.data.image_size
        if recipe.crop_padding is not None:
            if (height, width) == (edge, edge):
                return PaddedCrop(recipe.crop_padding, edge)
            what = f"'device' pads images of {edge} x {edge} pixels, and these have {height} x {width}"
            raise config_error("system.cache", f"{what}; --set system.cache=host")
        crop = BatchCrop(recipe, height, width, edge, device)
        if crop.agrees_with_torchvision():
            return crop
        what = f"'device' crops on {device.type} as torchvision on the CPU of this machine does not"
        raise config_error("system.cache", f"{what}; --set system.cache=host")

    def _samples(self, source: Source, transform: Transform, blank: Picture) -> Samples:
        given = self.samples
        return Samples(source, transform, given.augmentation, given.seed, given.corrupt, blank, given.replace)

    def _probe(self, device: torch.device | None) -> int:
        """The bytes of an image; ConfigError where all of them do not fit on the device, or into memory."""
        step = max(1, len(self.numbers) // PROBED)
        probed = [self.decoding[number][0].numel() for number in self.numbers[::step]]
        sizes = [size for size in probed if size]  # of those that can be read
        image_bytes = max(1, -(-sum(sizes) // max(1, len(sizes))))
        needed, where = image_bytes * len(self.numbers), "memory"
        if device is not None and device.type == "cuda":
            free, where = torch.cuda.mem_get_info(device)[0], str(device)
        else:
            free = available_memory() // self._processes_here()
        if needed > free:
            mode = self.config.system.cache
            what = f"'{mode}' needs {mib(needed)} for {len(self.numbers):,} images of {self.split}"
            hints = ["host", "none"] if where != "memory" else ["none"]
            hint = ", or ".join(f"--set system.cache={hint}" for hint in hints)
            raise config_error("system.cache", f"{what}, and {where} has {mib(free)} free; {hint}")
        return image_bytes

    def _processes_here(self) -> int:
        """How many of the run's processes share this node's memory: at worst all of them."""
        given = [os.environ.get(name, "") for name in LOCAL]
        return min([self.world, *(max(1, int(value)) for value in given if value.isdecimal())])

    def _uneven(self, number: int, shape: NDArray[np.int64], others: NDArray[np.int64]) -> ConfigError:
        (height, width), (high, wide) = shape[:2], others[:2]
        what = (
            f"'device' needs images of one size to crop them, and {self.samples.source.name(number)} has"
            f" {height} x {width} pixels, others {high} x {wide}"
        )
        return config_error("system.cache", f"{what}; --set system.cache=host")


def stack_places(found: list[tuple[Place, int]]) -> tuple[Tensor, Tensor]:
    """Places (B, 6) and labels (B,)."""
    places, labels = zip(*found, strict=True)
    return torch.tensor(places), torch.tensor(labels)


def available_memory() -> int:
    """Bytes of memory that can be taken on this machine, within what its control groups allow."""
    free = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        if "SC_AVPHYS_PAGES" in os.sysconf_names
        else UNLIMITED
    )
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * int(line.split()[1])
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            group = GROUPS / line.rpartition(":")[2].lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(GROUPS):
                    free = min(free, _left_in(folder))
    return free


def _left_in(group: Path) -> int:
    """Bytes that a control group leaves, with what it would give back for them."""
    with suppress(OSError, ValueError):  # there is no such group, or it has no limit
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    return UNLIMITED


def _shape_of(images: Tensor, channels_last: bool) -> NDArray[np.int64]:
    """The shape of each image as it was decoded."""
    channels, height, width = images.shape[1:]
    return np.array((height, width, channels) if channels_last else (channels, height, width))


def _itself(image: Tensor) -> Picture:
    return image


def _as_tensor(image: Tensor) -> Picture:
    return image.permute(2, 0, 1)


def _as_image(image: Tensor) -> Picture:
    return Image.fromarray(image[:, :, 0].numpy() if image.shape[2] == 1 else image.numpy())
