"""Which files make a data set, whatever its kind, and the digest of its listing."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data import create_dataset

from roadmap.config import RunConfig
from roadmap.data.datasets import make_source
from roadmap.data.digits import Split
from roadmap.data.listing import listing_digest
from roadmap.data.locate import find_shards
from roadmap.data.preflight import check_data
from roadmap.data.prepare_plan import find_classes, find_samples
from roadmap.data.staging import stage
from roadmap.errors import ConfigError
from tests.helpers.images import (
    CLASSES,
    Pictures,
    batches,
    config_of,
    custom,
    jpeg,
    numbers_of,
    picture,
    plain,
    shards_of,
    write_folder,
    write_shards,
    write_tar,
)


@pytest.mark.parametrize(
    ("parts", "digest"),
    [
        ((3, None), "faacee953698b1b5"),
        (("a", "b"), "73a8f90d1bf61b07"),
        ((np.array([b"ant/1.jpg", b"bee/10.jpg"]), np.array([0, 1])), "a9363be3991ec97c"),
        ((np.array([b"ant/1.jpgbee/10.jpg"]), np.array([0, 1])), "7ec1345bff86f615"),
    ],
)
def test_the_digest_is_the_same_in_every_process(parts: tuple[Any, ...], digest: str) -> None:
    assert listing_digest(*parts) == digest


def folder_of(root: Path) -> RunConfig:
    return config_of(write_folder(root))


def folder_of_two(root: Path) -> RunConfig:
    return config_of(write_folder(root), data__classes=["ant", "cat"], model__num_classes=2)


def tar_of(root: Path) -> RunConfig:
    return shards_of(write_shards(root))


def add_image(root: Path) -> None:
    (root / "train" / "cat" / "9.jpg").write_bytes(jpeg(9))


def remove_image(root: Path) -> None:
    (root / "train" / "ant" / "2.jpg").unlink()


def rename_image(root: Path) -> None:
    (root / "train" / "ant" / "2.jpg").rename(root / "train" / "ant" / "2a.jpg")


def swap_classes(root: Path) -> None:
    for old, new in (("ant", "x"), ("cat", "ant"), ("x", "cat")):
        (root / "train" / old).rename(root / "train" / new)
    (root / "train" / "ant" / "7.jpg").write_bytes(jpeg(7))


def relabel(root: Path) -> None:
    write_tar(
        root / "train-00.tar",
        {
            f"{number:04d}.{key}": value
            for number in range(4)
            for key, value in (("jpg", jpeg(number)), ("cls", b"1"))
        },
    )


def drop_shard(root: Path) -> None:
    write_tar(root / "train-03.tar", {"0015.jpg": jpeg(15), "0015.cls": b"0"})


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (folder_of, add_image),
        (folder_of, remove_image),
        (folder_of, rename_image),
        (folder_of, swap_classes),
        (folder_of_two, add_image),
        (tar_of, relabel),
        (tar_of, drop_shard),
    ],
)
def test_a_copy_has_the_same_digest_and_other_samples_have_another(
    tmp_path: Path, make: Any, change: Any
) -> None:
    config = make(tmp_path / "data")
    before = make_source(config, "train").digest
    # with other times of change
    shutil.copytree(tmp_path / "data", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    copy = config.model_copy(
        update={"system": config.system.model_copy(update={"data_dir": str(tmp_path / "copy")})}
    )
    assert make_source(copy, "train").digest == before
    assert make_source(config, "val").digest != before
    change(tmp_path / "copy")
    assert make_source(copy, "train").digest != before


def test_data_without_files_has_a_digest_of_its_length_and_labels() -> None:
    def synthetic(images: int, classes: int) -> str:
        options = {"data__dataset": "synthetic", "data__images": [images, 30], "model__num_classes": classes}
        return make_source(config_of(None, **options), "train").digest

    assert synthetic(60, 5) == synthetic(60, 5)
    assert len({synthetic(60, 5), synthetic(61, 5), synthetic(60, 6)}) == 3
    digits = [
        make_source(config_of(None, data__dataset="digits", data__copies=copies), "train").digest
        for copies in (1, 1, 2)
    ]
    assert digits[0] == digits[1] != digits[2]


def test_a_custom_dataset_has_a_digest_of_its_length_and_labels() -> None:
    def digest(labels: list[int], classes: list[str] | None = None) -> str:
        return make_source(
            custom(), "val", Pictures([(picture(0), label) for label in labels], classes)
        ).digest

    assert digest([0, 1]) == digest([1, 0]) != digest([0, 1, 1])  # its labels are unknown
    assert digest([0, 1], ["a", "b"]) != digest([1, 0], ["a", "b"])


# Links and hidden files: one rule for all kinds of data


def hide(root: Path) -> None:
    """Puts into a folder data set what macOS, archivers and editors leave behind."""
    for split in ("train", "val"):
        for name in (".ipynb_checkpoints", "__MACOSX", "PaxHeader"):
            (root / split / name).mkdir()
            (root / split / name / "9.jpg").write_bytes(jpeg(9))
        (root / split / "ant" / "._0.jpg").write_bytes(b"Mac OS X")
        (root / split / "ant" / ".jpg").write_bytes(jpeg(9))
    (root / ".cache").mkdir()
    (root / ".cache" / "8.jpg").write_bytes(jpeg(8))


def link_back(root: Path) -> None:
    """Two links in a class folder that lead to a folder above it, and one to itself."""
    (root / "train" / "cat" / "up").symlink_to("../..")
    (root / "train" / "cat" / "again").symlink_to("..")
    (root / "train" / "cat" / "self.jpg.d").symlink_to("self.jpg.d")


@pytest.mark.parametrize("disturb", [hide, link_back])
@pytest.mark.parametrize("dataset", ["folder", "torch/image_folder"])
@pytest.mark.parametrize("staged", [False, True])
def test_hidden_files_and_links_that_lead_back_are_skipped_by_all(
    tmp_path: Path, dataset: str, staged: bool, disturb: Any
) -> None:
    root = write_folder(tmp_path / "data")
    where = {"system__stage_dir": str(tmp_path / "disk")} if staged else {}
    disturb(root)
    config = stage(plain(root, data__dataset=dataset, recipe__global_batch=15, **where))
    check_data(config)
    splits: tuple[tuple[Split, int], ...] = (("train", 15), ("val", 9))
    for split, images in splits:
        source = make_source(config, split)
        assert source.class_names == list(CLASSES)
        assert len(source) == images
        assert sorted(numbers_of(batches(config, split), config)) == list(range(images))
    if staged:
        names = sorted(path.name for path in (tmp_path / "disk").rglob("*.jpg*") if path.is_file())
        assert names == sorted(f"{number}.jpg" for each in (5, 3) for number in range(each) for _ in CLASSES)


@pytest.mark.parametrize("dataset", ["folder", "torch/image_folder"])
def test_links_to_images_and_class_folders_are_followed(tmp_path: Path, dataset: str) -> None:
    far, root = write_folder(tmp_path / "far"), tmp_path / "data"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for name in ("ant", "bee"):
            (root / split / name).symlink_to(far / split / name)
        (root / split / "also_ant").symlink_to(far / split / "ant")  # read under both names
        (root / split / "cat").mkdir()
        for name in ("a.jpg", "b.jpg"):
            (root / split / "cat" / name).symlink_to(far / split / "cat" / "0.jpg")
    config = plain(
        root,
        data__dataset=dataset,
        model__num_classes=4,
        system__stage_dir=str(tmp_path / "disk"),
        recipe__global_batch=17,
    )
    check_data(config)
    assert sorted(numbers_of(batches(config), config)) == sorted(
        [*range(5), *range(5), *range(5, 10), 10, 10]
    )


def test_images_in_folders_below_a_class_belong_to_it_as_torchvision_has_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for name in ("b/c", "b.d"):
        (root / "train" / "ant" / name).mkdir(parents=True)
        (root / "train" / "ant" / name / "9.PNG").write_bytes(jpeg(9))
    (root / "train" / "ant" / "notes.txt").write_text("no image", encoding="utf-8")
    config = config_of(root, data__dataset="torch/image_folder")
    source, theirs = (
        make_source(config, "train"),
        create_dataset("torch/image_folder", root=str(root), split="train"),
    )
    assert source.labels is not None
    assert [
        (source.name(number), label) for number, label in enumerate(source.labels.tolist())
    ] == theirs.samples
    (root / "train" / "dog").mkdir()
    with pytest.raises(ConfigError, match=rf"^{root}/train has no images \(\.jpg, .*\) in dog$"):
        make_source(config, "train")


@pytest.mark.parametrize("disturb", [hide, link_back])
def test_what_a_run_skips_is_not_prepared(tmp_path: Path, disturb: Any) -> None:
    root = write_folder(tmp_path / "data")
    disturb(root)
    classes = find_classes(config_of(root), ["train", "val"])
    others: Counter[str] = Counter()
    assert classes == list(CLASSES)
    assert [sample.file for sample in find_samples(root / "train", classes, others)] == [
        f"{name}/{number}.jpg" for name in CLASSES for number in range(5)
    ]
    assert not others


def test_a_wildcard_stands_for_no_hidden_shard(tmp_path: Path) -> None:
    write_shards(tmp_path)
    for name in ("._train-00.tar", ".old/train-00.tar", "__MACOSX/train-00.tar"):
        write_tar(tmp_path / name, {"1.jpg": b"none", "1.cls": b"0"})
    found = find_shards(shards_of(tmp_path), "**/*train-*.tar")
    assert found == [f"train-0{number}.tar" for number in range(4)]
    assert find_shards(shards_of(tmp_path), ".old/*.tar") == [".old/train-00.tar"]
