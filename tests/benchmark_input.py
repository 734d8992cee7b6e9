"""What one core makes of ImageNet's images in a second, by timm's pipeline and by ours: `python -m
tests.benchmark_input`.

`tensor` is not like for like with the others: it leaves RandAugment to the device. So timm's pipeline is
measured without RandAugment, too, and so is the device's part, here on the CPU. The images are synthetic:
blurred noise of all scales, as large as ImageNet's usual ones and about as heavy.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader

from roadmap.config import RunConfig
from roadmap.data.datasets import make_source
from roadmap.data.loader import Loader, build_transform
from roadmap.data.locate import kind_of
from roadmap.doctor.photographs import CLASSES, SHORTER, SIZE, jpegs
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import hardware
from roadmap.training.device_transforms import DeviceTransform
from tests.helpers.images import CPU, write_tar

BATCH = 32
READY = 8  # batches with their draws that the device's part is measured on
Batches = Iterator[Any]


def write_data(root: Path, images: int) -> str:
    """A folder of JPEGs, and a shard of the same ones made smaller; returns how heavy they are."""
    members: dict[str, bytes] = {}
    sizes = []
    for number in range(images):
        large, small = jpegs(number)
        for split in ("train", "val"):
            path = root / "folder" / split / f"c{number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(large)
        members |= {f"{number:04d}.jpg": small, f"{number:04d}.cls": str(number % CLASSES).encode()}
        sizes.append((len(large), len(small)))
    for split in ("train", "val"):
        write_tar(root / "shards" / f"{split}-0.tar", members)
    whole, part = np.mean(sizes, axis=0) / 1000
    return (
        f"{images} images of {SIZE[0]} x {SIZE[1]}, {whole:.0f} kB each, {part:.0f} kB where the shorter"
        f" side is {SHORTER}"
    )


def config_of(root: Path, kind: str, **recipe: Any) -> RunConfig:
    """ConvNeXt-T's recipe, on the images."""
    splits = {"data.train_split": "train-0.tar", "data.val_split": "val-0.tar"} if kind == "shards" else {}
    given = {
        "model.num_classes": CLASSES,
        "recipe.global_batch": BATCH,
        "recipe.local_batch": BATCH,
        "system.workers": 0,
    }
    where = {"data.dataset": kind, "system.data_dir": str(root / kind)}
    changed = {f"recipe.{name}": value for name, value in recipe.items()}
    return resolve(load_roadmap(), "separate_downsampling", overrides=given | splits | where | changed)


def timms(config: RunConfig) -> Batches:
    """Batches of timm's data set, transform and collation."""
    dataset = create_dataset(
        "", root=config.system.data_dir, split="train", transform=build_transform(config, True)
    )
    loader: Any = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, collate_fn=fast_collate)
    while True:
        yield from loader


def ours(config: RunConfig) -> Batches:
    """Batches as a worker of our loader makes them."""
    loader, epoch = Loader(config, "train", CPU), 0
    while True:
        loader._feed.seek(epoch, 0)
        yield from loader._batches.loader
        epoch += 1


def decoded(config: RunConfig) -> Batches:
    """Images as they come from their files, which no pipeline can do without."""
    source = make_source(config, "train")
    for first in itertools.count(step=BATCH):
        yield [source[number % len(source)] for number in range(first, first + BATCH)]


def finished(config: RunConfig) -> Batches:
    """Batches as the device finishes them."""
    finish = DeviceTransform(config, CPU)
    ready = [batch._replace(images=batch.images.float()) for batch in islice(ours(config), READY)]
    for number in itertools.count():
        yield finish(ready[number % READY])


def subjects(root: Path) -> dict[str, Batches]:
    """Everything that is measured, the yardstick first."""
    pillow, tensor = config_of(root, "folder"), config_of(root, "folder", pipeline="tensor")
    small = [config_of(root, "shards", pipeline=pipeline) for pipeline in ("pillow", "tensor")]
    assert (kind_of(small[1].data), tensor.recipe.randaugment) == ("shards", "rand-m9-mstd0.5-inc1")
    return {
        "timm": timms(pillow),
        "timm without RandAugment": timms(config_of(root, "folder", randaugment=None)),
        "pillow": ours(pillow),
        "tensor, a worker's part": ours(tensor),
        f"pillow on shards of {SHORTER} px": ours(small[0]),
        f"tensor on shards of {SHORTER} px, a worker's part": ours(small[1]),
        "reading and decoding alone, by Pillow": decoded(pillow),
        "reading and decoding alone, by torchvision": decoded(tensor),
        "tensor, the device's part, on the CPU": finished(tensor),
    }


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows(found: dict[str, Batches], rounds: int) -> Iterator[str]:
    """A line per subject: the median of its speeds, and of its rounds' ratios to the first with their IQR."""
    batches = {name: partial(next, endless) for name, endless in found.items()}
    for run in batches.values():
        run()
    times = np.array([[seconds(run) for run in batches.values()] for _ in range(rounds)])
    for name, taken in zip(batches, times.T, strict=True):
        low, middle, high = np.quantile(times[:, 0] / taken, [0.25, 0.5, 0.75])
        speed = BATCH / np.median(taken)
        yield (
            f"{name:<46} {speed:7.0f} {1000 / speed:7.2f}   {middle:.2f} ({low:.2f} to {high:.2f}), n ="
            f" {rounds}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument(
        "--rounds", type=int, default=60, help=f"rounds of {BATCH} images that each pipeline gets"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with TemporaryDirectory() as folder:
        print(f"{write_data(Path(folder), options.images)}; one core of {hardware(CPU)}")
        print(f"{'':<46} {'images/s':>7} {'ms':>6}   speed against timm's (IQR)")
        for row in rows(subjects(Path(folder)), options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
