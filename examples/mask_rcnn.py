"""What examples/detection.py does: a Mask R-CNN on a step's backbone, its data, and its training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import (  # type: ignore[import-untyped]
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import (  # type: ignore[import-untyped]
    MaskRCNNHeads,
    MaskRCNNPredictor,
)
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # type: ignore[import-untyped]

from roadmap import downstream
from roadmap.data.masks import (
    CLASS_NAMES,
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
from roadmap.files import write_atomic, write_errors, write_json
from roadmap.rng import SAMPLE, seed_of

if TYPE_CHECKING:
    from detection import Detection

PER_CLASS = 1000  # values of a mask
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of training images, relative to the image size, as 480 to 800 pixels
LONGEST = 1333 / 800  # longest side of an image, in image sizes
MATCHED = 0.5  # IoU of masks from which a detection is the object


class Pyramid(nn.Module):
    """The backbone's maps at strides 4 to 32, each normalized, as a feature pyramid up to stride 64."""

    def __init__(self, settings: Detection) -> None:
        super().__init__()
        self.body = timm.create_model(settings.backbone, features_only=True, **settings.backbone_arguments)
        channels = self.body.feature_info.channels()
        self.norms = nn.ModuleList(LayerNorm2d(each) for each in channels)
        self.out_channels = settings.channels
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps named 0 to 3 and pool, of `out_channels` each."""
        maps = [norm(each) for norm, each in zip(self.norms, self.body(images), strict=True)]
        pyramid: dict[str, Tensor] = self.fpn({str(level): each for level, each in enumerate(maps)})
        return pyramid


def build(settings: Detection, classes: int) -> nn.Module:
    """torchvision's Mask R-CNN; images are scaled and normalized in it, and label 0 is its background.

    With 256 channels, its heads are torchvision's own.
    """
    statistics, size, channels = settings.normalization, settings.image_size, settings.channels
    network: nn.Module = MaskRCNN(
        Pyramid(settings),
        box_head=TwoMLPHead(7 * 7 * channels, 4 * channels),
        box_predictor=FastRCNNPredictor(4 * channels, 1 + classes),
        mask_head=MaskRCNNHeads(channels, [channels] * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(channels, channels, 1 + classes),
        # training draws one of them, and evaluation takes the last
        min_size=[round(size * scale) for scale in SCALES],
        max_size=round(size * LONGEST),
        box_batch_size_per_image=settings.regions,
        image_mean=statistics["mean"],
        image_std=statistics["std"],
    )
    return network


# The data.


def pixels_of(image: Image.Image) -> Tensor:
    """An image as (3, H, W) in 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def check_sides(paths: Iterable[Path], settings: Detection) -> None:
    """ConfigError for an image so narrow that nothing is left of it where its longest side is scaled down."""
    ratio = round(settings.image_size * LONGEST)
    for path in paths:
        with Image.open(path) as image:
            shortest, longest = sorted(image.size)
        if longest > ratio * shortest:
            message = f"is {image.width}x{image.height} pixels; with an --image-size of {settings.image_size}"
            fix = f"its longer side can be up to {ratio} times the other: crop it"
            raise config_error(relative(path), f"{message}, {fix}")


def objects_in(mask: NDArray[np.int32]) -> dict[str, Tensor]:
    """torchvision's target: boxes (N, 4) as x1, y1, x2, y2; labels (N,) from 1; and masks (N, H, W)."""
    values = [value for value in np.unique(mask).tolist() if value != 0]
    masks = torch.from_numpy(np.array([mask == value for value in values]).reshape(-1, *mask.shape))
    boxes = [
        [float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1]
        for ys, xs in (np.nonzero(mask == value) for value in values)
    ]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([1 + value // PER_CLASS for value in values], dtype=torch.int64),
        "masks": masks.to(torch.uint8),
    }


class TrainingScenes:
    """Images, flipped at random, and the objects in them."""

    def __init__(self, pairs: list[LabeledImage], settings: Detection) -> None:
        self.pairs = pairs
        self.settings = settings

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: downstream.Key) -> tuple[Tensor, dict[str, Tensor]]:
        random = np.random.default_rng(seed_of(SAMPLE, self.settings.seed, *key))
        pair = self.pairs[key[1]]
        pixels, mask = pixels_of(read_image(pair.image)), read_mask(pair.mask)
        if random.random() < 0.5:
            pixels, mask = pixels.flip(-1), mask[:, ::-1]
        return pixels, objects_in(mask)


def classes_of(root: Path, found: dict[str, dict[int, Path]]) -> list[str]:
    """The names of the classes; ConfigError for a value in the masks that is of none."""
    largest = max(value // PER_CLASS for value in [0, *found["train"]])
    names = class_names(root) or [str(index) for index in range(largest + 1)]
    for values in found.values():
        for value, path in values.items():
            if value // PER_CLASS >= len(names):
                message = (
                    f"holds the value {value}, of class {value // PER_CLASS}, and the {len(names)} classes"
                )
                raise config_error(relative(path), f"{message} are 0 to {len(names) - 1}")
    if len(names) > 1 and largest == 0:
        message = f"are all below {PER_CLASS}, of class 0, and {CLASS_NAMES} has {len(names)} classes"
        fix = f"objects of class 1 are {PER_CLASS + 1}, {PER_CLASS + 2}, and so on"
        raise config_error(relative(root), f"has masks whose values {message}; {fix}")
    return names


# Detecting objects, and how well.


@torch.inference_mode()
def detect(network: nn.Module, image: Image.Image, settings: Detection, score: float) -> dict[str, Tensor]:
    """The objects in an image with at least this score, best first, as `objects_in`, and their `scores`."""
    device = next(network.parameters()).device
    with downstream.autocast(settings, device):
        (found,) = network([pixels_of(image).to(device)])
    kept = found["scores"] >= score
    objects = {name: values[kept].cpu() for name, values in found.items()}
    return objects | {"masks": (objects["masks"][:, 0] > 0.5).to(torch.uint8)}


def mask_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU of each of (N, H, W) masks with each of (M, H, W), as (N, M)."""
    flat, others = one.flatten(1).float(), other.flatten(1).float()
    both = flat @ others.T
    return both / (flat.sum(1)[:, None] + others.sum(1) - both).clamp(min=1)


@dataclass
class Matches:
    """Detections of a class against its objects."""

    objects: int = 0
    detections: int = 0
    ious: list[float] = field(default_factory=list)  # of the masks of each matched pair

    def add(self, found: Tensor, there: Tensor) -> None:
        """Matches an image's detections, the best first, each to the free object with the largest IoU."""
        self.objects += len(there)
        self.detections += len(found)
        if not len(there):
            return
        ious = mask_iou(found, there)
        for row in ious:
            best = int(row.argmax())
            if row[best] >= MATCHED:
                self.ious.append(float(row[best]))
                ious[:, best] = 0

    @property
    def summary(self) -> dict[str, float | None]:
        """Recall, precision, and the mean IoU of matched masks; None where there is nothing to divide by."""
        matched = len(self.ious)
        return {
            "recall": matched / self.objects if self.objects else None,
            "precision": matched / self.detections if self.detections else None,
            "mask_iou": sum(self.ious) / matched if matched else None,
        }


def evaluate(
    network: nn.Module, pairs: list[LabeledImage], settings: Detection, names: list[str], score: float
) -> dict[str, Matches]:
    """The matches of each class, and of all."""
    matches = {name: Matches() for name in names}
    network.eval()
    for pair in pairs:
        there, found = (
            objects_in(read_mask(pair.mask)),
            detect(network, read_image(pair.image), settings, score),
        )
        for label, name in enumerate(names, 1):
            matches[name].add(*(each["masks"][each["labels"] == label] for each in (found, there)))
    total = Matches(
        sum(each.objects for each in matches.values()),
        sum(each.detections for each in matches.values()),
        [iou for each in matches.values() for iou in each.ious],
    )
    return matches | {"all": total}


def report(matches: dict[str, Matches], score: float, out: Path) -> None:
    """Prints recall, precision and the IoU of masks of each class, and writes metrics.json."""
    print(f"detections with a score of {score:g} and more, matched from a mask IoU of {MATCHED} on:")
    for name, each in matches.items():
        values = [f"{key} {'-' if value is None else f'{value:.4f}'}" for key, value in each.summary.items()]
        print(f"{name:24} {', '.join(values)}, {each.objects} objects")
    write_json(out / "metrics.json", {name: each.summary for name, each in matches.items()})


# The commands.


def train(arguments: argparse.Namespace, kind: type[Detection]) -> int:
    """Trains, then evaluates on the validation images."""
    settings = read_settings(arguments, kind)
    device = downstream.select_device(arguments.device)
    pairs = {split: labeled_images(arguments.data, split) for split in ("train", "val")}
    names = classes_of(arguments.data, {split: values_in(pairs[split]) for split in pairs})
    check_sides((pair.image for split in pairs.values() for pair in split), settings)
    print(f"{len(names)} classes, {len(pairs['train'])} training images, {len(pairs['val'])} for validation")

    network = downstream.initialize(settings, lambda: build(settings, len(names))).to(device)

    def loss_of(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> Tensor:
        images = [image.to(device) for image, _ in batch]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
        losses: dict[str, Tensor] = network(images, targets)
        return torch.stack(list(losses.values())).sum()

    samples = TrainingScenes(pairs["train"], settings)
    downstream.fine_tune(
        network, samples, loss_of, settings, names, arguments.out, workers=arguments.workers, collate=list
    )
    report(evaluate(network, pairs["val"], settings, names, arguments.score), arguments.score, arguments.out)
    return 0


def predict(arguments: argparse.Namespace, kind: type[Detection]) -> int:
    """Writes a mask like the training's for each image in a folder, and its detections as JSON."""
    settings, names, network = downstream.load_trained(arguments.run, kind, build, arguments.device)
    paths, count = readable_images(arguments.images), 0
    check_sides(paths, settings)
    with write_errors(arguments.objects):
        arguments.objects.mkdir(parents=True, exist_ok=True)
        for path in paths:
            image = read_image(path)
            found = detect(network, image, settings, arguments.score)
            write_objects(found, image, names, arguments.objects / path.name)
            count += len(found["scores"])
    print(
        f"{count} objects with a score of {arguments.score:g} and more in {len(paths)} images, written to"
        f" {relative(arguments.objects)}"
    )
    return 0


def write_objects(found: dict[str, Tensor], image: Image.Image, names: list[str], path: Path) -> None:
    """Writes a mask, in which a better detection covers a worse one, and a list of the detections."""
    mask = np.zeros(image.size[::-1], dtype=np.int32)
    listed: list[dict[str, Any]] = []
    for number, label in enumerate(found["labels"].tolist(), 1):
        index = label - 1
        value = PER_CLASS * index + number
        mask[(found["masks"][number - 1].numpy() > 0) & (mask == 0)] = value
        box, score = found["boxes"][number - 1].tolist(), found["scores"][number - 1].item()
        listed.append({"value": value, "class": names[index], "score": score, "box": box})
    write_mask(mask, path)
    write_json(path.with_suffix(".json"), listed)


def write_mask(mask: NDArray[np.int32], path: Path) -> None:
    """Writes a mask as a PNG of 16 bits, or as a TIFF of 32 where more than 65 classes need them."""
    if mask.max(initial=0) < 2**16:
        Image.fromarray(mask.astype(np.uint16)).save(path.with_suffix(".png"))
    else:
        Image.fromarray(mask).save(path.with_suffix(".tif"), compression="tiff_deflate")


def coco(arguments: argparse.Namespace, kind: type[Detection]) -> int:
    """Writes the masks of annotations in COCO's format, and the names of their classes."""
    masks = arguments.data / arguments.split / "masks"
    with coco_format(arguments.annotations):
        document = json.loads(arguments.annotations.read_text(encoding="utf-8"))
        categories = {each["id"]: each["name"] for each in document["categories"]}
        images = {each["id"]: each for each in document["images"]}
        objects: dict[int, list[Any]] = {number: [] for number in images}
        for each in document["annotations"]:
            if not each.get("iscrowd"):  # a region of many objects, not one of them
                objects[each["image_id"]].append(each)
    with write_errors(arguments.data):
        masks.mkdir(parents=True, exist_ok=True)
        write_atomic(
            arguments.data / CLASS_NAMES, "".join(f"{categories[each]}\n" for each in sorted(categories))
        )
        for number, image in images.items():
            with coco_format(arguments.annotations):
                mask = draw(image, objects[number], sorted(categories))
                path = masks / image["file_name"]
            write_mask(mask, path)
    return 0


@contextmanager
def coco_format(path: Path) -> Iterator[None]:
    """A ConfigError where a file cannot be read inside, or is otherwise than expected."""
    try:
        yield
    except OSError as error:
        raise config_error(relative(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise config_error(relative(path), f"is not in COCO's format of instances: {error!r}") from error


def draw(image: dict[str, Any], objects: list[Any], categories: list[int]) -> NDArray[np.int32]:
    """The mask of an image with its annotated objects, the smaller ones over the larger."""
    mask = Image.new("I", (image["width"], image["height"]))
    canvas = ImageDraw.Draw(mask)
    for number, each in enumerate(sorted(objects, key=lambda each: -each["area"]), 1):
        if not isinstance(each["segmentation"], list):
            raise TypeError(f"annotation {each['id']} has no polygons")
        for polygon in each["segmentation"]:
            canvas.polygon(polygon, fill=PER_CLASS * categories.index(each["category_id"]) + number)
    return np.asarray(mask).astype(np.int32)


COMMANDS: Mapping[str, Callable[[argparse.Namespace, type[Detection]], int]] = {
    "train": train,
    "predict": predict,
    "coco": coco,
}
