"""What examples/segmentation.py does: a UPerNet on a step's backbone, its data, and its training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import segmentation_models_pytorch as smp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from roadmap import downstream
from roadmap.data.masks import (
    LabeledImage,
    class_names,
    labeled_images,
    read_image,
    read_mask,
    readable_images,
    values_in,
)
from roadmap.downstream_options import read_settings
from roadmap.errors import config_error, relative
from roadmap.files import write_errors, write_json
from roadmap.rng import SAMPLE, seed_of

if TYPE_CHECKING:
    from segmentation import Segmentation

IGNORED = -100  # cross-entropy's mark of a pixel without a class
MOST_VALUES = 256  # in a mask: a class is a byte
SCALES = (0.5, 2.0)  # of a training image, relative to the image size
LONGEST = 4  # longest side of an image to segment, in image sizes
PAPERS = {"t": 60, "s": 82, "b": 122, "l": 235, "xl": 391}  # millions of parameters, Table 4


class UPerNet(nn.Module):
    """smp's UPerNet, and the paper's auxiliary head on the feature map of stride 16, which only trains."""

    def __init__(self, settings: Segmentation, classes: int) -> None:
        super().__init__()
        self.upernet = smp.UPerNet(
            f"tu-{settings.backbone}",
            encoder_weights=None,
            decoder_channels=settings.channels,
            classes=classes,
            **settings.backbone_arguments,
        )
        channels = settings.channels // 2
        self.auxiliary = nn.Sequential(
            nn.Conv2d(self.upernet.encoder.out_channels[-2], channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of (N, 3, H, W) images, whose sides 32 divides: (N, classes, H, W) and at stride 16."""
        maps = self.upernet.encoder(images)
        logits = self.upernet.segmentation_head(self.upernet.decoder(maps))
        return logits, self.auxiliary(maps[-2])


# The data.


class Labels:
    """Which value of a mask is which class: in order, without the ignored one."""

    def __init__(self, classes: int, ignore: int) -> None:
        self.values = [value for value in range(classes + 1) if value != ignore][:classes]
        self.ignore = ignore
        self.table = np.full(MOST_VALUES, IGNORED, dtype=np.int64)
        self.table[self.values] = range(classes)

    def of(self, mask: NDArray[np.int32]) -> NDArray[np.int64]:
        """The class of each pixel."""
        return self.table[mask]

    def check(self, found: dict[int, Path], names: list[str]) -> None:
        """ConfigError for a value in the masks that is no class."""
        for value, path in found.items():
            if value != self.ignore and value not in self.values:
                message = f"holds the value {value}, and the {len(names)} classes are {self.values[0]}"
                raise config_error(
                    relative(path), f"{message} to {self.values[-1]}; --ignore is {self.ignore}"
                )


class TrainingImages:
    """Images scaled at random, cropped or padded to a square, and flipped, with the class of each pixel."""

    def __init__(self, pairs: list[LabeledImage], labels: Labels, settings: Segmentation) -> None:
        self.pairs = pairs
        self.labels = labels
        self.settings = settings

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: downstream.Key) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(seed_of(SAMPLE, self.settings.seed, *key))
        pair = self.pairs[key[1]]
        image, mask = (
            read_image(pair.image),
            Image.fromarray(self.labels.of(read_mask(pair.mask)).astype(np.int32)),
        )
        size = self.settings.image_size
        scale = size / min(image.size) * random.uniform(*SCALES)
        # the part of the original that is scaled to the crop
        width, height = (min(side, size / scale) for side in image.size)
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        box, shape = (left, top, left + width, top + height), (round(width * scale), round(height * scale))
        pixels = normalized(image.resize(shape, Image.Resampling.BILINEAR, box), self.settings)
        target = torch.from_numpy(
            np.asarray(mask.resize(shape, Image.Resampling.NEAREST, box)).astype(np.int64)
        )
        if random.random() < 0.5:
            pixels, target = pixels.flip(-1), target.flip(-1)
        missing = (0, size - shape[0], 0, size - shape[1])
        return functional.pad(pixels, missing), functional.pad(target, missing, value=IGNORED)


def normalized(image: Image.Image, settings: Segmentation) -> Tensor:
    """An image as (3, H, W), with the backbone's mean and standard deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    statistics = settings.normalization
    mean, std = (torch.tensor(statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


# Segmenting images, and how well.


@torch.inference_mode()
def segment(network: nn.Module, image: Image.Image, settings: Segmentation) -> NDArray[np.int64]:
    """The class of each pixel of an image, (H, W).

    It is computed at the scale at which the shorter side has the image size, if the longer one allows it.
    """
    device = next(network.parameters()).device
    scale = settings.image_size * min(1 / min(image.size), LONGEST / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = normalized(image.resize((width, height), Image.Resampling.BILINEAR), settings)
    pixels = functional.pad(pixels, (0, -width % 32, 0, -height % 32))
    with downstream.autocast(settings, device):
        logits, _ = network(pixels[None].to(device))
    classes = logits[:, :, :height, :width].argmax(1, keepdim=True).to(torch.uint8)
    resized = functional.interpolate(classes, size=image.size[::-1], mode="nearest-exact")
    return resized[0, 0].cpu().numpy().astype(np.int64)


def confusion(network: nn.Module, pairs: list[LabeledImage], labels: Labels, settings: Segmentation) -> Any:
    """How many pixels of each class (row) are predicted as each class (column)."""
    count = len(labels.values)
    counts = np.zeros((count, count), dtype=np.int64)
    network.eval()
    for pair in pairs:
        target = labels.of(read_mask(pair.mask))
        predicted = segment(network, read_image(pair.image), settings)
        known = target != IGNORED
        counts += np.bincount(target[known] * count + predicted[known], minlength=count**2).reshape(
            counts.shape
        )
    return counts


def report(counts: Any, names: list[str], out: Path) -> None:
    """Prints the IoU of each class and writes metrics.json; a class that is nowhere has none."""
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    ious = {
        name: float(hit / all_) if all_ else None for name, hit, all_ in zip(names, hits, union, strict=True)
    }
    mean = float(np.mean([iou for iou in ious.values() if iou is not None]))
    for name, iou in ious.items():
        print(f"{name:24} IoU {'-' if iou is None else f'{iou:.4f}'}")
    print(f"mIoU {mean:.4f}, pixel accuracy {hits.sum() / counts.sum():.4f}")
    write_json(
        out / "metrics.json", {"miou": mean, "iou": ious, "accuracy": float(hits.sum() / counts.sum())}
    )


# The commands.


def train(arguments: argparse.Namespace, kind: type[Segmentation]) -> int:
    """Trains, then evaluates on the validation images."""
    settings = read_settings(arguments, kind)
    device = downstream.select_device(arguments.device)
    pairs = {split: labeled_images(arguments.data, split) for split in ("train", "val")}
    found = {split: values_in(pairs[split]) for split in pairs}
    largest = max((value for value in found["train"] if value != settings.ignore), default=0)
    names = class_names(arguments.data) or [
        str(value) for value in range(largest + 1) if value != settings.ignore
    ]
    labels = Labels(len(names), settings.ignore)
    for split in pairs:
        labels.check(found[split], names)
    print(f"{len(names)} classes, {len(pairs['train'])} training images, {len(pairs['val'])} for validation")

    network = downstream.initialize(settings, lambda: UPerNet(settings, len(names))).to(device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        logits, auxiliary = network(images)
        auxiliary = functional.interpolate(auxiliary, size=targets.shape[-2:], mode="bilinear")
        return cross_entropy(logits, targets) + settings.auxiliary * cross_entropy(auxiliary, targets)

    samples = TrainingImages(pairs["train"], labels, settings)
    downstream.fine_tune(network, samples, loss_of, settings, names, arguments.out, workers=arguments.workers)
    report(confusion(network, pairs["val"], labels, settings), names, arguments.out)
    return 0


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over all pixels that have a class; 0 where none has."""
    loss = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return loss / (targets != IGNORED).sum().clamp(min=1)


def predict(arguments: argparse.Namespace, kind: type[Segmentation]) -> int:
    """Writes a mask for each image in a folder, with the values of the training masks and a palette."""
    settings, names, network = downstream.load_trained(arguments.run, kind, UPerNet, arguments.device)
    values = np.array(Labels(len(names), settings.ignore).values, dtype=np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    paths = readable_images(arguments.images)
    with write_errors(arguments.masks):
        arguments.masks.mkdir(parents=True, exist_ok=True)
        for path in paths:
            mask = Image.fromarray(values[segment(network, read_image(path), settings)])
            mask.putpalette(palette)
            mask.save(arguments.masks / f"{path.stem}.png")
    print(f"{len(paths)} masks in {relative(arguments.masks)}")
    return 0


def parameters(arguments: argparse.Namespace, kind: type[Segmentation]) -> int:
    """Prints the parameters of the paper's UPerNets, part by part, as a table."""
    print("| network | backbone | decoder | classifier | auxiliary head | all, M | paper, M |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size, paper in PAPERS.items():
        with torch.device("meta"):
            network = UPerNet(kind(backbone=f"roadmap_family_convnext_{size}"), classes=150)
        upernet = network.upernet
        parts = (upernet.encoder, upernet.decoder, upernet.segmentation_head, network.auxiliary, network)
        counts = [sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in parts]
        print(f"| ConvNeXt-{size.upper()} | {' | '.join(f'{count:.2f}' for count in counts)} | {paper} |")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace, type[Segmentation]], int]] = {
    "train": train,
    "predict": predict,
    "parameters": parameters,
}
