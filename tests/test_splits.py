"""Data that is not where the configuration says:
the error names what is there, and the option that takes it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roadmap.data.datasets import make_source
from roadmap.data.preflight import check_data
from roadmap.data.prepare_plan import find_classes
from roadmap.errors import ConfigError
from tests.helpers.images import config_of, plain, shards_of, write_folder, write_shards


def refusal(look: Callable[..., object], *given: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        look(*given)
    return str(refused.value)


def options(message: str) -> dict[str, str]:
    """The values that the options in a message set, by their names with underscores."""
    words = shlex.split(message.replace(";", " "))
    pairs = [words[place + 1].partition("=") for place, word in enumerate(words) if word == "--set"]
    return {key.replace(".", "__"): value for key, _, value in pairs}


@pytest.mark.parametrize(
    ("dataset", "renamed", "said"),
    [
        ("folder", {"val": "valid"}, "has no folder val, but train, valid; --set data.val_split=valid"),
        ("folder", {"val": "test"}, "has no folder val, but test, train; --set data.val_split=test"),
        ("folder", {"val": "vals"}, "has no folder val, but train, vals; did you mean 'vals'?"),
        (
            "folder",
            {"train": "training"},
            "has no folder train, but training, val; --set data.train_split=training",
        ),
        ("torch/image_folder", {"val": "dev"}, "has no folder val, but dev, train; --set data.val_split=dev"),
        (
            "folder",
            {"val": "a", "train": "b"},
            "has no folder train, but a, b\n{root} has no folder val, but a, b",
        ),
    ],
)
def test_a_split_of_another_name_is_named_with_its_option(
    tmp_path: Path, dataset: str, renamed: dict[str, str], said: str
) -> None:
    root = write_folder(tmp_path / "data")
    for old, new in renamed.items():
        (root / old).rename(root / new)
    message = refusal(check_data, plain(root, data__dataset=dataset))
    assert message == f"{root} {said.format(root=root)}"
    assert refusal(make_source, plain(root, data__dataset=dataset), "val") == message
    if "--set" in message:
        check_data(plain(root, data__dataset=dataset, **options(message)))


def test_an_evaluation_by_torchvision_needs_no_training_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    shutil.rmtree(root / "train")
    assert len(make_source(plain(root, data__dataset="torch/image_folder"), "val")) == 9


def test_timm_takes_one_name_for_another(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "val").rename(root / "validation")
    config = plain(root, data__dataset="torch/image_folder")
    check_data(config)
    assert len(make_source(config, "val")) == 9


@pytest.mark.parametrize("dataset", ["folder", "torch/image_folder"])
def test_a_folder_one_level_off_is_named_with_its_option(tmp_path: Path, dataset: str) -> None:
    write_folder(tmp_path / "images")
    (tmp_path / "other").mkdir()
    for root in (tmp_path, tmp_path / "images/train"):
        message = refusal(check_data, config_of(root, data__dataset=dataset))
        assert (
            message == f"{root} has no folder train or val, but {tmp_path}/images has; --set"
            f" system.data_dir={tmp_path}/images"
        )


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "file").touch()
    for dataset in ("folder", "shards", "torch/cifar10", "torch/image_folder", "wds/pictures"):
        message = refusal(check_data, config_of(tmp_path / "imagnet", data__dataset=dataset))
        hint = "system.data_dir is the folder that holds the data"
        assert message == f"{tmp_path}/imagnet does not exist; {hint}; did you mean 'imagenet'?"
        assert (
            refusal(check_data, config_of(tmp_path / "file", data__dataset=dataset))
            == f"{tmp_path}/file is a file; {hint}"
        )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{split}-{number}.tar", "; --set 'data.val_split={split}-{{0..1}}.tar' names those that are there"),
        (
            "pics_{split}_{number}.tar",
            "; --set 'data.val_split=pics_{split}_{{0..1}}.tar' names those that are there",
        ),
        ("{split}/{number}.tar", "; --set 'data.val_split={split}/{{0..1}}.tar' names those that are there"),
        ("x{number}.tar", ", but train-00.tar, train-01.tar, x0.tar, x1.tar"),
    ],
)
@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_shards_of_another_name_are_named_with_their_option(
    tmp_path: Path, name: str, said: str, split: str
) -> None:
    root = write_shards(tmp_path / "data", train=2)
    for number in range(2):
        path = root / name.format(split=split, number=number)
        path.parent.mkdir(exist_ok=True)
        (root / f"val-0{number}.tar").rename(path)
    config = {"data__train_split": "train-*.tar", "data__val_split": "valley-{0..3}.tar"}
    message = refusal(check_data, shards_of(root, **config))
    assert message.partition("names as shards")[2] == said.format(split=split)
    if "--set" in message:
        check_data(shards_of(root, **config | options(message)))


def test_a_split_of_hugging_face_of_another_name_is_named_with_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    root = write_folder(tmp_path / "data")
    config = plain(tmp_path / "cache", data__dataset=f"hfds/{root}", data__val_split="valid")
    message = refusal(make_source, config, "val")
    assert message.endswith("; --set data.val_split=validation")
    assert (
        len(make_source(plain(tmp_path / "cache", data__dataset=f"hfds/{root}", **options(message)), "val"))
        == 9
    )


def test_prepare_names_its_own_options(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "val").rename(root / "dev")
    assert (
        refusal(find_classes, config_of(root), ["train", "val"])
        == f"{root} has no folder val, but dev, train; --splits train dev"
    )
    assert find_classes(config_of(root), ["train", "dev"]) == ["ant", "bee", "cat"]
    said = f"has no folder train or dev, but {root} has; name {root} instead"
    assert refusal(find_classes, config_of(tmp_path), ["train", "dev"]) == f"{tmp_path} {said}"
    assert "none does not exist; SOURCE is the folder" in refusal(
        find_classes, config_of(tmp_path / "none"), ["train", "dev"]
    )
