"""The digest of a data set's listing: the same for every copy, another one for other samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roadmap.data.datasets import make_source
from roadmap.data.listing import listing_digest
from roadmap.recipe import RunConfig
from tests.images import Pictures, config_of, custom, jpeg, picture, shards_of, write_folder, write_shards, write_tar


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
        {f"{number:04d}.{key}": value for number in range(4) for key, value in (("jpg", jpeg(number)), ("cls", b"1"))},
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
def test_a_copy_has_the_same_digest_and_other_samples_have_another(tmp_path: Path, make: Any, change: Any) -> None:
    config = make(tmp_path / "data")
    before = make_source(config, "train").digest
    shutil.copytree(tmp_path / "data", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))  # with other times of change
    copy = config.model_copy(update={"system": config.system.model_copy(update={"data_dir": str(tmp_path / "copy")})})
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
    digits = [make_source(config_of(None, data__dataset="digits", data__copies=copies), "train").digest for copies in (1, 1, 2)]
    assert digits[0] == digits[1] != digits[2]


def test_a_dataset_that_is_handed_over_has_a_digest_of_its_length_and_labels() -> None:
    def digest(labels: list[int], classes: list[str] | None = None) -> str:
        return make_source(custom(), "val", Pictures([(picture(0), label) for label in labels], classes)).digest

    assert digest([0, 1]) == digest([1, 0]) != digest([0, 1, 1])  # its labels are unknown
    assert digest([0, 1], ["a", "b"]) != digest([1, 0], ["a", "b"])
