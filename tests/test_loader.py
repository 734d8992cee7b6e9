"""An epoch is the same however many processes share it and however many turns they take; evaluation counts
each image once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.loader import Loader, build_transform
from roadmap.errors import ConfigError
from roadmap.training.device_transforms import DeviceTransform
from tests.helpers.images import (
    CPU,
    Pictures,
    batches,
    config_of,
    custom,
    labels_of,
    numbers_of,
    picture,
    plain,
    plan_of,
    same,
    write_folder,
)

TRAIN, VAL = 15, 9
BATCH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 3), (3, 2), (3, 1), (6, 1)])
def test_processes_and_accumulation_steps_make_the_same_global_batches(
    folder: Path, world: int, micro: int, paired: bool
) -> None:
    config = config_of(folder, recipe__global_batch=BATCH)
    whole = batches(config, epoch=1)
    plan = BatchPlan(world, micro, BATCH // (world * micro), BATCH, paired)
    parts = [batches(config, epoch=1, rank=rank, plan=plan) for rank in range(world)]
    assert [len(part) for part in parts] == [plan.accumulation * len(whole)] * world
    for iteration, (images, labels, *_) in enumerate(whole):
        seen = set()
        for rank, part in enumerate(parts):
            for turn in range(plan.accumulation):
                found, targets, *_ = part[iteration * plan.accumulation + turn]
                positions = plan.positions(rank, turn)
                assert torch.equal(found, images[positions])
                assert torch.equal(targets, labels[positions])
                seen |= set(positions)
        assert seen == set(range(BATCH))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_is_resumed_at_its_first_accumulation_step(folder: Path, workers: int) -> None:
    config = config_of(folder, recipe__global_batch=BATCH, system__workers=workers)
    plan = BatchPlan(2, 1, 3, BATCH)
    loader = Loader(config, "train", CPU, rank=1, plan=plan)
    whole = list(loader.epoch(2))
    assert (len(loader), len(whole), loader.images) == (TRAIN // BATCH, 3 * (TRAIN // BATCH), TRAIN)
    for first in range(len(loader) + 1):
        assert same(list(loader.epoch(2, first)), whole[3 * first :])
    loader.close()


@pytest.mark.parametrize("world", [1, 2, 4, 12])
def test_evaluation_sees_each_image_once_over_all_processes(folder: Path, world: int) -> None:
    config = plain(folder, recipe__global_batch=12, system__eval_batch=2)
    plan = plan_of(config, world)
    loaders = [Loader(config, "val", CPU, rank=rank, plan=plan) for rank in range(world)]
    parts = [list(loader.epoch()) for loader in loaders]
    assert [numbers_of(part, config) for part in parts] == [
        list(range(rank, VAL, world)) for rank in range(world)
    ]
    assert [len(loader) for loader in loaders] == [len(part) for part in parts]
    assert {loader.images for loader in loaders} == {VAL}
    assert sorted(label for part in parts for label in labels_of(part)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_fewer_images_than_all_processes_take_at_once_are_refused(folder: Path) -> None:
    config = config_of(folder, recipe__global_batch=BATCH)
    with pytest.raises(ConfigError, match="has 15 images in train, less than a batch of 16"):
        Loader(config, "train", CPU, plan=BatchPlan(4, 4, 1, 16))


def test_an_evaluation_without_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 0 images in val, less than a batch of 1"):
        Loader(custom(), "val", CPU, source=Pictures([]))


@pytest.mark.parametrize(
    ("mode", "left", "seen"), [("center", False, (0, 0, 255)), ("squash", True, (255, 0, 0))]
)
def test_evaluation_crops_the_center_or_squashes_the_full_image(
    mode: str, left: bool, seen: tuple[int, int, int]
) -> None:
    wide = Image.new("RGB", (96, 32), (0, 0, 255))
    wide.paste((255, 0, 0), (0, 0, 32, 32))
    image = torch.as_tensor(
        build_transform(config_of(None, recipe__eval_crop_pct=1.0, recipe__eval_crop_mode=mode), False)(wide)
    )
    assert tuple(image.shape) == (3, 32, 32)
    assert tuple(image[:, 16, 1].tolist()) == seen
    assert (image[0].max() == 255) == left


def test_training_without_a_crop_scale_sees_what_evaluation_sees() -> None:
    pictures = Pictures([(picture(number, 48), number % 3) for number in range(4)])
    config = custom(recipe__train_interpolation="bicubic", recipe__eval_interpolation="bicubic")
    train, val = (batches(config, split, source=pictures)[0][0] for split in ("train", "val"))
    assert sorted(image.numpy().tobytes() for image in train) == sorted(
        image.numpy().tobytes() for image in val
    )


def everything(folder: Path) -> RunConfig:
    """A run whose batches carry all that they can."""
    return config_of(
        folder,
        recipe__pipeline="tensor",
        recipe__randaugment="rand-m9-mstd0.5-inc1",
        recipe__random_erasing=0.5,
    )


def test_pinned_batches_carry_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's thread pins each tensor in a batch, here by a copy."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    config = everything(folder)
    finish = DeviceTransform(config, CPU)
    for batch in batches(config):
        pinned: Batch = pin_memory(batch)  # type: ignore[no-untyped-call]
        assert pinned.images is not batch.images
        assert pinned.erasing is not None
        assert batch.erasing is not None
        assert pinned.erasing.keys is not batch.erasing.keys
        assert torch.equal(finish(pinned), finish(batch))
        assert torch.equal(pinned.labels, batch.labels)


def test_a_stream_of_its_own_makes_the_transfers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stream waits for a batch, and is named for the memory of each of its tensors."""
    calls: list[Any] = []
    training = SimpleNamespace(wait_stream=lambda stream: calls.append(("wait", stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: training)

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        calls.append(("on", stream))
        yield

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: calls.append(stream))
    config = everything(folder)
    loader = Loader(config, "train", CPU)
    loader._loader.stream = "transfers"
    assert same(list(loader.epoch()), batches(config))
    each = [("on", "transfers"), ("wait", "transfers"), *[training] * 8]
    assert calls == each * len(loader)
