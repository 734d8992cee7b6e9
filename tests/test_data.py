"""Batches depend on seed, epoch and sample alone; a folder of images trains; the digits are a fixed task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets

from roadmap.config import DataSpec, RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.digits import Split, load_digits
from roadmap.data.loader import Loader
from roadmap.errors import ConfigError
from roadmap.records import prepare
from roadmap.rng import STEP, permutation, reseed, seed_of
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from tests.helpers.images import same

ROADMAP = load_roadmap()
CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
TRAIN_EACH, VAL_EACH = 5, 3
BATCH, EVAL_BATCH = 4, 4
# The enhanced recipe's augmentation, in full.
AUGMENTED: dict[str, Any] = {
    "recipe.label_smoothing": 0.1,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.randaugment": "rand-m9-mstd0.5-inc1",
    "recipe.random_erasing": 0.25,
    "recipe.train_interpolation": "bicubic",
    "recipe.eval_interpolation": "bicubic",
    "recipe.ema": 0.9,
}
TINY: dict[str, Any] = {
    "model.num_classes": len(CLASSES),
    "model.width_mult": 0.125,
    "model.depths": [1, 1, 1, 1],
    "data.image_size": 32,
    "recipe.epochs": 1,
    "recipe.global_batch": BATCH,
    "recipe.lr": 0.01,
    "system.device": "cpu",
    "system.threads": 1,
    "system.workers": 0,
    "system.eval_batch": EVAL_BATCH,
    "system.log_every": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gray(split: str, index: int, label: int) -> int:
    """A gray of its own for each image, far enough from the others to survive JPEG."""
    each = TRAIN_EACH if split == "train" else VAL_EACH
    return 20 + 14 * (label * each + index)


def write_images(root: Path, split: str, each: int, classes: tuple[str, ...] = CLASSES) -> None:
    """JPEGs of one gray for validation, and of noise around it for training."""
    noise = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for index in range(each):
            pixels = np.full((40, 48, 3), float(gray(split, index, label)))
            if split == "train":
                pixels += 30 * noise.standard_normal(pixels.shape)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                root / split / name / f"{index}.jpg", quality=95
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root, "train", TRAIN_EACH)
    write_images(root, "val", VAL_EACH)
    return root


def config_of(data_dir: Path | None, seed: int = 0, **overrides: Any) -> RunConfig:
    """The folder with everything on; dots in names of values are written as two underscores."""
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    where = {"system.data_dir": str(data_dir) if data_dir else None}
    return resolve(ROADMAP, "resnet50", seed=seed, overrides=TINY | AUGMENTED | where | given)


def batches(config: RunConfig, epoch: int = 0, first: int = 0, split: Split = "train") -> list[Batch]:
    return list(Loader(config, split, CPU).epoch(epoch, first))


def test_a_folder_trains_to_a_result_with_everything_on(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    run = prepare(tmp_path, config)
    result = train(config, run.path)
    iterations = len(CLASSES) * TRAIN_EACH // BATCH
    assert (result.status, result.epochs, result.iterations, result.dataset) == (
        "done",
        1,
        iterations,
        "folder",
    )
    accuracies = [result.top1, result.top5, result.ema_top1]
    shares = [100 * right / (len(CLASSES) * VAL_EACH) for right in range(len(CLASSES) * VAL_EACH + 1)]
    assert all(any(accuracy == pytest.approx(share) for share in shares) for accuracy in accuracies)
    assert result.top5 == pytest.approx(100)  # there are but three classes
    records = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [record["kind"] for record in records] == ["train"] * iterations + ["epoch"]
    assert json.loads(run.result.read_text(encoding="utf-8"))["status"] == "done"


def test_training_batches_are_full_and_normalized(folder: Path) -> None:
    config = config_of(folder, recipe__randaugment=None)
    found = batches(config)
    assert [(tuple(images.shape), images.dtype, tuple(labels.shape)) for images, labels, *_ in found] == [
        ((BATCH, 3, 32, 32), torch.float32, (BATCH,))
    ] * (len(CLASSES) * TRAIN_EACH // BATCH)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.data.mean, config.data.std))
    pixels = torch.cat([images for images, *_ in found]) * std + mean
    assert [float(pixels.min()), float(pixels.max())] == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_the_same_with_any_number_of_workers(folder: Path, split: Split) -> None:
    alone, shared = (Loader(config_of(folder, system__workers=workers), split, CPU) for workers in (0, 2))
    for epoch in (0, 1):
        assert same(list(alone.epoch(epoch)), list(shared.epoch(epoch)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_at_a_batch_matches_an_uninterrupted_one(folder: Path, workers: int) -> None:
    config = config_of(folder, system__workers=workers)
    whole, loader = batches(config, epoch=1), Loader(config, "train", CPU)
    for first in range(len(whole) + 1):
        assert same(list(loader.epoch(1, first)), whole[first:])


def test_an_epoch_that_was_left_early_does_not_change_the_next(folder: Path) -> None:
    config = config_of(folder, system__workers=2)
    loader = Loader(config, "train", CPU)
    next(iter(loader.epoch(0)))
    assert same(list(loader.epoch(1)), batches(config, epoch=1))


def test_other_random_draws_between_batches_change_nothing(folder: Path) -> None:
    config = config_of(folder)
    disturbed = []
    for batch in Loader(config, "train", CPU).epoch():
        torch.rand(3)
        np.random.rand(3)
        disturbed.append(batch)
    assert same(disturbed, batches(config))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_or_seed_has_another_order_and_other_augmentation(
    folder: Path, seed: int, epoch: int
) -> None:
    length = len(CLASSES) * TRAIN_EACH
    assert permutation(length, 0, 0) != permutation(length, seed, epoch)
    first, other = batches(config_of(folder)), batches(config_of(folder, seed), epoch)
    assert [labels.tolist() for _, labels, *_ in first] != [labels.tolist() for _, labels, *_ in other]
    pictures = [
        {image.numpy().tobytes() for images, *_ in found for image in images} for found in (first, other)
    ]
    assert not pictures[0] & pictures[1]


def test_an_epoch_draws_each_image_at_most_once(folder: Path) -> None:
    plain = config_of(folder, recipe__randaugment=None, recipe__crop_scale=None, recipe__hflip=0.0)
    pictures = [image.numpy().tobytes() for images, *_ in batches(plain) for image in images]
    assert len(set(pictures)) == len(pictures) == len(CLASSES) * TRAIN_EACH // BATCH * BATCH


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_image_once_and_the_last_batch_in_part(folder: Path, workers: int) -> None:
    config = config_of(folder, system__workers=workers)
    found = batches(config, split="val")
    assert [len(labels) for _, labels, *_ in found] == [4, 4, 1]
    images, labels = (
        torch.cat([batch.images for batch in found]),
        torch.cat([batch.labels for batch in found]),
    )
    grays = 255 * (
        images * torch.tensor(config.data.std).view(3, 1, 1) + torch.tensor(config.data.mean).view(3, 1, 1)
    ).mean((1, 2, 3))
    expected = [gray("val", index, label) for label in range(len(CLASSES)) for index in range(VAL_EACH)]
    assert grays.tolist() == pytest.approx(expected, abs=3)
    assert labels.tolist() == [label for label in range(len(CLASSES)) for _ in range(VAL_EACH)]


def test_evaluation_is_the_same_in_every_epoch(folder: Path) -> None:
    config = config_of(folder)
    assert same(batches(config, split="val"), batches(config, epoch=3, split="val"))


def without(folder: Path, tmp_path: Path, *missing: str) -> Path:
    """A data folder without some of its splits."""
    for split in {"train", "val"} - set(missing):
        (tmp_path / split).symlink_to(folder / split, target_is_directory=True)
    return tmp_path


def test_a_class_count_that_is_not_the_models_is_refused_with_both(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has 3 classes in train, the model 1000; --set model\.num_classes=3"
    ):
        Loader(config_of(folder, model__num_classes=1000), "train", CPU)


def test_validation_with_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    root = without(folder, tmp_path, "val")
    write_images(root, "val", 1, (*CLASSES, "dog"))
    config = config_of(root)
    run = prepare(tmp_path / "runs", config)
    with pytest.raises(ConfigError, match="train/ and val/ must have the same classes: only val/ has dog"):
        train(config, run.path)


def test_validation_with_classes_of_other_names_is_refused(folder: Path, tmp_path: Path) -> None:
    root = without(folder, tmp_path, "val")
    write_images(root, "val", 1, ("ape", "bee", "cat"))
    config = config_of(root)
    run = prepare(tmp_path / "runs", config)
    with pytest.raises(ConfigError, match=r"ape|ant"):
        train(config, run.path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(folder: Path, tmp_path: Path, split: Split) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path} has no folder {split}, but (train|val)$"):
        Loader(config_of(without(folder, tmp_path, split)), split, CPU)


def test_a_split_without_images_is_named(folder: Path, tmp_path: Path) -> None:
    root = without(folder, tmp_path, "val")
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
    with pytest.raises(ConfigError) as refused:
        Loader(config_of(root), "val", CPU)
    assert f"{root}/val" in str(refused.value)
    assert "image" in str(refused.value)


def test_a_missing_data_folder_is_reported_with_how_to_set_it() -> None:
    with pytest.raises(ConfigError, match=r"system\.data_dir is not set.*--set system\.data_dir="):
        Loader(config_of(None), "train", CPU)
    config = resolve(ROADMAP, "gelu", profile="cifar10_small")
    with pytest.raises(ConfigError, match=r"where is torch/cifar10\? .*--set system\.download=true"):
        Loader(config, "train", CPU)


def test_fewer_images_than_a_batch_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has 15 images in train, less than a batch of 16"):
        Loader(config_of(folder, recipe__global_batch=16), "train", CPU)


def test_a_refused_data_folder_leaves_the_run_open(tmp_path: Path) -> None:
    config = config_of(tmp_path / "nowhere")
    run = prepare(tmp_path / "runs", config)
    with pytest.raises(ConfigError, match="nowhere"):
        train(config, run.path)
    assert not run.result.exists()


# The digits


def spec(**values: Any) -> DataSpec:
    """Four fixed copies of the digits under noise, but for the `values`."""
    given = {"copies": 4, "fresh_noise": False} | values
    return resolve(ROADMAP, "resnet50", profile="digits_noisy").data.model_copy(update=given)


@pytest.mark.parametrize(("split", "size"), [("train", 4792), ("val", 2396)])
def test_noisy_digits_have_a_fixed_size(split: Split, size: int) -> None:
    images, labels = load_digits(spec(), split)
    assert (images.shape, labels.shape) == ((size, 8, 8), (size,))
    assert images.dtype == np.uint8
    shares = np.bincount(labels, minlength=10) / size
    assert shares.min() > 0.09
    assert shares.max() < 0.11


def test_training_and_validation_digits_are_disjoint_and_all_there() -> None:
    found = [load_digits(spec(copies=1, noise=0.0), split) for split in ("train", "val")]
    originals, targets = datasets.load_digits(return_X_y=True)
    ours = Counter(
        (image.tobytes(), int(label))
        for images, labels, *_ in found
        for image, label in zip(images, labels, strict=True)
    )
    stored = np.rint(85 + 85 * originals / 16).astype(np.uint8)
    assert ours == Counter(
        (image.tobytes(), int(label)) for image, label in zip(stored, targets, strict=True)
    )
    train_pictures, val_pictures = ({image.tobytes() for image in images} for images, *_ in found)
    assert not train_pictures & val_pictures


@pytest.mark.parametrize("split", ["train", "val"])
def test_two_calls_give_the_same_digits(split: Split) -> None:
    (images, labels), (again, same_labels) = load_digits(spec(), split), load_digits(spec(), split)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same_labels)


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_digit_is_there_four_times_under_different_noise(split: Split) -> None:
    (noisy, labels), (clean, originals) = (
        load_digits(spec(), split),
        load_digits(spec(copies=1, noise=0.0), split),
    )
    assert np.array_equal(labels, np.repeat(originals, 4))
    assert len({image.tobytes() for image in noisy}) == len(noisy)
    noise = ((noisy.astype(float) - np.repeat(clean.astype(float), 4, axis=0)) / 85).reshape(
        len(clean), 4, 64
    )
    assert noise.std() == pytest.approx(0.3, abs=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    copies = np.corrcoef([noise[:, copy].ravel() for copy in range(4)])
    assert np.abs(copies - np.eye(4)).max() < 0.02


def test_training_and_validation_noise_is_not_the_same() -> None:
    parts = []
    for split in ("train", "val"):
        (noisy, _), (clean, _) = (
            load_digits(spec(copies=1), split),
            load_digits(spec(copies=1, noise=0.0), split),
        )
        parts.append((noisy.astype(float) - clean)[:500].ravel())
    assert abs(np.asarray(np.corrcoef(parts))[0, 1]) < 0.02


@pytest.mark.parametrize("pipeline", ["pillow", "tensor"])
def test_fresh_noise_depends_on_seed_epoch_and_image_alone(pipeline: str) -> None:
    given = {"data.fresh_noise": True, "data.image_size": 8, "data.copies": 2, "system.device": "cpu"}
    fixed = {"recipe.pipeline": pipeline, "recipe.global_batch": 599, "recipe.local_batch": 599}
    configs = [
        resolve(ROADMAP, step, profile="digits_noisy", overrides=given | fixed)
        for step in ("resnet50", "gelu")
    ]
    clean = np.sort(load_digits(spec(copies=2, noise=0.0), "train")[0].reshape(-1, 64), axis=0)

    def epoch(config: RunConfig, number: int) -> torch.Tensor:
        found = torch.cat([images for images, *_ in Loader(config, "train", CPU).epoch(number)])
        if pipeline == "pillow":
            found = 255 * (found * config.data.std[0] + config.data.mean[0])
        return found.reshape(-1, 64)

    first, second = epoch(configs[0], 0), epoch(configs[0], 1)
    assert torch.equal(first, epoch(configs[1], 0))
    assert not torch.equal(first, epoch(configs[0].model_copy(update={"seed": 1}), 0))
    both = torch.cat([first, second]).round()
    assert len({image.numpy().tobytes() for image in both}) == len(both) == 4 * 1198
    # the same images in another order, so that pixels have the variance of noise more
    variance = both.var(dim=0).mean().sqrt().item() ** 2 - clean.var(axis=0).mean()
    assert np.sqrt(variance) / 85 == pytest.approx(0.3, abs=0.01)
    assert load_digits(configs[0].data, "val")[0].tobytes() == load_digits(spec(copies=2), "val")[0].tobytes()


def test_chosen_digits_have_fresh_noise_too() -> None:
    given = {"data.classes": ["3", "8"], "model.num_classes": 2, "recipe.global_batch": 60, "data.copies": 1}
    loader = Loader(resolve(ROADMAP, "gelu", profile="digits_noisy", overrides=given), "train", CPU)
    epochs = [torch.cat([images for images, *_ in loader.epoch(epoch)]) for epoch in range(2)]
    assert len({image.numpy().tobytes() for image in torch.cat(epochs)}) == 2 * len(epochs[0])


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_reach_the_network_normalized(split: Split) -> None:
    config = resolve(ROADMAP, "resnet50", profile="digits_noisy", overrides={"system.device": "cpu"})
    images = torch.cat([images for images, *_ in Loader(config, split, CPU).epoch()])
    assert images.shape[1:] == (1, 20, 20)
    assert abs(images.mean()) < 0.2
    assert 0.7 < images.std() < 1.3


def test_an_image_that_cannot_be_read_is_named_and_not_replaced(folder: Path) -> None:
    loader = Loader(config_of(folder), "val", CPU)
    broken = sorted((folder / "val").rglob("*.jpg"))[1]
    broken.write_bytes(b"not a picture")
    with pytest.raises(OSError, match=rf"{broken.name} is not an image that can be read"):
        list(loader.epoch())


def test_random_numbers_are_seeded_on_the_current_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    reseed(STEP, 1, 2)
    assert seeds == [seed_of(STEP, 1, 2)]
