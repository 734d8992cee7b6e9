"""Small images in folders and tar shards, and configurations that read them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.data.augmentation import Augmentation, Batch
from roadmap.data.digits import Split
from roadmap.data.loader import Loader, build_transform
from roadmap.data.staging import stage
from roadmap.steps import load_roadmap, resolve

ROADMAP = load_roadmap()
CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SIZE = 32
TINY: dict[str, Any] = {
    "model.num_classes": len(CLASSES),
    "model.width_mult": 0.125,
    "model.depths": [1, 1, 1, 1],
    "data.image_size": SIZE,
    "recipe.epochs": 1,
    "recipe.warmup_epochs": 0.0,
    "recipe.mixup": 0.0,
    "recipe.cutmix": 0.0,
    "recipe.global_batch": 4,
    "system.device": "cpu",
    "system.threads": 1,
    "system.workers": 0,
    "system.eval_batch": 4,
}
# No augmentation: what reaches the network is the picture itself.
PLAIN: dict[str, Any] = {
    "recipe.crop_scale": None,
    "recipe.hflip": 0.0,
    "recipe.randaugment": None,
    "recipe.eval_crop_pct": 1.0,
}


def config_of(data_dir: Path | str | None, **overrides: Any) -> RunConfig:
    """A tiny run of ConvNeXt on the images in `data_dir`; dots in names of values are written as two
    underscores.
    """
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    where = {"system.data_dir": str(data_dir) if data_dir else None}
    return resolve(ROADMAP, "separate_downsampling", overrides=TINY | where | given)


def plain(root: Path | str | None, **overrides: Any) -> RunConfig:
    """The same without augmentation."""
    return config_of(root, **{name.replace(".", "__"): value for name, value in PLAIN.items()} | overrides)


def picture(number: int, size: int = SIZE) -> Image.Image:
    """A picture of one color that is `number`'s own, up to 40, and survives JPEG."""
    color = (20 + 5 * number, 20 + 50 * (number % 4), 220 - 5 * number)
    return Image.fromarray(np.full((size, size, 3), color, dtype=np.uint8))


def number_of(image: Tensor, config: RunConfig) -> int:
    """Which picture a normalized image is."""
    red = float(image[0].mean()) * config.data.std[0] + config.data.mean[0]
    return round((255 * red - 20) / 5)


def jpeg(number: int) -> bytes:
    """The content of a picture's file."""
    file = io.BytesIO()
    picture(number).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_folder(root: Path, train: int = 5, val: int = 3) -> Path:
    """Folders of as many pictures a class; a split's pictures are numbered through."""
    for split, each in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                (root / split / name / f"{index}.jpg").write_bytes(jpeg(label * each + index))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number: int) -> dict[str, bytes]:
    """The members of a picture in a shard; its label is its number modulo the classes."""
    return {f"{number:04d}.jpg": jpeg(number), f"{number:04d}.cls": str(number % len(CLASSES)).encode()}


def write_shards(root: Path, train: int = 4, val: int = 2, each: int = 4) -> Path:
    """train-00.tar, train-01.tar, ... and val-00.tar, ... with `each` pictures, numbered through."""
    for split, shards in (("train", train), ("val", val)):
        for shard in range(shards):
            numbers = range(shard * each, (shard + 1) * each)
            members = [sample(number) for number in numbers]
            write_tar(
                root / f"{split}-{shard:02d}.tar",
                {name: content for part in members for name, content in part.items()},
            )
    return root


def shards_of(root: Path | str, **overrides: Any) -> RunConfig:
    """A run on the shards of `write_shards`."""
    given = {"data__train_split": "train-{00..03}.tar", "data__val_split": "val-*.tar"} | overrides
    return config_of(root, data__dataset="shards", **given)


def batches(
    config: RunConfig, split: Split = "train", epoch: int = 0, first: int = 0, **how: Any
) -> list[Batch]:
    """The batches of a fresh loader."""
    return list(Loader(stage(config), split, CPU, **how).epoch(epoch, first))


def same(one: list[Batch], other: list[Batch]) -> bool:
    """Whether batches are equal, bit for bit."""
    return len(one) == len(other) and all(map(equal, one, other))


def equal(one: Any, other: Any) -> bool:
    """Whether two batches, or parts of them, are equal."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def numbers_of(found: list[Batch], config: RunConfig) -> list[int]:
    """Which pictures are in batches."""
    return [number_of(image, config) for images, *_ in found for image in images]


def labels_of(found: list[Batch]) -> list[int]:
    """The labels in batches."""
    return [int(label) for _, labels, *_ in found for label in labels]


def augmentation_of(config: RunConfig) -> Augmentation:
    """What draws for the configuration's training images."""
    return Augmentation(
        config, build_transform(config, training=True), config.recipe.pipeline == "tensor", draws=True
    )


def plan_of(config: RunConfig, world: int) -> BatchPlan:
    """The configuration's plan for `world` processes."""
    return plan_batches(config, world)


class Pictures:
    """A Dataset of somebody else's; an error among its images is raised when it is asked for."""

    def __init__(self, items: list[tuple[Any, Any]], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes, self.targets = classes, [label for _, label in items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, label = self.items[number]
        if isinstance(image, OSError):
            raise image
        return image, label


def custom(**overrides: Any) -> RunConfig:
    """A run on a Dataset that is handed over."""
    return plain(None, data__dataset="custom/pictures", **overrides)


class CountedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts PyTorch's operators in its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
