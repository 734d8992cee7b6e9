"""`recipe.pipeline: tensor` trains on the images of `pillow`: the same pixels, crops and flips, the same
damage, however it is cut up.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data import tensor_decoder as tensors
from roadmap.data.augmentation import Batch
from roadmap.data.datasets import make_source
from roadmap.data.images import PillowDecoder, Unreadable
from roadmap.data.loader import Loader
from roadmap.data.locate import STREAMS
from roadmap.data.preflight import check_data
from roadmap.data.tensor_decoder import TensorDecoder
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, parse_overrides, resolve
from roadmap.train import train
from roadmap.training.device_transforms import DeviceTransform
from roadmap.training.engine import Engine
from tests.helpers.images import (
    CPU,
    Pictures,
    augmentation_of,
    batches,
    config_of,
    custom,
    plain,
    same,
    write_folder,
    write_shards,
)
from tests.helpers.stopping import StopAt
from tests.test_engine import Syncs
from tests.test_randaugment import INCREASING, picture
from tests.test_resume import BUSY, assert_same

TENSOR: dict[str, Any] = {"recipe__pipeline": "tensor"}
GREY: dict[str, Any] = {"model__in_chans": 1, "data__mean": [0.45], "data__std": [0.25]}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return textured(write_folder(tmp_path_factory.mktemp("images")))


def textured(root: Path) -> Path:
    """The folder's pictures with something to be seen in them."""
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        picture(number).resize((70 + number, 50 + 2 * number)).save(path, quality=90)
    return root


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


DEEP = Image.fromarray(np.asarray(picture(0).convert("L")).astype(np.uint16) * 257)
FILES: dict[str, tuple[bytes, bool]] = {  # and whether torchvision decodes it for a model of colors
    "jpeg": (encoded(picture(0), "JPEG", quality=90), True),
    "jpeg without subsampling": (encoded(picture(0), "JPEG", quality=90, subsampling=0), True),
    "progressive jpeg": (encoded(picture(0), "JPEG", quality=90, progressive=True), True),
    "gray jpeg": (encoded(picture(0).convert("L"), "JPEG", quality=90), True),
    "rotated jpeg": (encoded(picture(0), "JPEG", quality=90, exif=rotated()), True),
    "cmyk jpeg": (encoded(picture(0).convert("CMYK"), "JPEG", quality=90), False),
    "png": (encoded(picture(0), "PNG"), False),
    "gray png": (encoded(picture(0).convert("L"), "PNG"), False),
    "clear png": (encoded(picture(0).convert("RGBA"), "PNG"), False),
    "palette png": (encoded(picture(0).quantize(8), "PNG"), False),
    "two-level png": (encoded(picture(0).convert("1"), "PNG"), False),
    "16-bit png": (encoded(DEEP, "PNG"), False),
    "webp": (encoded(picture(0), "WEBP", quality=90), False),
    "bmp": (encoded(picture(0), "BMP"), False),
}


def both(content: bytes, mode: str = "RGB") -> list[Any]:
    """What Pillow's decoder and torchvision's make of a file: pixels (H, W, C), or None where it cannot be
    read.
    """
    found: list[Any] = []
    for decoder in (PillowDecoder(mode), TensorDecoder(mode)):
        try:
            image = decoder.decode(io.BytesIO(content), "the file")
        except Unreadable:
            found.append(None)
        else:
            found.append(
                image.permute(1, 2, 0).numpy()
                if isinstance(image, Tensor)
                else np.asarray(image).reshape(*image.size[::-1], -1)
            )
    return found


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_pillow(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: Any, **how: Any) -> Tensor:
        calls.append(1)
        return decode(*args, **how)

    decode: Callable[..., Tensor] = vars(tensors)["decode_jpeg"]
    monkeypatch.setattr(tensors, "decode_jpeg", counted)
    content, fast = FILES[kind]
    pillow, ours = both(content, mode)
    assert (ours.dtype, ours.shape) == (np.uint8, pillow.shape)
    assert np.array_equal(ours, pillow)
    assert len(calls) == (fast if mode == "RGB" else kind == "gray jpeg")


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp"])
def test_a_truncated_file_is_as_unreadable_as_for_pillow(kind: str) -> None:
    content = FILES[kind][0]
    lengths = [
        0,
        1,
        2,
        10,
        *range(20, len(content), len(content) // 25),
        *range(len(content) - 4, len(content)),
    ]
    read = 0
    for length in lengths:
        pillow, ours = both(content[:length])
        assert (pillow is None) == (ours is None)
        read += ours is not None
    assert read < len(lengths) / 2


def test_damaged_bytes_are_as_unreadable_as_for_pillow() -> None:
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(150):
        content = bytearray(FILES["jpeg"][0])
        for place in random.integers(2, len(content), 3):
            content[place] = random.integers(256)
        pillow, ours = both(bytes(content))
        outcomes.append(ours is None)
        assert (pillow is None) == (ours is None)
        assert pillow is None or np.array_equal(pillow, ours)
    assert set(outcomes) == {True, False}


def test_a_file_that_is_no_image_is_named_and_closed() -> None:
    file = io.BytesIO(b"no picture")
    with pytest.raises(
        Unreadable, match=r"^the file is not an image that can be read: it has no image format that is known$"
    ):
        TensorDecoder("RGB").decode(file, "the file")
    assert file.closed


def finished(config: RunConfig, found: list[Batch]) -> list[Batch]:
    """Batches as the network gets them, without RandAugment and erasing."""
    assert config.recipe.randaugment is None
    finish = DeviceTransform(config, CPU)
    return [each._replace(images=finish(each._replace(erasing=None))) for each in found]


def apart(one: list[Batch], other: list[Batch], config: RunConfig) -> float:
    """By how many gray levels images of two loaders differ at most; their labels are the same."""
    pairs = list(zip(one, other, strict=True))
    assert all(torch.equal(batch[1], others[1]) for batch, others in pairs)
    return max(
        float((batch[0] - others[0]).abs().amax((0, 2, 3)).mul(torch.tensor(config.data.std)).max()) * 255
        for batch, others in pairs
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_crops_and_flips_are_those_of_pillow(folder: Path, interpolation: str) -> None:
    how: dict[str, Any] = {"recipe__train_interpolation": interpolation, "recipe__randaugment": None}
    pillow, config = config_of(folder, **how), config_of(folder, **how, **TENSOR)
    for epoch in range(2):
        found = batches(config, epoch=epoch)
        assert {images.dtype for images, *_ in found} == {torch.float32}
        assert all(torch.equal(images, images.round()) and images.max() > 200 for images, *_ in found)
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, *_ in found)
        assert apart(finished(config, found), batches(pillow, epoch=epoch), config) < 2.01


def test_training_without_a_crop_scale_is_as_under_pillow(folder: Path) -> None:
    config = plain(folder, **TENSOR)
    assert apart(finished(config, batches(config)), batches(plain(folder)), config) < 1.01


def test_evaluation_is_that_of_pillow(folder: Path) -> None:
    assert same(batches(config_of(folder, **TENSOR), "val"), batches(config_of(folder), "val"))


def custom_dataset() -> Pictures:
    array = np.asarray(picture(3).resize((32, 32)))
    images = [
        picture(1).resize((32, 32)),
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array[:, :, 0],
        array[:, :, :1],
        np.dstack([array, array[:, :, 0]]),
        picture(5).resize((32, 32)).convert("P"),
        picture(5).resize((32, 32)).convert("L"),
    ]
    return Pictures([(image, number % 3) for number, image in enumerate(images)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["items", "shards", "synthetic", "chosen"])
def test_every_source_gives_the_pixels_of_pillow(kind: str, channels: int, tmp_path: Path) -> None:
    gray = GREY if channels == 1 else {}
    how: dict[str, Any] = {
        "items": {"data__dataset": "custom/pictures"},
        "shards": {"data__dataset": "shards"},
    }.get(kind, {}) | gray
    if kind == "synthetic":
        how |= {"data__dataset": "synthetic", "data__images": [12, 8], "data__noise": 0.3}
    if kind == "shards":
        how |= {"data__train_split": "train-{00..03}.tar", "data__val_split": "val-*.tar"}
    if kind == "chosen":
        how |= {"data__classes": ["ant", "cat"], "model__num_classes": 2}
    root = (
        write_shards(tmp_path)
        if kind == "shards"
        else write_folder(tmp_path / "folder")
        if kind == "chosen"
        else None
    )
    given = custom_dataset() if kind == "items" else None
    config = plain(root, **how, **TENSOR)
    image, _ = make_source(config, "train", given)[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (channels, 32, 32))
    assert same(finished(config, batches(config, source=given)), batches(plain(root, **how), source=given))


def test_digits_are_those_of_pillow() -> None:
    pillow, config = (
        resolve(
            load_roadmap(),
            "gelu",
            profile="digits",
            overrides={"system.device": "cpu", "recipe.pipeline": kind},
        )
        for kind in ("pillow", "tensor")
    )
    assert apart(finished(config, batches(config)), batches(pillow), config) < 1.01


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_epoch_and_sample_alone(folder: Path, workers: int) -> None:
    config = config_of(folder, recipe__global_batch=6, **TENSOR)
    whole = batches(config, epoch=1)
    loader = Loader(
        config_of(folder, recipe__global_batch=6, system__workers=workers, **TENSOR), "train", CPU
    )
    for first in range(len(whole) + 1):
        assert same(list(loader.epoch(1, first)), whole[first:])
    assert not same(list(loader.epoch(0)), whole)
    loader.close()
    plan = BatchPlan(3, 1, 2, 6)
    parts = [batches(config, epoch=1, rank=rank, plan=plan) for rank in range(3)]
    for iteration, (images, *_) in enumerate(whole):
        for rank, part in enumerate(parts):
            for turn in range(2):
                assert torch.equal(part[2 * iteration + turn][0], images[plan.positions(rank, turn)])


def test_the_next_image_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for name, keep in (("ant/0.jpg", -200), ("bee/1.jpg", 15), ("cat/4.jpg", 0)):
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:keep])
    (root / "train" / "bee" / "2.jpg").write_bytes(b"no picture")
    found = []
    for how in ({}, TENSOR):
        loader = Loader(plain(root, system__corrupt_images=4, **how), "train", CPU)
        found.append([labels.tolist() for epoch in range(2) for _, labels, *_ in loader.epoch(epoch)])
        assert loader.corrupt.state() == [0, 6, 7, 14]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_unavailable_as_tensors(kind: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, data__dataset=f"{kind}/something", **TENSOR)
    for look in (check_data, lambda config: Loader(config, "train", CPU)):
        with pytest.raises(
            ConfigError,
            match=(
                r"^recipe\.pipeline 'tensor' is unavailable for .*data\.dataset=shards reads tar files as"
                r" tensors"
            ),
        ):
            look(config)


def test_the_pipeline_is_another_configuration() -> None:
    assert custom(**TENSOR).hash != custom().hash


# The engine


def engine_of(**overrides: Any) -> Engine:
    given: dict[str, Any] = {
        "recipe__randaugment": INCREASING,
        "recipe__random_erasing": 0.5,
        "recipe__mixup": 0.8,
        "recipe__cutmix": 1.0,
    }
    config = custom(
        recipe__crop_scale=[0.5, 1.0],
        recipe__global_batch=8,
        recipe__local_batch=8,
        **given,
        **TENSOR,
        **overrides,
    )
    return Engine(config, CPU, 10)


def images_and_labels() -> tuple[Tensor, Tensor]:
    images = torch.stack(
        [torch.tensor(np.asarray(picture(seed).resize((32, 32)))) for seed in range(8)]
    ).permute(0, 3, 1, 2)
    return images.float(), torch.arange(8) % 3


def batch_of(config: RunConfig, samples: list[int]) -> Batch:
    """Some of the images, with what is drawn for them in epoch 5."""
    images, labels = images_and_labels()
    augmentation = augmentation_of(config)
    drawn = [augmentation.draw(5, sample) for sample in samples]
    return Batch(
        images[samples].contiguous(memory_format=torch.channels_last),
        labels[samples],
        *augmentation.params([one for one in drawn if one is not None]),
    )


def test_an_iteration_is_augmented_alike_however_it_is_cut_up() -> None:
    whole = engine_of()
    whole.iteration = 5
    order = whole.plan.positions(0, 0)
    everything, mixed = whole._augment(batch_of(whole.config, order), 0)
    for micro in (2, 4):
        turns = engine_of(system__micro_batch=micro)
        turns.iteration = 5
        for turn in range(turns.plan.accumulation):
            positions = turns.plan.positions(0, turn)
            part, soft = turns._augment(batch_of(whole.config, positions), turn)
            rows = [order.index(position) for position in positions]
            torch.testing.assert_close(part, everything[rows], rtol=0, atol=1e-5)
            torch.testing.assert_close(soft, mixed[rows], rtol=0, atol=1e-6)


def test_an_iteration_leaves_the_batch_as_it_is_and_reads_nothing_from_the_device() -> None:
    engine = engine_of()
    given = batch_of(engine.config, list(range(8)))
    assert given.operations is not None
    assert given.erasing is not None
    before = given.images.clone()
    engine.train_step([given])
    with Syncs() as syncs:
        engine.train_step([given])
    assert syncs.names == []
    assert torch.equal(given.images, before)


def tensor_run(*more: str) -> RunConfig:
    given = [*BUSY, "recipe.pipeline=tensor", *more]
    return resolve(load_roadmap(), "fewer_norms", profile="digits", overrides=parse_overrides(given))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = prepare(tmp_path_factory.mktemp("quiet"), tensor_run())
    assert train(tensor_run(), run.path).status == "done"
    return run


@pytest.mark.parametrize("first", [1, 17, 18, 35])
def test_a_run_that_was_stopped_ends_the_same(first: int, quiet: RunDir, tmp_path: Path) -> None:
    run, stop = prepare(tmp_path, tensor_run()), StopSignals()
    with pytest.raises(Stopped):
        train(tensor_run(), run.path, stop=stop, callback=StopAt(stop, first))
    assert train(tensor_run("system.workers=2"), run.path).attempts == 2
    assert_same(run, quiet)
