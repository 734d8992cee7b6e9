"""Tar shards: read in any order, by any number of processes, each image once; what is torn or changed is
named.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roadmap.config import RunConfig
from roadmap.data import shards
from roadmap.data.images import make_decoder
from roadmap.data.loader import Loader
from roadmap.data.locate import expand
from roadmap.data.preflight import check_data
from roadmap.data.shards import Changed, Shards, known_index, load_index
from roadmap.errors import ConfigError
from tests.helpers.images import (
    CPU,
    PLAIN,
    batches,
    config_of,
    jpeg,
    labels_of,
    numbers_of,
    plan_of,
    same,
    sample,
    shards_of,
    write_folder,
    write_shards,
    write_tar,
)

IMAGES, VAL_IMAGES = 16, 8


def plain(root: Path, **overrides: Any) -> RunConfig:
    return shards_of(root, **{name.replace(".", "__"): value for name, value in PLAIN.items()} | overrides)


def open_shards(config: RunConfig, pattern: str = "train-{00..03}.tar") -> Shards:
    return Shards(config, pattern, make_decoder(config, "train"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ],
)
def test_braces_stand_for_ranges_and_choices(pattern: str, names: list[str]) -> None:
    assert list(expand(pattern)) == names


def test_a_range_of_too_many_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1000000 shards"):
        list(expand("{0..99999999}.tar"))


def test_shards_give_their_images_in_any_order(tmp_path: Path) -> None:
    source = open_shards(plain(write_shards(tmp_path)))
    assert len(source) == IMAGES
    for number in (15, 0, 7, 8, 0):
        image, label = source[number]
        assert label == number % 3
        assert np.abs(np.asarray(image)[:, :, 0].mean() - (20 + 5 * number)) < 2


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_image_of_the_shards_once_over_all_processes(
    tmp_path: Path, workers: int
) -> None:
    config = plain(
        write_shards(tmp_path), system__workers=workers, system__eval_batch=2, recipe__global_batch=3
    )
    found = [batches(config, "val", rank=rank, plan=plan_of(config, 3)) for rank in range(3)]
    assert [numbers_of(part, config) for part in found] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [labels_of(part) for part in found] == [[0, 0, 0], [1, 1, 1], [2, 2]]


def test_a_shuffled_epoch_goes_across_all_shards(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path))
    numbers = numbers_of(batches(config), config)
    assert sorted(numbers) == list(range(IMAGES))
    assert any(
        len({number // 4 for number in numbers[start : start + 4]}) > 1 for start in range(0, IMAGES, 4)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_shards_resumes_from_any_iteration(tmp_path: Path, workers: int) -> None:
    config = shards_of(write_shards(tmp_path), system__workers=workers)
    whole = batches(shards_of(tmp_path), epoch=1)
    for first in range(len(whole) + 1):
        assert same(batches(config, epoch=1, first=first), whole[first:])


def test_the_index_is_cached_and_the_shards_are_not_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain(write_shards(tmp_path))
    first = open_shards(config).index
    monkeypatch.setattr(shards, "_scan", None)
    again = open_shards(config).index
    assert first.shards == again.shards
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in shards.COLUMNS)


def test_other_members_make_another_index(tmp_path: Path) -> None:
    members = {"1.jpg": jpeg(1), "1.png": jpeg(2), "1.cls": b"0", "1.other": b"2"}
    write_tar(tmp_path / "a.tar", members)
    usual, other = (
        config_of(tmp_path, data__image_key=image, data__label_key=label)
        for image, label in ((None, None), ("png", "other"))
    )
    found = [load_index(tmp_path, ["a.tar"], config.data) for config in (usual, other)]
    assert [(index.name.tolist(), index.label.tolist()) for index in found] == [
        ([b"1.jpg"], [0]),
        ([b"1.png"], [2]),
    ]


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path))
    open_shards(config)
    (index,) = tmp_path.glob(".index-*.npz")
    index.write_bytes(index.read_bytes()[:100])
    assert len(open_shards(config)) == IMAGES
    assert len(index.read_bytes()) > 100


def test_an_index_that_cannot_be_cached_is_made_each_time(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path))
    open_shards(config)
    for file in [*tmp_path.glob(".index-*")]:
        file.unlink()
        file.mkdir()  # stands for a folder where nothing can be written, which root can everywhere
    assert len(open_shards(config)) == IMAGES
    assert all(file.is_dir() for file in tmp_path.glob(".index-*"))


def test_a_shard_that_was_replaced_is_scanned_again(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path))
    before = open_shards(config)
    write_tar(tmp_path / "train-02.tar", sample(30))
    with pytest.raises(Changed, match=r"train-02\.tar has changed since it was indexed"):
        before[8]
    assert before[0][1] == 0
    assert len(open_shards(config)) == IMAGES - 3


@pytest.mark.parametrize("cut", ["in an image", "before the last label", "in the end"])
def test_a_truncated_shard_is_named(tmp_path: Path, cut: str) -> None:
    config = plain(write_shards(tmp_path))
    torn = tmp_path / "train-01.tar"
    whole = torn.read_bytes()
    last_label = whole.rindex(b"0007.cls")
    torn.write_bytes(
        whole[
            : {"in an image": 700, "before the last label": last_label, "in the end": last_label + 1024}[cut]
        ]
    )
    with pytest.raises(ConfigError, match=r"train-01\.tar is not an intact shard"):
        open_shards(config)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.jpg": b"x"}, "sample 'a' in {shard} has no label: no member cls or json, but jpg"),
        (
            {"a.cls": b"1"},
            (
                "sample 'a' in {shard} has no image: no member jpg or jpeg or png or webp or bmp or tif or"
                " tiff, but cls"
            ),
        ),
        (
            {"x/a.jpg": b"x", "x/a.cls": b"ant"},
            "x/a.cls in {shard} has the label 'ant'; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.cls": b"1.7"},
            "a.cls in {shard} has the label '1.7'; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.cls": b"\xff"},
            "a.cls in {shard} has the label '\\\\xff'; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.cls": b"9" * 20},
            "a.cls in {shard} has the label 99999999999999999999; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.json": b'{"label": 1.7}'},
            "a.json in {shard} has the label 1.7; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.json": b'{"label": true}'},
            "a.json in {shard} has the label True; a label must be one whole number",
        ),
        (
            {"a.jpg": b"x", "a.json": b'{"class": 1}'},
            "a.json in {shard} has no field 'label', which is to be the label; set data.label_key",
        ),
        (
            {"a.jpg": b"x", "a.json": b"[1]"},
            "a.json in {shard} has no field 'label', which is to be the label; set data.label_key",
        ),
        ({"a.jpg": b"x", "a.json": b'{"label": '}, "a.json in {shard} is no JSON"),
    ],
)
def test_a_sample_that_lacks_something_is_named(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    shard = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ConfigError) as refused:
        load_index(tmp_path, ["a.tar"], config_of(tmp_path).data)
    assert str(refused.value).startswith(said.format(shard=shard))


def write_members(path: Path, *members: tuple[str, bytes]) -> Path:
    """A tar file whose members may share names."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def labels_in(root: Path, *members: tuple[str, bytes]) -> list[tuple[str, int]]:
    """The images and labels of a shard of these members, by the names of the members."""
    write_members(root / "a.tar", *members)
    index = load_index(root, ["a.tar"], config_of(root).data)
    return [(os.fsdecode(name), int(label)) for name, label in zip(index.name, index.label, strict=True)]


def test_samples_that_share_a_name_are_samples_of_their_own(tmp_path: Path) -> None:
    pictures = [("a.jpg", 0), ("b.jpg", 1), ("a.png", 2), ("b.jpg", 0)]
    members = [
        (name, content)
        for number, (image, label) in enumerate(pictures)
        for name, content in ((image, jpeg(number)), (f"{image[0]}.cls", str(label).encode()))
    ]
    assert labels_in(tmp_path, *members) == pictures
    config = plain(tmp_path, data__train_split="a.tar", data__val_split="a.tar")
    assert numbers_of(batches(config, "val"), config) == [0, 1, 2, 3]
    source = open_shards(config, "a.tar")
    assert len({source.name(number) for number in range(4)}) == 4
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert source.name(3) == f"b.jpg at byte {tar.getmembers()[6].offset_data} of {tmp_path}/a.tar"


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    members = [
        ("./a.jpg", jpeg(0)), ("a.jpg", jpeg(1)), ("notes", b""), ("a.cls", b"1"), ("./a.cls", b"0"),
        ("x.y/a.JPG", jpeg(2)), ("x.y/a.b.cls", b"7"), ("x.y/a.Cls", b"2"),
        ("a.png", jpeg(3)), ("a.cls", b"1"), ("a.seg.png", jpeg(0)),
    ]  # fmt: skip
    members[:5] = [members[0], members[4], members[1], members[2], members[3]]
    write_members(tmp_path / "b.tar", *members)
    theirs = [
        (sample.get("jpg", sample.get("png")), int(sample["cls"]))
        for sample in webdataset.WebDataset(str(tmp_path / "b.tar"), shardshuffle=False)
    ]
    index = load_index(tmp_path, ["b.tar"], config_of(tmp_path).data)
    content = (tmp_path / "b.tar").read_bytes()
    places = zip(index.offset, index.size, index.label, strict=True)
    assert [(content[offset : offset + size], label) for offset, size, label in places] == theirs
    assert len(theirs) == 4


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            ["a.jpg", "a.cls", "a.jpg", "a.cls"],
            "has two members jpg; adjacent samples need different names",
        ),
        (["a.jpg", "a.cls", "a.CLS"], "has two members cls; adjacent samples need different names"),
        (
            ["a.jpg", "b.jpg", "a.cls", "b.cls"],
            "has no label: no member cls or json, but jpg; others of that name lie elsewhere in the file",
        ),
    ],
)
def test_members_that_make_no_samples_are_named(tmp_path: Path, members: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        labels_in(tmp_path, *((name, b"1") for name in members))
    assert str(refused.value).startswith(f"sample 'a' in {tmp_path}/a.tar {said}")


def test_what_archivers_leave_in_a_shard_is_skipped(tmp_path: Path) -> None:
    members = [
        "./._a.jpg",
        "./a.jpg",
        "__MACOSX/a.jpg",
        "PaxHeader/a.jpg",
        "./PaxHeaders.12/a.jpg",
        ".git/a.jpg",
        "./._a.cls",
        "./a.cls",
    ]
    assert labels_in(tmp_path, *((name, b"1" if name.endswith("cls") else jpeg(1)) for name in members)) == [
        ("./a.jpg", 1)
    ]


def test_an_index_of_another_way_to_scan_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = plain(write_shards(tmp_path))
    monkeypatch.setattr(shards, "SCAN", 1)
    open_shards(config)
    monkeypatch.setattr(shards, "_scan", None)
    open_shards(config)
    monkeypatch.undo()
    assert known_index(tmp_path, [f"train-0{number}.tar" for number in range(4)], config.data) is None


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    folder = "caf\udce9"  # as Python has a byte that is no UTF-8
    assert labels_in(tmp_path, (f"{folder}/a.jpg", jpeg(5)), (f"{folder}/a.cls", b"0")) == [
        (f"{folder}/a.jpg", 0)
    ]
    config = plain(tmp_path, data__train_split="a.tar", data__val_split="a.tar")
    source = open_shards(config, "a.tar")
    assert source.class_names == ["caf\\xe9"]
    assert source.name(0).startswith("caf\\xe9/a.jpg at byte ")
    assert numbers_of(batches(config, "val"), config) == [5]


def test_labels_may_be_in_json(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"x/a.jpg": jpeg(1), "x/a.json": json.dumps({"label": 1, "fine": 2}).encode()}
    )
    found = [
        load_index(tmp_path, ["a.tar"], config_of(tmp_path, data__label_key=key).data)
        for key in (None, "fine")
    ]
    assert [index.label.tolist() for index in found] == [[1], [2]]


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_shards(plain(write_shards(tmp_path)))
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in [*range(IMAGES), *range(0, IMAGES, 5)]:
        assert source[number][1] == number % 3
    assert len(os.listdir("/proc/self/fd")) == before + 2  # noqa: PTH208
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_forked_process_does_not_share_open_files(tmp_path: Path) -> None:
    source = open_shards(plain(write_shards(tmp_path)))
    assert source[0][1] == 0
    (mine,) = source._open.values()
    process = os.fork()
    if process == 0:
        right = source[1][1] == 1 and source._process == os.getpid()
        os._exit(0 if right else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert list(source._open.values()) == [mine]
    assert source[2][1] == 2


def test_missing_shards_are_named(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path), data__train_split="train-{02..05}.tar")
    for look in (lambda: check_data(config), lambda: Loader(config, "train", CPU)):
        with pytest.raises(
            ConfigError,
            match=r"has no train-04\.tar, train-05\.tar, which data\.train_split names as shards$",
        ):
            look()
    with pytest.raises(ConfigError, match=r"has no nothing-\*\.tar"):
        check_data(plain(tmp_path, data__val_split="nothing-*.tar"))


def test_a_key_that_names_no_shard_is_named_with_what_it_might_be(tmp_path: Path) -> None:
    named = plain(write_shards(tmp_path / "shards"), data__train_split="train", data__val_split="val")
    with pytest.raises(ConfigError) as refused:
        check_data(named)
    why = "has no train, which data.train_split names as shards"
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/shards {why}; --set 'data.train_split=train-{{00..03}}.tar' names those that are there",
        (
            f"{tmp_path}/shards {why.replace('train', 'val')}; --set 'data.val_split=val-{{00..01}}.tar'"
            " names those that are there"
        ),
    ]
    folder = config_of(write_folder(tmp_path / "folder"), data__dataset="shards")
    with pytest.raises(
        ConfigError, match=r"has no train, .*; it has a folder of that name: --set data\.dataset=folder "
    ):
        check_data(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/empty {why}\n"):
        check_data(config_of(tmp_path / "empty", data__dataset="shards"))


def test_a_label_that_the_model_has_no_class_for_is_refused(tmp_path: Path) -> None:
    config = shards_of(write_shards(tmp_path), model__num_classes=2)
    with pytest.raises(ConfigError, match="has label 2 in train, but the 2 classes of the model are 0 to 1"):
        Loader(config, "train", CPU)


def test_shards_may_be_cut_down_to_some_labels(tmp_path: Path) -> None:
    config = plain(write_shards(tmp_path), data__classes=["2", "0"], model__num_classes=2)
    found = batches(config, "val")
    assert numbers_of(found, config) == [0, 2, 3, 5, 6]
    assert labels_of(found) == [0, 1, 0, 1, 0]
    with pytest.raises(ConfigError, match="has no class '7'"):
        Loader(plain(tmp_path, data__classes=["0", "7"], model__num_classes=2), "train", CPU)
