"""Each kind of data set gives its images with the right labels;
what cannot be read is counted and left out.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, dataset_factory
from timm.data.readers.img_extensions import get_img_extensions
from torch.utils.data import IterableDataset

from roadmap.config import RunConfig
from roadmap.data import preflight as looking
from roadmap.data.datasets import Folder, make_source
from roadmap.data.listing import IMAGE_SUFFIXES
from roadmap.data.loader import Loader
from roadmap.data.preflight import TORCH, check_data
from roadmap.data.synthetic import Synthetic
from roadmap.errors import ConfigError
from roadmap.estimate import training_images
from tests.helpers.images import (
    CLASSES,
    CPU,
    Pictures,
    batches,
    config_of,
    custom,
    jpeg,
    labels_of,
    numbers_of,
    picture,
    plain,
    same,
    shards_of,
    write_folder,
    write_shards,
)

TRAIN, VAL = 15, 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


# Folders


def test_a_folder_is_read_in_the_order_of_timm(folder: Path) -> None:
    for number in (11, 100):
        (folder / "train" / "bee" / f"{number}.JPEG").write_bytes(
            (folder / "train" / "bee" / "1.jpg").read_bytes()
        )
    (folder / "train" / "bee" / "notes.txt").write_text("no image", encoding="utf-8")
    reader = create_dataset("", root=str(folder), split="train").reader
    source = Folder(config_of(folder), "train")
    assert [source.name(number) for number in range(len(source))] == [
        reader.filename(number, absolute=True) for number in range(len(reader))
    ]
    assert source.labels.tolist() == [label for _, label in reader.samples]
    assert set(IMAGE_SUFFIXES) > set(get_img_extensions())


def test_a_folder_may_have_images_of_other_formats(folder: Path, tmp_path: Path) -> None:
    for number, suffix in enumerate(("webp", "bmp", "tif")):
        picture(20 + number).save(folder / "train" / "bee" / f"x{number}.{suffix}")
    picture(30).save(folder / "val" / "cat" / "y.TIFF")
    (folder / "val" / "cat" / "z.heic").write_bytes(b"of no format that is read")
    config = plain(folder, recipe__global_batch=TRAIN + 3)
    assert training_images(config) == TRAIN + 3
    check_data(config)
    assert sorted(numbers_of(batches(config), config)) == [*range(TRAIN), 20, 21, 22]
    assert numbers_of(batches(config, "val"), config) == [*range(VAL), 30]
    staged = plain(folder, recipe__global_batch=TRAIN + 3, system__stage_dir=str(tmp_path / "disk"))
    assert same(batches(staged), batches(config))


def test_a_folder_may_be_cut_down_to_some_classes(folder: Path) -> None:
    config = plain(folder, data__classes=["cat", "ant"], model__num_classes=2)
    check_data(config)
    found = batches(config, "val")
    assert numbers_of(found, config) == [0, 1, 2, 6, 7, 8]
    assert labels_of(found) == [0, 0, 0, 1, 1, 1]


def test_splits_have_the_names_that_the_configuration_gives(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    config = plain(folder, data__val_split="test")
    check_data(config)
    assert len(labels_of(batches(config, "val"))) == VAL


def test_one_class_alone_is_refused_in_one_clear_sentence(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'data\.classes.* list should have at least 2 items, not \["ant"\]$'
    ):
        config_of(folder, data__classes=["ant"])


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["ant", "bea"], "has no class 'bea'; did you mean 'bee'?"),
        (["ant", "elephant"], "has no class 'elephant'"),
        (["ant", "ant"], "data.classes repeats itself"),
    ],
)
def test_classes_that_are_not_there_are_refused(folder: Path, classes: list[str], said: str) -> None:
    config = config_of(folder, data__classes=classes, model__num_classes=2)
    for look in (check_data, lambda config: Loader(config, "train", CPU)):
        with pytest.raises(ConfigError) as refused:
            look(config)
        assert said in str(refused.value)


def test_a_model_for_another_number_of_classes_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 2 classes, the model 3; --set model\.num_classes=2"):
        check_data(config_of(folder, data__classes=["cat", "ant"]))


def test_the_check_reads_only_folders_of_selected_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, scandir = [], os.scandir

    def record(path: Path) -> Any:
        seen.append(path.name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", record)
    check_data(config_of(folder, data__classes=["cat", "ant"], model__num_classes=2))
    assert Counter(seen) == {"train": 1, "val": 1, "ant": 2, "cat": 2}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_images_is_named(folder: Path, split: str) -> None:
    for file in (folder / split / "bee").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(ConfigError, match=rf"has no images \(\.png, .*\.tiff\) in {split}/bee$"):
        check_data(config_of(folder))


def test_a_folder_with_fewer_images_than_a_batch_is_refused(folder: Path) -> None:
    (folder / "train" / "ant" / "more").mkdir()
    (folder / "train" / "ant" / "more" / "9.jpg").write_bytes(b"timm does not look here")
    (folder / "train" / "ant" / "none.jpg").mkdir()
    (folder / "train" / "ant" / ".jpg").write_bytes(b"no image for timm")
    with pytest.raises(ConfigError, match=f"^{folder} has 15 training images, less than a batch of 16$"):
        check_data(config_of(folder, recipe__global_batch=16))
    with pytest.raises(ConfigError, match="has 10 training images, less than a batch of 12"):
        check_data(
            config_of(folder, recipe__global_batch=12, data__classes=["cat", "ant"], model__num_classes=2)
        )
    check_data(config_of(folder, recipe__global_batch=15))


@pytest.mark.parametrize(
    ("stage_dir", "said"),
    [
        ("$NO_SUCH_DISK/here", "names an environment variable that is not set"),
        ("{folder}/stage", "would be copied into itself"),
        ("/proc/x", r"^system\.stage_dir /proc/x cannot be made: "),
    ],
)
def test_a_stage_folder_that_cannot_be_is_refused_where_the_run_is_trained(
    folder: Path, stage_dir: str, said: str
) -> None:
    config = config_of(folder, system__stage_dir=stage_dir.format(folder=folder))
    with pytest.raises(ConfigError, match=said):
        check_data(config)
    check_data(config, here=False)
    assert not (folder / "stage").exists()


# How many images there are


def test_the_plan_counts_the_images_of_a_folder_that_are_trained_on(folder: Path) -> None:
    (folder / "train" / "ant" / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / ".hidden" / "9.jpg").write_bytes(b"no class")
    for config in (config_of(folder), config_of(folder, data__classes=["cat", "ant"], model__num_classes=2)):
        assert training_images(config) == len(make_source(config, "train")) > 0
    (folder / "train").rename(folder / "learn")
    assert training_images(config_of(folder)) is None
    assert training_images(config_of(folder, data__train_split="learn")) == TRAIN
    assert (
        training_images(
            config_of(folder, data__train_split="learn", data__classes=["ant", "eel"], model__num_classes=2)
        )
        is None
    )


def test_the_plan_counts_the_images_of_shards_that_have_an_index(tmp_path: Path) -> None:
    config, chosen = (
        shards_of(write_shards(tmp_path), **more)
        for more in ({}, {"data__classes": ["0", "2"], "model__num_classes": 2})
    )
    assert training_images(config) is None
    assert not [*tmp_path.glob(".index*")]
    assert len(make_source(config, "train")) == training_images(config) == 16
    assert training_images(chosen) == len(make_source(chosen, "train")) == 11
    (tmp_path / "train-00.tar").write_bytes(b"")
    assert training_images(config) is None
    assert training_images(shards_of("http://localhost/far")) is None


def test_the_plan_knows_what_torchvision_publishes_and_counts_no_images_of_other_data(folder: Path) -> None:
    cifar: dict[str, Any] = {"data__dataset": "torch/cifar10"}
    assert training_images(config_of(folder, **cifar)) == 50_000
    some = config_of(folder, **cifar, data__classes=["cat", "dog"], model__num_classes=2)
    assert training_images(some) is None
    for name in ("torch/places365", "hfds/cifar10", "wds/pictures"):
        assert training_images(config_of(folder, data__dataset=name)) is None
    assert training_images(config_of(None)) is None
    assert training_images(synthetic(data__images=[600, 30])) == 600


# Made-up images


def synthetic(**overrides: Any) -> RunConfig:
    given = {
        "data__dataset": "synthetic",
        "data__images": [60, 30],
        "data__noise": 0.3,
        "model__num_classes": 5,
    }
    return plain(None, **given | overrides)


def pixels(source: Synthetic, number: int) -> np.ndarray[Any, Any]:
    return np.asarray(source[number][0], dtype=float)


def test_a_synthetic_image_depends_only_on_split_and_number() -> None:
    train, again, val = (Synthetic(synthetic(), split) for split in ("train", "train", "val"))
    longer = Synthetic(synthetic(data__images=[600, 30]), "train")
    for number in (0, 7, 59):
        assert np.array_equal(pixels(train, number), pixels(again, number))
        assert np.array_equal(pixels(train, number), pixels(longer, number))
    assert not np.array_equal(pixels(train, 0), pixels(val, 0))
    assert (
        len({pixels(source, number).tobytes() for source in (train, val) for number in range(len(source))})
        == 90
    )


def test_a_synthetic_image_is_its_class_under_noise() -> None:
    noisy, clean = (Synthetic(synthetic(data__noise=noise), "val") for noise in (0.3, 0.0))
    assert {number: label for number in range(5) for label in [clean[number][1]]} == {
        0: 0,
        1: 1,
        2: 2,
        3: 3,
        4: 4,
    }
    assert np.array_equal(pixels(clean, 1), pixels(clean, 6))
    noise = np.stack([pixels(noisy, number) - pixels(clean, number) for number in range(30)]) / 85
    assert noise.std() == pytest.approx(0.3, abs=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    nearest = [
        min(range(5), key=lambda label: np.abs(pixels(noisy, number) - pixels(clean, label)).sum())
        for number in range(30)
    ]
    assert nearest == [noisy[number][1] for number in range(30)]


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_images_reach_the_network(channels: int) -> None:
    gray = {"model__in_chans": 1, "data__mean": [0.5], "data__std": [0.25]} if channels == 1 else {}
    config = synthetic(**gray)
    check_data(config)
    found = batches(config, "val")
    assert sum(len(labels) for _, labels, *_ in found) == 30
    assert found[0][0].shape == (4, channels, 32, 32)
    assert len(batches(config)) == 15


def test_too_few_synthetic_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 3 training images, less than a batch of 4"):
        check_data(synthetic(data__images=[3, 1]))


# Other people's data sets


def write_mnist(root: Path) -> None:
    """MNIST's files with images of one gray: 6 to train on, of classes 0, 1, 2, 0, 1, 2, and 3 to test."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 6), ("t10k", 3)):
        grays = np.repeat(np.arange(count, dtype=np.uint8) * 40, 28 * 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + grays.tobytes()
        )
        labels = (np.arange(count) % 3).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def test_a_dataset_of_torchvision_is_read(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    config = plain(tmp_path, data__dataset="torch/mnist", model__num_classes=10)
    check_data(config)
    train, val = (make_source(config, split) for split in ("train", "val"))
    for number in range(6):
        image, label = train[number]
        assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (40 * number,) * 3, number % 3)
    assert (len(train), len(val), train.num_classes) == (6, 3, 10)
    assert labels_of(batches(config, "val")) == [0, 1, 2]


def test_a_dataset_of_torchvision_may_be_cut_down_to_some_classes(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    config = plain(
        tmp_path, data__dataset="torch/mnist", data__classes=["2 - two", "0 - zero"], model__num_classes=2
    )
    assert labels_of(batches(config, "val")) == [0, 1]
    source = make_source(config, "train")
    assert [(source[number][0].getpixel((0, 0)), source[number][1]) for number in range(len(source))] == [
        ((gray, gray, gray), label) for gray, label in ((0, 0), (80, 1), (120, 0), (200, 1))
    ]
    with pytest.raises(ConfigError, match="has no class '2 - tow'; did you mean '2 - two'"):
        make_source(
            plain(
                tmp_path,
                data__dataset="torch/mnist",
                data__classes=["2 - tow", "0 - zero"],
                model__num_classes=2,
            ),
            "val",
        )


def test_a_missing_torchvision_dataset_is_reported_with_how_to_download_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"split 'train' is unavailable: Dataset not found.*--set system\.download=true may fetch it",
    ):
        make_source(config_of(tmp_path, data__dataset="torch/cifar10"), "train")
    with pytest.raises(ConfigError, match="is 'trian'; torchvision calls it train"):
        make_source(config_of(tmp_path, data__dataset="torch/cifar10", data__train_split="trian"), "train")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar11", "; did you mean 'cifar10'?"),
        ("zzz", f": {', '.join(TORCH)}"),
        ("fashionmnist", "; did you mean 'fashion_mnist'?"),
    ],
)
def test_a_dataset_that_torchvision_does_not_have_is_refused(tmp_path: Path, name: str, said: str) -> None:
    config = config_of(tmp_path, data__dataset=f"torch/{name}")
    for look in (check_data, lambda config: make_source(config, "train")):
        with pytest.raises(ConfigError) as refused:
            look(config)
        assert str(refused.value) == f"dataset 'torch/{name}' is none of torchvision's that timm knows{said}"


def test_the_datasets_of_torchvision_are_those_of_timm() -> None:
    tested = re.findall(r"name == '(\w+)'", inspect.getsource(dataset_factory.create_dataset))
    assert sorted(TORCH) == sorted([*tested, *dataset_factory._TORCH_BASIC_DS])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # before the first import of the package
    pytest.importorskip("datasets")


def hfds(folder: Path, **overrides: Any) -> RunConfig:
    given = {
        "data__dataset": f"hfds/{folder}",
        "data__val_split": "validation",
        "system__data_dir": str(folder.parent / "cache"),
    }
    return plain(None, **given | overrides)


@pytest.mark.usefixtures("offline")
def test_a_dataset_of_hugging_face_is_read(folder: Path) -> None:
    (folder / "val").rename(folder / "validation")
    config = hfds(folder)
    check_data(config)
    assert make_source(config, "train").class_names == list(CLASSES)
    found = batches(config, "val")
    assert numbers_of(found, config) == list(range(VAL))
    assert labels_of(found) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    chosen = hfds(folder, data__classes=["bee", "cat"], model__num_classes=2)
    assert labels_of(batches(chosen, "val")) == [0, 0, 0, 1, 1, 1]


@pytest.mark.usefixtures("offline")
def test_a_dataset_of_hugging_face_has_the_digest_of_its_labels(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = make_source(hfds(folder), "train").digest
    assert make_source(hfds(copy), "train").digest == before
    (copy / "train" / "bee" / "9.jpg").write_bytes(jpeg(9))
    assert make_source(hfds(copy), "train").digest != before


@pytest.mark.usefixtures("offline")
def test_an_unavailable_hugging_face_dataset_is_reported_with_the_reason(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"split 'vla' is unavailable: Unknown split"):
        make_source(hfds(folder, data__val_split="vla"), "val")
    with pytest.raises(ConfigError, match="has no 'picture', but image, label"):
        make_source(hfds(folder, data__image_key="picture"), "train")


@pytest.mark.parametrize("kind", ["hfds", "hfids", "wds", "tfds"])
def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(looking.PACKAGES, kind, ("no_such_module", "no-such-package"))
    config = config_of(tmp_path, data__dataset=f"{kind}/something")
    for look in (check_data, lambda config: Loader(config, "train", CPU)):
        with pytest.raises(
            ConfigError,
            match=rf"^dataset '{kind}/something' is read by a package that is not there: pip install no-such",
        ):
            look(config)


# Data sets handed over


def test_items_of_a_custom_dataset_may_be_images_arrays_or_tensors() -> None:
    array = np.asarray(picture(3))
    items = [
        (picture(1), 1),
        (array, np.int64(0)),
        (torch.from_numpy(np.asarray(picture(5)).copy()).permute(2, 0, 1), torch.tensor(2)),
        (np.full((32, 32), 20 + 5 * 7, dtype=np.uint8), 1),
        (np.full((32, 32, 1), 20 + 5 * 9, dtype=np.uint8), 0),
        (Image.new("P", (32, 32)), 2),
    ]
    found = batches(custom(), "val", source=Pictures(items))
    assert numbers_of(found, custom())[:5] == [1, 3, 5, 7, 9]
    assert labels_of(found) == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), "a.jpg"])
def test_items_of_another_form_are_refused(image: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^item 0 of dataset 'custom/pictures' .*(uint8|must be a PIL image)"
    ):
        batches(custom(), "val", source=Pictures([(image, 0)]))


def test_a_custom_dataset_may_be_restricted_to_some_classes() -> None:
    pictures = Pictures([(picture(number), number % 3) for number in range(9)], classes=list(CLASSES))
    config = custom(data__classes=["bee", "cat"], model__num_classes=2)
    found = batches(config, "val", source=pictures)
    assert numbers_of(found, config) == [1, 2, 4, 5, 7, 8]
    assert labels_of(found) == [0, 1] * 3
    with pytest.raises(ConfigError, match=r"data\.classes needs to know the labels"):
        Loader(config, "val", CPU, source=Pictures([(picture(0), 0)]))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("samples", np.zeros((8, 2))),
        ("samples", {"a": 1}),
        ("samples", [{"image": "a.jpg"}] * 8),
        ("samples", [("a.jpg", 0)]),
        ("imgs", torch.zeros(8, 3)),
        ("imgs", lambda: None),
        ("classes", 2),
        ("classes", np.array(["a", "b"])),
        ("classes", [("a", "b"), ("c",)]),
        ("wnids", torch.zeros(8)),
        ("targets", ["ant"] * 8),
        ("targets", [0.5] * 8),
        ("targets", [0, 1]),
        ("targets", [[0], [1, 2]]),
        ("targets", {"ant": 0}),
    ],
)
def test_what_a_dataset_calls_as_torchvision_does_may_be_something_else(attribute: str, value: Any) -> None:
    pictures = Pictures([(picture(number), number % 3) for number in range(7)] + [(OSError("torn"), 0)])
    setattr(pictures, attribute, value)
    config = custom(system__corrupt_images=1)
    assert labels_of(batches(config, "val", source=pictures)) == [0, 1, 2, 0, 1, 2, 0, -1]
    source = make_source(config, "val", pictures)
    assert (source.num_classes, source.class_names, source.labels) == (None, None, None)
    assert source.name(7) == "item 7 of dataset 'custom/pictures'"


def test_a_dataset_of_the_form_of_torchvision_is_known(tmp_path: Path) -> None:
    source = make_source(
        custom(),
        "train",
        create_dataset("torch/image_folder", root=str(write_folder(tmp_path / "data")), split="train"),
    )
    assert source.labels is not None
    assert (source.num_classes, source.class_names, source.labels.tolist()) == (
        3,
        list(CLASSES),
        [0] * 5 + [1] * 5 + [2] * 5,
    )
    assert source.name(6) == f"{tmp_path}/data/train/bee/1.jpg"


@pytest.mark.parametrize("targets", [np.arange(4) % 3, torch.arange(4) % 3, (0, 1, 2, 0)])
def test_targets_may_be_any_integers(targets: Any) -> None:
    pictures = Pictures([(picture(number), number % 3) for number in range(4)])
    pictures.targets = targets
    source = make_source(custom(), "val", pictures)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0]


def test_an_image_has_its_name_worked_out_only_where_it_is_needed() -> None:
    class Slow(Pictures):
        @property
        def samples(self) -> Any:
            raise RuntimeError("a name was worked out")

    assert labels_of(batches(custom(), "val", source=Slow([(picture(1), 1)]))) == [1]


def test_a_custom_dataset_that_is_not_passed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is passed to roadmap\.train\.train by a program of yours"):
        check_data(custom())
    with pytest.raises(ConfigError, match="pass the Dataset of train to"):
        Loader(custom(), "train", CPU)

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(ConfigError, match="is a Endless, which has no length"):
        Loader(custom(), "train", CPU, source=Endless())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("label", [3, 7, -1, -2])
def test_a_label_that_the_model_has_no_class_for_is_one_clear_error(label: int, workers: int) -> None:
    pictures = Pictures([(picture(number), label if number == 6 else 0) for number in range(8)])
    for split in ("train", "val"):
        loader = Loader(custom(system__workers=workers), split, CPU, source=pictures)
        with pytest.raises(
            ConfigError, match=f"^dataset 'custom/pictures' has label {label} in {split}, but the 3 classes"
        ):
            list(loader.epoch())


def test_batches_of_synthetic_images_are_the_same_with_workers() -> None:
    augmented = {"recipe__crop_scale": [0.5, 1.0], "recipe__hflip": 0.5}
    assert same(batches(synthetic(**augmented)), batches(synthetic(**augmented, system__workers=2)))
