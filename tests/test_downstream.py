"""Every step as the backbone of detection and segmentation: pyramids at strides 4 to 32, heads that learn on
them, and the programs in examples/.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import detection
import mask_rcnn
import numpy as np
import pytest
import segmentation
import segmentation_models_pytorch as smp  # type: ignore[import-untyped]
import timm
import torch
import upernet
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]

from roadmap import ROOT, downstream
from roadmap.data.masks import labeled_images, read_mask, readable_images
from roadmap.downstream_options import FineTuning
from roadmap.errors import ConfigError
from roadmap.records import prepare
from roadmap.timm_models import registered
from roadmap.train import train
from roadmap.training.checkpoint import Checkpoints
from roadmap.weights import DIALECTS
from tests.helpers import commands
from tests.helpers.images import config_of, write_folder

BACKBONES = [name for name, config in registered.items() if config.roadmap in ("convnext_t", "convnext_b")]
STRIDES = [4, 8, 16, 32]
SMALL: dict[str, Any] = {"width": 8, "depths": [1, 1, 2, 1], "drop_path_rate": 0.0}


def scenes(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a brighter rectangle of a random color in each image, and the masks of the rectangles."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(count, 3, 64, 64, generator=generator)
    masks = torch.zeros(count, 64, 64, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        top, left = torch.randint(0, 32, (2,), generator=generator).tolist()
        height, width = torch.randint(16, 32, (2,), generator=generator).tolist()
        mask[top : top + height, left : left + width] = 1
        image += (1 + torch.rand(3, 1, 1, generator=generator)) * mask
    return images, masks


@pytest.mark.parametrize("name", BACKBONES)
def test_pyramids_feed_a_feature_pyramid_network(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, features_only=True, **SMALL)
    assert backbone.feature_info.reduction() == STRIDES
    images, _ = scenes(2)
    maps = backbone(images)
    neck = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    pyramid = neck({f"stride{stride}": x for stride, x in zip(STRIDES, maps, strict=True)})
    assert {name: x.shape for name, x in pyramid.items()} == {
        f"stride{stride}": (2, 16, 64 // stride, 64 // stride) for stride in STRIDES
    }
    sum(x.square().mean() for x in pyramid.values()).backward()
    assert without_gradient(backbone) == []


def without_gradient(backbone: Any) -> list[str]:
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    assert any(name.startswith("stages_3") for name in gradients)
    return [
        name
        for name, gradient in gradients.items()
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]


@pytest.mark.parametrize("name", [name for name in BACKBONES if registered[name].roadmap == "convnext_t"])
def test_upernet_learns_to_segment(name: str) -> None:
    torch.manual_seed(0)
    network = smp.UPerNet(f"tu-{name}", encoder_weights=None, decoder_channels=16, classes=2, **SMALL).train()
    images, masks = scenes(8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        logits = network(images)
        assert logits.shape == (8, 2, 64, 64)
        loss = functional.cross_entropy(logits, masks)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        assert without_gradient(network.encoder.model) == []
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < 0.6 * losses[0]


# The programs in examples/, on generated shapes.

CLASSES = ("disk", "square")
COLORS = ((230, 60, 40), (40, 80, 230))
# a network of 1/6 width for images that are small
NARROW = ["--set", "width=16", "--set", "depths=[1,1,2,1]", "--drop-path", "0", "--channels", "32"]
ONE_EPOCH = ["--epochs", "1", "--warmup", "0.1", "--workers", "0", "--device", "cpu"]


def write_shapes(root: Path, split: str, count: int, size: int, *, objects: bool, seed: int = 0) -> None:
    """Noise with 1 to 3 disks and squares in each image; masks of their classes, or of 16 bits with each of
    the `objects`.
    """
    random = np.random.default_rng([seed, len(split)])
    y, x = np.mgrid[:size, :size]
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True)
    for number in range(count):
        image = random.normal(110, 25, (size, size, 3))
        mask = np.zeros((size, size), dtype=np.uint16 if objects else np.uint8)
        for index in range(random.integers(1, 4)):
            kind, radius = int(random.integers(2)), random.uniform(size / 8, size / 4)
            away = np.abs([axis - random.uniform(radius, size - radius) for axis in (y, x)])
            inside = (away.max(0) if kind else np.hypot(*away)) < radius
            if mask[inside].any():  # objects do not overlap
                continue
            image[inside] = COLORS[kind] + random.normal(0, 25, (inside.sum(), 3))
            mask[inside] = 1000 * kind + index + 1 if objects else kind + 1
        pixels = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        pixels.save(root / split / "images" / f"{number}.jpg", quality=90)
        Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")


def shapes(root: Path, train: int, val: int, size: int, *, objects: bool = False) -> Path:
    write_shapes(root, "train", train, size, objects=objects)
    write_shapes(root, "val", val, size, objects=objects)
    names = CLASSES if objects else ("background", *CLASSES)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return root


def example(name: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = commands.run([sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, words)], cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def metrics_of(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def masks_in(folder: Path) -> dict[str, NDArray[np.int32]]:
    return {path.stem: read_mask(path) for path in sorted(folder.glob("*.png"))}


def iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_upernet_segments_shapes_after_an_epoch(tmp_path: Path) -> None:
    shapes(tmp_path / "data", 512, 40, 64)
    words = [*NARROW, *ONE_EPOCH, "--batch-size", 8, "--lr", 3e-3, "--image-size", 64]
    done = example("segmentation", "train", "data", *words, "--out", "out", cwd=tmp_path)
    metrics = metrics_of(tmp_path / "out")
    assert metrics["miou"] >= 0.8
    assert list(metrics["iou"]) == ["background", *CLASSES]
    for name, value in metrics["iou"].items():
        assert f"{name:24} IoU {value:.4f}" in done.stdout

    example("segmentation", "predict", "out", "data/val/images", "predicted", cwd=tmp_path)
    there, predicted = masks_in(tmp_path / "data/val/masks"), masks_in(tmp_path / "predicted")
    assert there.keys() == predicted.keys()
    one, other = (np.stack(list(masks.values())) for masks in (there, predicted))
    measured = [iou(one == value, other == value) for value in range(3)]
    assert measured == pytest.approx(list(metrics["iou"].values()))
    assert np.mean(measured) == pytest.approx(metrics["miou"])


def test_a_mask_r_cnn_finds_shapes_after_an_epoch(tmp_path: Path) -> None:
    shapes(tmp_path / "data", 512, 40, 96, objects=True)
    words = [*NARROW, *ONE_EPOCH, "--batch-size", 2, "--lr", 2e-3, "--image-size", 96, "--regions", 64]
    example("detection", "train", "data", *words, "--out", "out", cwd=tmp_path)
    metrics = metrics_of(tmp_path / "out")
    assert list(metrics) == [*CLASSES, "all"]
    assert metrics["all"]["mask_iou"] >= 0.8
    assert metrics["all"]["recall"] >= 0.8

    example("detection", "predict", "out", "data/val/images", "found", cwd=tmp_path)
    there, found = masks_in(tmp_path / "data/val/masks"), masks_in(tmp_path / "found")
    assert there.keys() == found.keys()
    hits = [
        any(
            iou(there[name] == value, found[name] == other) >= 0.5 for other in same_class(found[name], value)
        )
        for name in there
        for value in objects_of(there[name])
    ]
    # where detections overlap, the mask shows the better one
    assert np.mean(hits) == pytest.approx(metrics["all"]["recall"], abs=0.05)
    for name, mask in found.items():
        listed = json.loads((tmp_path / "found" / f"{name}.json").read_text(encoding="utf-8"))
        assert set(objects_of(mask)) <= {each["value"] for each in listed}
        assert all(each["class"] == CLASSES[each["value"] // 1000] for each in listed)


def objects_of(mask: NDArray[np.int32]) -> list[int]:
    return [value for value in np.unique(mask).tolist() if value]


def same_class(mask: NDArray[np.int32], value: int) -> list[int]:
    return [other for other in objects_of(mask) if other // 1000 == value // 1000]


TINY_RUNS: Mapping[str, Any] = {"segmentation": [], "detection": ["--regions", "16"]}


@pytest.mark.parametrize("name", TINY_RUNS)
def test_a_killed_run_resumes_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    """In bf16, and with an image without objects."""
    shapes(tmp_path / "data", 8, 2, 64, objects=name == "detection")
    Image.new("L", (64, 64)).save(tmp_path / "data/train/masks/0.png")
    words = [*NARROW, *ONE_EPOCH, *TINY_RUNS[name], "--image-size", "64", "--batch-size", "4"]
    words += ["--epochs", "3", "--precision", "bf16", "--drop-path", "0.2"]
    command = [sys.executable, str(ROOT / f"examples/{name}.py"), "train", str(tmp_path / "data"), *words]
    assert commands.run([*command, "--out", "straight"], cwd=tmp_path).returncode == 0
    stopped = commands.Command([*command, "--out", "killed"], cwd=tmp_path)
    checkpoints = Checkpoints(tmp_path / "killed/checkpoint")
    deadline = time.monotonic() + 60
    while not checkpoints.files() and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.kill()
    stopped.wait(60)
    done = commands.run([*command, "--out", "killed"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch" in done.stdout
    one, other = (Checkpoints(tmp_path / out / "checkpoint").newest() for out in ("straight", "killed"))
    assert one is not None
    assert other is not None
    assert one["epoch"] == other["epoch"] == 3
    assert one["network"].keys() == other["network"].keys()
    for key, tensor in one["network"].items():
        assert torch.equal(tensor, other["network"][key]), key
    assert metrics_of(tmp_path / "straight") == metrics_of(tmp_path / "killed")


def test_the_parameters_in_the_docs_are_counted_and_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    segmentation.run(segmentation.parser().parse_args(["parameters"]))
    table = capsys.readouterr().out
    assert table in (ROOT / "docs/models.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    assert len(rows) == 5
    for _, *parts, total, paper in rows:
        assert sum(map(float, parts)) == pytest.approx(float(total), abs=0.03)
        assert round(float(total)) == int(paper)


# Weights and learning rates.

TINY = {"width_mult": 0.125, "depths": [1, 1, 1, 1]}
BUILDERS: Mapping[str, Callable[..., torch.nn.Module]] = {
    "segmentation": lambda **values: upernet.UPerNet(
        segmentation.Segmentation(channels=8, network=TINY, **values), 2
    ),
    "detection": lambda **values: mask_rcnn.build(detection.Detection(channels=8, network=TINY, **values), 2),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_rates_decay_from_the_heads_down_to_the_stem(build: Callable[..., torch.nn.Module]) -> None:
    network = build()
    groups = downstream.parameter_groups(network, layer_decay=0.5, by="layer", weight_decay=0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    scales = {names[id(each)]: group["lr_scale"] for group in groups for each in group["params"]}
    assert scales.keys() == set(names.values())
    prefix, backbone = downstream.backbone_in(network)
    assert len(backbone.stages) == 4
    for name, scale in scales.items():
        inside = name.removeprefix(prefix)
        if inside == name:
            assert scale == 1
        elif inside.startswith("stem"):
            assert scale == 0.5**5
        else:
            assert scale == 0.5 ** (4 - int(inside.split(".")[1])), name
    decayed = {names[id(each)] for group in groups if group["weight_decay"] for each in group["params"]}
    assert decayed == {
        name for name, parameter in network.named_parameters() if parameter.ndim > 1 and "bias" not in name
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of this project, and a file as the original repository's."""
    folder = tmp_path_factory.mktemp("sources")
    config = config_of(write_folder(folder / "images"))
    run = prepare(folder / "runs", config)
    train(config, run.path)
    network = timm.create_model(FineTuning().backbone, **TINY)
    rename = DIALECTS["original_convnext"].rename
    released = {"model": {rename(name): value for name, value in network.state_dict().items()}}
    torch.save(released, folder / "released.pth")
    return {"run": run.path, "released": folder / "released.pth"}


@pytest.mark.parametrize("source", ["run", "released"])
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_backbone_starts_from_trained_weights(
    source: str, build: Callable[..., torch.nn.Module], sources: dict[str, Path]
) -> None:
    path = sources[source]
    settings = FineTuning(init_from=str(path), network=TINY)
    network = downstream.initialize(settings, build)
    if source == "run":
        checkpoint = Checkpoints(path / "checkpoint").newest()
        assert checkpoint is not None
        there = checkpoint["engine"]["model"]
    else:
        rename = DIALECTS["original_convnext"].rename
        tensors = torch.load(path, weights_only=True)["model"]
        there = {name: tensors[rename(name)] for name in downstream.backbone_in(network)[1].state_dict()}
    _, backbone = downstream.backbone_in(network)
    state = backbone.state_dict()
    assert len(state) > 20
    for name, tensor in state.items():
        assert torch.equal(tensor, there[name]), name


def test_weights_of_another_width_are_refused(sources: dict[str, Path]) -> None:
    settings = segmentation.Segmentation(init_from=str(sources["run"]), channels=8)
    with pytest.raises(ConfigError, match="does not fit"):
        downstream.initialize(settings, lambda: upernet.UPerNet(settings, 2))


# Errors.


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("few") / "data", 4, 2, 64)


def run_segmentation(data: Path, *words: str) -> int:
    options = [*NARROW, *ONE_EPOCH, "--image-size", "64", "--batch-size", "2", "--out", str(data / "out")]
    return segmentation.run(segmentation.parser().parse_args(["train", str(data), *options, *words]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--backbone", "roadmap_gleu"],
            "--backbone: unknown step 'roadmap_gleu'; did you mean 'roadmap_gelu'",
        ),
        (["--backbone", "roadmap_family_isotropic_s"], "no feature maps at strides"),
        (["--set", "witdh=8"], "unknown keyword 'witdh'; did you mean 'width'"),
        (["--set", "depth=3"], "unknown keyword 'depth'; did you mean 'depths'"),
        (["--set", "stem.stride=2"], "no feature maps at strides 4, 8, 16, 32"),
        (["--image-size", "50"], "--image-size: .*multiple of 32"),
        (["--batch-size", "5"], "--batch-size is 5, and there are 4 images"),
        (["--workers", "-1"], "--workers must be at least 0, not -1"),
        (["--batch-size", "0", "--lr", "fast"], "(?s)--batch-size: .*--lr: "),
        (["--precision", "fp8"], "--precision: .*fp8"),
        (["--device", "cuda:99"], "--device 'cuda:99' is unavailable"),
        (["--init-from", "nowhere.pth"], "nowhere.pth cannot be read"),
    ],
)
def test_a_bad_option_is_named(words: list[str], message: str, few: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_segmentation(few, *words)
    assert not (few / "out").exists()


@pytest.mark.parametrize("program", [segmentation, detection])
def test_help_names_the_values_of_options(
    program: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        program.parser().parse_args(["train", "--help"])
    text = capsys.readouterr().out
    for words in ("--init-from WEIGHTS", "--image-size PX", "--precision {auto,bf16,fp32}", "--out DIR"):
        assert re.search(rf"^  {re.escape(words)}(\s|$)", text, re.MULTILINE), words
    assert "VALUE" not in text.replace("--set KEY=VALUE", "")
    assert "None" not in text


@pytest.mark.parametrize("program", ["segmentation", "detection"])
def test_help_does_not_wait_for_pytorch(program: str) -> None:
    script = str(ROOT / "examples" / f"{program}.py")
    words = [sys.executable, "-X", "importtime", script, "train", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "pydantic" in imported
    assert imported & {"torch", "timm", "torchvision", "numpy", "PIL"} == set()


def test_an_image_that_scaling_would_leave_nothing_of_is_named(tmp_path: Path) -> None:
    settings = detection.Detection(network=TINY, channels=8, image_size=64)
    transform: Any = mask_rcnn.build(settings, 2).eval().transform
    paths = {width: tmp_path / f"{width}.png" for width in (107, 108)}
    for width, path in paths.items():
        Image.new("RGB", (width, 1)).save(path)
    mask_rcnn.check_sides([paths[107]], settings)
    transform([torch.zeros(3, 1, 107)])
    with pytest.raises(RuntimeError, match="should be greater than 0"):
        transform([torch.zeros(3, 1, 108)])
    with pytest.raises(ConfigError, match=r"108.png is 108x1 pixels; .* up to 107 times the other: crop it"):
        mask_rcnn.check_sides(paths.values(), settings)


def test_a_narrow_image_is_named_before_training_and_segmented(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", 4, 2, 64, objects=True)
    Image.new("RGB", (900, 3)).save(data / "train/images/0.jpg")
    Image.new("L", (900, 3)).save(data / "train/masks/0.png")
    (data / "classes.txt").unlink()
    words = ["train", str(data), *NARROW, *ONE_EPOCH, "--image-size", "64", "--out", str(data / "out")]
    with pytest.raises(ConfigError, match=r"images/0.jpg is 900x3 pixels; .*crop it"):
        detection.run(detection.parser().parse_args(words))
    settings = segmentation.Segmentation(network=TINY, channels=8, image_size=64)
    network = upernet.UPerNet(settings, 2).eval()
    assert upernet.segment(network, Image.new("RGB", (900, 3)), settings).shape == (3, 900)


def test_masks_of_one_class_are_no_masks_of_several(few: Path) -> None:
    """As those of segmentation would be, whose values are classes."""
    values = {"train": {0: few / "a.png", 2: few / "b.png"}}
    assert mask_rcnn.classes_of(few / "nowhere", values) == ["0"]
    with pytest.raises(ConfigError, match=r"all below 1000, of class 0, .* has 3 classes; .*1001"):
        mask_rcnn.classes_of(few, values)


def test_images_that_cannot_be_read_are_named_before_any_is_written(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert readable_images(tmp_path) == [tmp_path / "a.png"]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"b.png is not an image that can be read"):
        readable_images(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="none has no images"):
        readable_images(tmp_path / "none")


def damage_sizes(data: Path) -> None:
    Image.new("L", (32, 64)).save(data / "val/masks/1.png")


def damage_values(data: Path) -> None:
    Image.new("L", (64, 64), 7).save(data / "val/masks/1.png")


def damage_modes(data: Path) -> None:
    Image.new("RGB", (64, 64)).save(data / "val/masks/1.png")


def damage_losses(data: Path) -> None:
    (data / "val/masks/1.png").unlink()
    Image.new("L", (64, 64)).save(data / "val/masks/1.jpg")


def damage_names(data: Path) -> None:
    (data / "val/masks/1.png").rename(data / "val/masks/01.png")


def damage_image(data: Path) -> None:
    path = data / "train/images/0.jpg"
    path.write_bytes(path.read_bytes()[:500])


def damage_folder(data: Path) -> None:
    (data / "val/masks").rename(data / "val/mask")


DAMAGES: Mapping[Callable[[Path], None], str] = {
    damage_sizes: r"masks/1.png is 32x64 pixels, and its image 64x64",
    damage_values: r"masks/1.png holds the value 7, and the 3 classes are 0 to 2",
    damage_modes: r"masks/1.png .*one channel, and its mode is RGB",
    damage_losses: r"masks/1.jpg .*JPEG changes the values",
    damage_names: r"masks has no mask of 1.jpg",
    damage_image: r"images/0.jpg is not an image that can be read",
    damage_folder: r"has no folder val/masks",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bad_data_is_named_before_training(damage: Callable[[Path], None], tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", 4, 2, 64)
    damage(data)
    with pytest.raises(ConfigError, match=DAMAGES[damage]):
        run_segmentation(data)
    assert not (data / "out").exists()


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", 4, 2, 64)
    with pytest.raises(ConfigError, match="out has no checkpoint; train it first"):
        segmentation.run(segmentation.parser().parse_args(["predict", str(data / "out"), "images", "masks"]))
    assert run_segmentation(data) == 0
    with pytest.raises(ConfigError, match=r"lr was 0\.0001 and is 0\.1; give another folder to --out"):
        run_segmentation(data, "--lr", "0.1")
    with pytest.raises(ConfigError, match="has a checkpoint of another program"):
        detection.run(detection.parser().parse_args(["predict", str(data / "out"), "images", "masks"]))


def test_folders_as_ade20k_has_them_are_found(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", 2, 2, 64)
    for split, name in (("train", "training"), ("val", "validation")):
        for kind, other in (("images", "images"), ("masks", "annotations")):
            (data / other).mkdir(exist_ok=True)
            (data / split / kind).rename(data / other / name)
    (pair, _) = labeled_images(data, "val")
    assert pair.image == data / "images/validation/0.jpg"
    assert pair.mask == data / "annotations/validation/0.png"


def test_an_ignored_value_is_no_class() -> None:
    labels = upernet.Labels(2, ignore=0)
    assert labels.of(np.array([[0, 1, 2]])).tolist() == [[upernet.IGNORED, 0, 1]]
    labels = upernet.Labels(2, ignore=255)
    assert labels.of(np.array([[0, 1, 255]])).tolist() == [[0, 1, upernet.IGNORED]]


def test_a_detection_is_matched_once() -> None:
    masks = torch.zeros(3, 1, 10, dtype=torch.uint8)
    masks[0, 0, :6] = masks[1, 0, :5] = masks[2, 0, 9:] = 1
    matches = mask_rcnn.Matches()
    matches.add(masks, masks[:1])
    matches.add(masks[:0], masks[:1])
    assert matches.summary == {"recall": 0.5, "precision": pytest.approx(1 / 3), "mask_iou": 1.0}


def test_annotations_in_cocos_format_become_masks(tmp_path: Path) -> None:
    """80 classes, whose values need more than 16 bits; a smaller object over a larger one, and a crowd."""
    square = [2, 2, 11, 2, 11, 11, 2, 11]
    inner = [4, 4, 6, 4, 6, 6, 4, 6]
    common = {"image_id": 7, "iscrowd": 0}
    annotations = [
        common | {"id": 1, "category_id": 90, "area": 9, "segmentation": [inner]},
        common | {"id": 2, "category_id": 11, "area": 100, "segmentation": [square, [0, 15, 1, 15, 1, 14]]},
        common | {"id": 3, "category_id": 12, "area": 50, "segmentation": {"counts": [1]}, "iscrowd": 1},
    ]
    document = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 20, "height": 16},
            {"id": 8, "file_name": "b.jpg", "width": 4, "height": 5},
        ],
        "categories": [{"id": number, "name": f"c{number}"} for number in range(11, 91)],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    words = ["coco", str(path), str(tmp_path / "data"), "train"]
    assert detection.run(detection.parser().parse_args(words)) == 0
    mask = read_mask(tmp_path / "data/train/masks/a.tif")
    expected = np.zeros((16, 20), dtype=np.int32)
    expected[2:12, 2:12], expected[4:7, 4:7] = 1, 79002
    expected[15, :2] = expected[14, 1] = 1
    assert mask.tolist() == expected.tolist()
    assert not read_mask(tmp_path / "data/train/masks/b.png").any()
    names = (tmp_path / "data/classes.txt").read_text(encoding="utf-8").split()
    assert names == [f"c{number}" for number in range(11, 91)]
    found = mask_rcnn.objects_in(mask)
    assert found["labels"].tolist() == [1, 80]
    assert found["boxes"].tolist() == [[0, 2, 12, 16], [4, 4, 7, 7]]

    del document["categories"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"instances.json is not in COCO's format .*categories"):
        detection.run(detection.parser().parse_args(words))
