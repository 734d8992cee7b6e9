"""Random erasing: timm's boxes, drawn with the sample and erased in the batch at once; noise that depends on
an image's key and the place.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from roadmap.config import RunConfig
from roadmap.data.augmentation import Augmentation, Drawn, Erasing
from roadmap.data.loader import Loader
from roadmap.rng import ERASE, seed_of
from roadmap.training.device_transforms import DeviceTransform, erase, normal
from tests.helpers.images import (
    CPU,
    CountedOperators,
    augmentation_of,
    batches,
    config_of,
    equal,
    plain,
    plan_of,
    write_folder,
    write_shards,
)

SIZE, IMAGES = 32, 200


def drawn(augmentation: Augmentation, samples: range, epoch: int = 3) -> list[Drawn]:
    found = [augmentation.draw(epoch, sample) for sample in samples]
    return [one for one in found if one is not None]


def erasing_of(augmentation: Augmentation, samples: range) -> Erasing:
    _, erasing = augmentation.params(drawn(augmentation, samples))
    assert erasing is not None
    return erasing


def erasing(mode: str = "const", most: int = 1, probability: float = 0.5) -> Augmentation:
    config = plain(None, recipe__random_erasing=probability, recipe__erase_mode=mode)
    augmentation = augmentation_of(config)
    augmentation.erasing = RandomErasing(probability, max_count=most, device="cpu")
    return augmentation


@pytest.mark.parametrize("most", [1, 3])
def test_the_boxes_are_those_of_timm(most: int) -> None:
    augmentation = erasing(most=most)
    ours = erase(torch.ones(IMAGES, 3, SIZE, SIZE), erasing_of(augmentation, range(IMAGES)), "const")
    theirs = torch.ones(IMAGES, 3, SIZE, SIZE)
    timms = RandomErasing(0.5, max_count=most, device="cpu")
    for sample, image in enumerate(theirs):
        random.seed(seed_of(ERASE, 0, 3, sample))
        timms(image)
    assert torch.equal(ours, theirs)
    assert 0.35 < (ours == 0).flatten(1).any(1).float().mean() < 0.65
    counts = {len(one.boxes) for one in drawn(augmentation, range(IMAGES))}
    assert counts == set(range(most + 1))


def test_each_box_has_a_color_and_the_last_one_wins() -> None:
    boxes = torch.tensor([[[2, 9, 3, 30], [5, 20, 0, 10]], [[0, 4, 0, 4], [0, 0, 0, 0]]])
    given = Erasing(torch.tensor([2, 0]), boxes, torch.tensor([77, 78]))
    images = erase(torch.full((3, 3, SIZE, SIZE), 9.0), given, "rand")
    first, second = images[2, :, 3, 20], images[2, :, 7, 5]
    assert len({*first.tolist(), *second.tolist(), 9.0}) == 7
    expected = torch.full((3, 3, SIZE, SIZE), 9.0)
    expected[2, :, 2:9, 3:30] = first[:, None, None]
    expected[2, :, 5:20, 0:10] = second[:, None, None]
    expected[0, :, :4, :4] = images[0, :, 0, 0][:, None, None]
    assert torch.equal(images, expected)


def test_noise_is_standard_normal_and_independent() -> None:
    """As far as 600,000 numbers show, for keys and places that follow each other."""
    noise = normal(torch.arange(8), 3, 160, 160)
    values = noise.flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert np.abs(values).max() > 4
    apart = [noise[:, :, :, :-1] * noise[:, :, :, 1:], noise[:, :, :-1] * noise[:, :, 1:]]
    apart += [
        noise[:, :-1] * noise[:, 1:],
        noise[:-1] * noise[1:],
        (noise[:-1] ** 2 - 1) * (noise[1:] ** 2 - 1),
    ]
    for products in apart:
        assert abs(products.mean()) < 5 * products.std() / products.numel() ** 0.5
    colors = normal(torch.arange(200_000), 1, 3, 1, 1).numpy()
    assert stats.kstest(colors.flatten(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_what_an_image_gets_does_not_depend_on_its_batch(mode: str) -> None:
    augmentation = erasing(mode, most=2)
    whole = erase(torch.zeros(24, 3, SIZE, SIZE), erasing_of(augmentation, range(24)), mode)
    for samples in (range(3, 4), range(12, 24), range(23, -1, -1)):
        torch.rand(5)
        part = erase(torch.zeros(len(samples), 3, SIZE, SIZE), erasing_of(augmentation, samples), mode)
        assert torch.equal(part, whole[list(samples)])
    other = augmentation.params(drawn(augmentation, range(24), epoch=4))[1]
    assert other is not None
    assert not equal(other, erasing_of(augmentation, range(24)))
    assert (mode == "const") == (not whole.any())


@pytest.mark.parametrize("pipeline", ["pillow", "tensor"])
def test_batches_carry_the_same_on_any_number_of_processes_and_workers(pipeline: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    how: dict[str, Any] = {
        "recipe__pipeline": pipeline, "recipe__random_erasing": 0.5, "recipe__global_batch": 12,
        "recipe__randaugment": "rand-m9-mstd0.5-inc1",
    }  # fmt: skip
    config = config_of(root, **how)
    finish = DeviceTransform(config, CPU)
    whole = batches(config, epoch=1)
    (images,) = map(finish, whole)
    assert not torch.equal(finish(whole[0]._replace(erasing=None)), images)
    for world, micro, workers in ((1, 4, 0), (2, 6, 2), (3, 2, 1)):
        cut = config_of(root, system__micro_batch=micro, system__workers=workers, **how)
        plan = plan_of(cut, world)
        for rank in range(world):
            loader = Loader(cut, "train", CPU, rank=rank, plan=plan)
            for turn, batch in enumerate(loader.epoch(1)):
                assert torch.equal(finish(batch), images[plan.positions(rank, turn)])
            loader.close()


def test_a_stream_erases_the_same_after_it_resumes(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    root = write_shards(tmp_path)
    config = plain(
        root, data__dataset="wds/pictures", data__train_split="train-{00..03}.tar|16",
        data__val_split="val-{00..01}.tar|8", recipe__random_erasing=0.5, system__workers=2,
    )  # fmt: skip
    whole = batches(config, epoch=1)
    finish = DeviceTransform(config, CPU)
    assert sum(len(batch.erasing.rows) for batch in whole if batch.erasing is not None) > 2
    assert any(not torch.equal(finish(batch), batch.images) for batch in whole)
    assert equal(tuple(batches(config, epoch=1, first=2)), tuple(whole[2:]))
    evaluated = batches(config, "val")
    assert {(batch.operations, batch.erasing) for batch in evaluated} == {(None, None)}


def operators(config: RunConfig, images: int) -> int:
    """How many operators the device's part of that many images takes."""
    augmentation, finish = augmentation_of(config), DeviceTransform(config, CPU)
    params = augmentation.params(drawn(augmentation, range(images)))
    given = next(iter(batches(config)))
    pixels = given.images[torch.arange(images) % 4]
    batch = given._replace(images=pixels, operations=params[0], erasing=params[1])
    finish(batch)  # the first one computes what is the same for all
    with CountedOperators() as counted:
        finish(batch)
    return int(counted.count)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_the_training_thread_does_nothing_image_by_image(mode: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"recipe__random_erasing": 1.0, "recipe__erase_mode": mode}
    config = plain(write_folder(tmp_path), **how)
    assert operators(config, 4) == operators(config, 64) < 45
    full = config_of(tmp_path, recipe__pipeline="tensor", recipe__randaugment="rand-m9-mstd0.5-inc1", **how)
    assert operators(full, 256) == operators(full, 512) < 240


def test_the_memory_format_is_kept() -> None:
    images = torch.zeros(8, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    changed: Tensor = erase(images, erasing_of(erasing("pixel", probability=1.0), range(8)), "pixel")
    assert changed.is_contiguous(memory_format=torch.channels_last)
