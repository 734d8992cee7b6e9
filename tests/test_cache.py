"""Images that stay in memory or on the device give the batches, metrics and weights of images that are read
again in each epoch, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data import cache as caching
from roadmap.data import crops
from roadmap.data.augmentation import Batch
from roadmap.data.cache import Cache, available_memory
from roadmap.data.corrupt import CorruptImages
from roadmap.data.digits import Split
from roadmap.data.loader import Loader
from roadmap.data.preflight import check_data
from roadmap.data.tensor_decoder import RESIZE, resized_part
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare, run_dir_of
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, parse_overrides, resolve
from roadmap.train import train
from tests.helpers.images import CPU, Pictures, batches, config_of, custom, plain, same, write_folder
from tests.helpers.processes import finish, start, train_together
from tests.helpers.stopping import StopAt
from tests.test_randaugment import picture
from tests.test_resume import BUSY, assert_same, metrics

TENSOR: dict[str, Any] = {"recipe__pipeline": "tensor"}
MEAN, STD = (
    torch.tensor(values).view(1, 3, 1, 1) for values in (plain(None).data.mean, plain(None).data.std)
)
SIZES: dict[str, Callable[[int], tuple[int, int]]] = {
    "equal": lambda number: (44, 36),
    "unequal": lambda number: (40 + number, 30 + 2 * number),
}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of pictures of one size, and of many."""
    roots: dict[str, Path] = {}
    for kind, size in SIZES.items():
        roots[kind] = write_folder(tmp_path_factory.mktemp(kind))
        for number, path in enumerate(sorted(roots[kind].rglob("*.jpg"))):
            picture(number).resize(size(number)).save(path, quality=90)
    return roots


def with_cache(where: str, config: RunConfig) -> RunConfig:
    return config.model_copy(update={"system": config.system.model_copy(update={"cache": where})})


def pairs(
    config: RunConfig, where: str, split: Split, epoch: int, **how: Any
) -> tuple[list[Batch], list[Batch]]:
    """The batches without the cache, and with it."""
    return batches(config, split, epoch, **how), batches(with_cache(where, config), split, epoch, **how)


# Batches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_batch_is_cropped_as_torchvision_crops_each_image(interpolation: str, channels: int) -> None:
    random = np.random.default_rng(0)
    for height, width, size in ((32, 32, 32), (8, 8, 32), (44, 36, 32), (37, 101, 29), (96, 64, 16)):
        config = config_of(None, recipe__train_interpolation=interpolation)
        images = torch.from_numpy(random.integers(256, size=(40, channels, height, width), dtype=np.uint8))
        images[::3] = (images[::3] > 128).to(torch.uint8) * 255  # where bicubic leaves the range
        boxes = [(0, 0, height, width)]
        while len(boxes) < len(images):
            high, wide = (int(random.integers(1, edge + 1)) for edge in (height, width))
            top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
            boxes.append((top, left, high, wide))
        flipped = random.integers(2, size=len(images))
        places = torch.tensor([(0, *box, flip) for box, flip in zip(boxes, flipped.tolist(), strict=True)])
        crop = crops.BatchCrop(config.recipe, height, width, size, CPU)
        for image, box, flip, found in zip(images, boxes, flipped, crop(images, places), strict=True):
            expected = resized_part(image, box, [size, size], RESIZE[config.recipe.train_interpolation])
            assert torch.equal(found, expected.flip(2) if flip else expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("where", "kind", "pipeline"),
    [
        ("host", "unequal", "pillow"),
        ("host", "unequal", "tensor"),
        ("device", "equal", "tensor"),
    ],
)
def test_batches_are_those_without_a_cache(
    where: str, kind: str, pipeline: str, split: Split, workers: int, folders: dict[str, Path]
) -> None:
    config = config_of(
        folders[kind], recipe__pipeline=pipeline, recipe__random_erasing=0.5, system__workers=workers
    )
    cached, loader = Loader(with_cache(where, config), split, CPU), Loader(config, split, CPU)
    for epoch in range(2):
        for first in (0, 1):
            assert same(list(cached.epoch(epoch, first)), list(loader.epoch(epoch, first)))
    assert cached.identity == loader.identity
    for each in (cached, loader):
        each.close()


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("pipeline", ["pillow", "tensor"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_without_random_transforms_may_differ_in_size(
    where: str, pipeline: str, split: Split, folders: dict[str, Path]
) -> None:
    config = plain(folders["unequal"], recipe__pipeline=pipeline, recipe__random_erasing=0.5)
    assert same(*pairs(config, where, split, 1))


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("profile", ["digits", "digits_noisy"])
def test_digits_are_those_without_a_cache(where: str, profile: str) -> None:
    config = resolve(load_roadmap(), "gelu", profile=profile, overrides={"data.fresh_noise": False})
    assert same(*pairs(config, where, "train", 1))
    assert same(*pairs(config, where, "val", 0))


def test_images_that_change_in_each_epoch_are_not_cached() -> None:
    config = resolve(load_roadmap(), "gelu", profile="digits_noisy", overrides={"data.fresh_noise": True})
    for where in ("host", "device"):
        with pytest.raises(
            ConfigError, match=rf"^system\.cache '{where}' .*fresh_noise.*--set system\.cache=none"
        ):
            check_data(with_cache(where, config))


def test_padded_crops_are_those_of_torchvision(folders: dict[str, Path]) -> None:
    padded: dict[str, Any] = {
        "recipe__crop_scale": None,
        "recipe__crop_padding": 4,
        "recipe__randaugment": None,
    }
    items = Pictures([(picture(number).resize((32, 32)), number % 3) for number in range(24)])
    config = custom(**padded, **TENSOR)
    for epoch in range(2):
        without, cached = pairs(config, "device", "train", epoch, source=items)
        assert same(without, cached)
        assert same(without, batches(with_cache("host", config), "train", epoch, source=items))
        pillow = batches(custom(**padded), "train", epoch, source=items)
        for ours, theirs in zip(without, pillow, strict=True):
            assert torch.equal(ours.images, (255 * (theirs.images * STD + MEAN)).round())
    seen = torch.cat([batch.images for batch in without])
    assert 0 < seen.eq(0).all(dim=1).float().mean() < 0.3  # black from the padding
    with pytest.raises(ConfigError, match="'device' pads images of 32 x 32 pixels, and these have 36 x 44"):
        Loader(with_cache("device", config_of(folders["equal"], **padded, **TENSOR)), "train", CPU)
    with pytest.raises(ConfigError, match=r"two kinds of random crops; .*--set recipe\.crop_scale=null"):
        config_of(None, recipe__crop_padding=4)
    larger = batches(config_of(folders["unequal"], **padded), "train")
    assert {batch.images.shape[2:] for batch in larger} == {(32, 32)}


@pytest.mark.parametrize("where", ["host", "device"])
def test_gray_images_and_chosen_classes_are_cached_too(where: str, folders: dict[str, Path]) -> None:
    gray: dict[str, Any] = {"model__in_chans": 1, "data__mean": [0.45], "data__std": [0.25]}
    config = config_of(folders["equal"], data__classes=["ant", "cat"], model__num_classes=2, **gray, **TENSOR)
    assert same(*pairs(config, where, "train", 0))
    assert same(*pairs(config, where, "val", 0))
    pillow = config_of(folders["equal"], **gray)
    assert same(*pairs(pillow, "host", "train", 0))


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_each_process_has_its_share(where: str, split: Split, folders: dict[str, Path]) -> None:
    config = config_of(folders["equal"], recipe__global_batch=6, **TENSOR)
    for rank in range(3):
        assert same(*pairs(config, where, split, 1, rank=rank, plan=BatchPlan(3, 1, 2, 6)))


class Counted(Pictures):
    """It counts how often an image is read."""

    reads = 0

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.reads += 1
        return super().__getitem__(number)


@pytest.mark.parametrize("where", ["host", "device"])
def test_an_image_is_read_once_at_most(where: str) -> None:
    items = Counted([(picture(number).resize((40, 40)), number % 3) for number in range(150)])
    config = with_cache(where, custom(recipe__crop_scale=[0.5, 1.0], **TENSOR))
    loader = Loader(config, "train", CPU, source=items)
    filled = items.reads
    assert filled <= 150 + 1 + 2 * caching.PROBED
    for epoch in range(2):
        assert len(list(loader.epoch(epoch))) == 37
    assert items.reads == filled


# Damage and refusals


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_images_are_replaced_and_counted_as_without_a_cache(
    where: str, split: Split, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "data", val=5)
    for name, keep in (("ant/0.jpg", -200), ("bee/1.jpg", 15), ("cat/4.jpg", 0)):
        path = root / split / name
        path.write_bytes(path.read_bytes()[:keep])
    config = config_of(root, system__corrupt_images=3, **TENSOR)
    loaders = [Loader(with_cache(each, config), split, CPU) for each in ("none", where)]
    assert loaders[1].corrupt.state() == []
    found = [list(loader.epoch(1)) for loader in loaders]
    assert same(*found)
    assert loaders[0].corrupt.state() == loaders[1].corrupt.state() != []
    few = with_cache(
        where, config.model_copy(update={"system": config.system.model_copy(update={"corrupt_images": 1})})
    )
    with pytest.raises(CorruptImages, match=r"system\.corrupt_images"):
        list(Loader(few, split, CPU).epoch(1))


def test_images_of_which_none_can_be_read_end_the_run() -> None:
    items = Pictures([(OSError("gone"), 0)] * 4)
    for where in ("host", "device"):
        config = with_cache(where, custom(system__corrupt_images=9, recipe__crop_scale=[0.5, 1.0], **TENSOR))
        with pytest.raises(CorruptImages, match="no image in train that can be read"):
            list(Loader(config, "train", CPU, source=items).epoch())


def test_images_of_other_sizes_are_named(folders: dict[str, Path]) -> None:
    config = with_cache("device", config_of(folders["unequal"], **TENSOR))
    with pytest.raises(
        ConfigError,
        match=(
            r"^system\.cache 'device' needs images of one size to crop them, and .*/train/ant/1\.jpg has 32 x"
            r" 41 pixels, others 30 x 40; --set system\.cache=host$"
        ),
    ):
        Loader(config, "train", CPU)


@pytest.mark.parametrize("where", ["host", "device"])
def test_images_that_do_not_fit_are_an_error(
    where: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 15 * 44 * 36 * 3
    config = with_cache(where, config_of(folders["equal"], **TENSOR))
    monkeypatch.setattr(caching, "available_memory", lambda: needed)
    Loader(config, "train", CPU)
    monkeypatch.setattr(caching, "available_memory", lambda: needed - 1)
    with pytest.raises(
        ConfigError,
        match=(
            rf"^system\.cache '{where}' needs 0 MiB for 15 images of train, and memory has 0 MiB free;"
            r" --set system\.cache=none$"
        ),
    ):
        Loader(config, "train", CPU)


def test_processes_of_a_node_share_its_memory(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_cache("host", config_of(folders["equal"], recipe__global_batch=6, **TENSOR))
    monkeypatch.setattr(caching, "available_memory", lambda: 2 * 15 * 44 * 36 * 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    Loader(config, "train", CPU, plan=BatchPlan(3, 1, 2, 6))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    with pytest.raises(ConfigError, match="memory has"):
        Loader(config, "train", CPU, plan=BatchPlan(3, 1, 2, 6))


def test_a_gpu_without_room_is_an_error(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_cache("device", config_of(folders["equal"], **TENSOR))
    feed: Any = Loader(with_cache("none", config), "train", CPU)._feed
    cache = Cache(config, "train", feed.samples, feed.numbers, fitting=lambda _: 0, world=1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**30))
    with pytest.raises(
        ConfigError,
        match=r"and cuda:0 has 0 MiB free; --set system\.cache=host, or --set system\.cache=none$",
    ):
        cache.on_device(torch.device("cuda:0"))


def test_memory_is_what_the_machine_and_the_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = available_memory()
    assert 2**20 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, text in {"max": "1000\n", "current": "900\n", "stat": "anon 1\ninactive_file 50\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text, encoding="ascii")
    monkeypatch.setattr(caching, "GROUPS", tmp_path)
    assert available_memory() == 150


def test_another_rounding_of_the_device_is_an_error(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded_up(sums: Tensor) -> Tensor:
        return sums.ceil().clamp(0, 255)

    monkeypatch.setattr(crops, "_rounded", rounded_up)
    with pytest.raises(
        ConfigError, match=r"'device' crops on cpu as torchvision .* not; --set system.cache=host$"
    ):
        Loader(with_cache("device", config_of(folders["equal"], **TENSOR)), "train", CPU)


@pytest.mark.parametrize("kind", ["wds", "tfds", "hfids"])
def test_a_stream_cannot_be_cached(kind: str, tmp_path: Path) -> None:
    config = with_cache("host", config_of(tmp_path, data__dataset=f"{kind}/something"))
    for look in (check_data, lambda config: Loader(config, "train", CPU)):
        with pytest.raises(ConfigError, match=r"^system\.cache 'host' is unavailable for .*=none$"):
            look(config)


def test_random_transforms_of_pillow_are_unavailable_on_the_device(folders: dict[str, Path]) -> None:
    config = with_cache("device", config_of(folders["equal"]))
    for look in (check_data, lambda config: Loader(config, "train", CPU)):
        with pytest.raises(
            ConfigError, match=r"^system\.cache 'device' .* --set recipe\.pipeline=tensor .*=host$"
        ):
            look(config)


def test_the_cache_is_no_part_of_the_hash(tmp_path: Path) -> None:
    config = config_of(None)
    assert with_cache("device", config).hash == config.hash
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml().replace("  cache: none\n", ""), encoding="utf-8")
    assert "cache" not in path.read_text(encoding="utf-8")  # as of earlier versions
    assert RunConfig.read(path) == config


# Runs


def run_of(*more: str, step: str = "fewer_norms") -> RunConfig:
    given = [*BUSY, "recipe.pipeline=tensor", *more]
    return resolve(load_roadmap(), step, profile="digits", overrides=parse_overrides(given))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run without a cache."""
    run = prepare(tmp_path_factory.mktemp("quiet"), run_of())
    assert train(run_of(), run.path).status == "done"
    return run


@pytest.mark.parametrize("more", [["device"], ["device", "system.workers=2"], ["host"]])
def test_a_run_ends_as_without_a_cache(more: list[str], quiet: RunDir, tmp_path: Path) -> None:
    config = run_of(f"system.cache={more[0]}", *more[1:])
    run = prepare(tmp_path, config)
    assert train(config, run.path).status == "done"
    assert_same(run, quiet)


@pytest.mark.parametrize("first", [1, 17, 18, 35])
def test_a_run_that_was_stopped_ends_the_same(first: int, quiet: RunDir, tmp_path: Path) -> None:
    config = run_of("system.cache=device")
    run, stop = prepare(tmp_path, config), StopSignals()
    with pytest.raises(Stopped):
        train(config, run.path, stop=stop, callback=StopAt(stop, first))
    # in the middle of an epoch it may change to another cache, too
    again = config if first == 1 else run_of("system.cache=host" if first == 17 else "system.workers=1")
    assert train(again, run.path).attempts == 2
    assert_same(run, quiet)


def test_two_processes_train_as_without_a_cache(tmp_path: Path) -> None:
    found = []
    for where in ("none", "device"):
        config = run_of("recipe.local_batch=32", f"system.cache={where}")
        config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"epochs": 1})})
        assert finish(start(2, train_together, config, tmp_path / where)) == [0, 0]
        run = run_dir_of(tmp_path / where, config)
        state = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)["engine"]
        found.append(
            (metrics(run), state["model"] | {f"ema.{key}": value for key, value in state["ema"].items()})
        )
    (logged, weights), (others, others_weights) = found
    assert logged == others
    assert weights.keys() == others_weights.keys()
    assert all(torch.equal(tensor, others_weights[name]) for name, tensor in weights.items())
