"""Labels and images that are none: one clear error that names the sample and the value, wherever they come
from.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roadmap.config import RunConfig
from roadmap.data.corrupt import CorruptImages
from roadmap.data.datasets import make_source
from roadmap.data.labels import BadSample, label_of
from roadmap.data.loader import Loader
from roadmap.data.preflight import check_data
from roadmap.errors import ConfigError
from tests.helpers.images import (
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
    write_folder,
    write_tar,
)

WHAT = "a label must be one whole number, 0 for the first class"
FOREIGN = "caf\udce9"  # as Python has a name with a byte that is not UTF-8
GOOD: list[Any] = [
    2,
    2.0,
    np.int64(2),
    np.uint8(2),
    np.float32(2),
    np.array(2),
    np.array([2]),
    torch.tensor(2),
    torch.tensor([2.0]),
]
BAD: list[tuple[Any, str]] = [
    (1.7, "1.7"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (True, "True"),
    (np.bool_(True), "np.True_"),
    (None, "None"),
    ("1", "'1'"),
    ("ant", "'ant'"),
    ([1], "[1]"),
    (2**63, "9223372036854775808"),
    (np.float32(1.5), "np.float32(1.5)"),
    (np.array([0, 1, 0]), "array([0, 1, 0])"),
    (torch.tensor(1.5), "tensor(1.5000)"),
    (torch.tensor([0.0, 1.0]), "tensor([0., 1.])"),
    ("x" * 99, f"'{'x' * 59}..."),
]


@pytest.mark.parametrize("value", GOOD, ids=repr)
def test_an_integer_of_any_type_is_a_label(value: Any) -> None:
    label = label_of(value, "here")
    assert (label, type(label)) == (2, int)


@pytest.mark.parametrize(("value", "shown"), BAD, ids=[shown for _, shown in BAD])
def test_a_label_that_is_no_integer_is_named(value: Any, shown: str) -> None:
    with pytest.raises(BadSample) as refused:
        label_of(value, lambda: "item 7")
    assert str(refused.value) == f"item 7 has the label {shown}; {WHAT}"
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


# A Dataset that is handed over


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((picture(0), 1.7), f"has the label 1.7; {WHAT}"),
        ((picture(0), "ant"), f"has the label 'ant'; {WHAT}"),
        ((None, 0), "has a NoneType for an image; it must be a PIL image, an array or a tensor"),
        ((np.zeros((8, 8)), 0), "is an image of float64; it must be of uint8"),
        (7, "is a int; it must be an image and a label"),
    ],
)
def test_an_item_that_is_none_is_one_message_from_any_process(item: Any, said: str, workers: int) -> None:
    class Odd(Pictures):
        def __getitem__(self, number: int) -> Any:
            return self.items[number]

    config = custom(system__workers=workers)
    with pytest.raises(ConfigError) as refused:
        Loader(config, "val", CPU, source=Odd([item, (picture(0), 0)]))  # before any work
    assert str(refused.value) == f"item 0 of dataset 'custom/pictures' {said}"
    loader = Loader(config, "val", CPU, source=Odd([(picture(0), 0), item]))
    with pytest.raises(ConfigError) as refused:
        list(loader.epoch())
    loader.close()
    assert str(refused.value) == f"item 1 of dataset 'custom/pictures' {said}"


def test_a_first_image_that_cannot_be_read_is_counted_as_any_other() -> None:
    config = custom(system__corrupt_images=1)
    assert labels_of(batches(config, "val", source=Pictures([(OSError("torn"), 0), (picture(1), 1)]))) == [
        -1,
        1,
    ]


def test_a_class_name_that_is_there_twice_cannot_be_chosen() -> None:
    pictures = Pictures(
        [(picture(number), number) for number in range(4)], classes=["crane", "bee", "crane", "cat"]
    )
    config = custom(data__classes=["crane", "bee"], model__num_classes=2)
    with pytest.raises(ConfigError, match="has more than one class called crane, so "):
        make_source(config, "val", pictures)
    config = custom(data__classes=["cat", "bee"], model__num_classes=2)
    assert numbers_of(batches(config, "val", source=pictures), config) == [1, 3]


# Hugging Face


def parquet(
    root: Path, labels: Any, images: list[Any] | None = None, features: bool = False, **overrides: Any
) -> RunConfig:
    """A run on tables of images and labels; an image is the number of a picture, or bytes, or None for a row
    without one.
    """
    arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    given: list[Any] = list(range(len(labels))) if images is None else images
    cells = [
        None if image is None else {"bytes": jpeg(image) if isinstance(image, int) else image, "path": None}
        for image in given
    ]
    table = arrow.table(
        {
            "image": arrow.array(cells, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            "label": arrow.array(labels),
        }
    )
    if features:
        known = (
            '{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "%s", "_type":'
            ' "Value"}}}}'
        )
        table = table.replace_schema_metadata({"huggingface": known % table.schema.field("label").type})
    (root / "data").mkdir()
    for split in ("train", "validation"):
        tables.write_table(table, root / "data" / f"{split}.parquet")
    kind = "hfids" if features else "hfds"
    named = {"data__dataset": f"{kind}/{root}/data", "data__val_split": "validation"}
    return plain(root / "cache", **named | overrides)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # before the first import of the package
    pytest.importorskip("datasets")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("labels", "row", "shown"),
    [
        ([0, 1.7, 2.0], 1, "1.7"),
        ([0.0, 1.0, float("nan")], 2, "nan"),
        ([0, None, 2], 1, "None"),
        ([True, False], 0, "True"),
        (["ant", "bee"], 0, "'ant'"),
        ([[0], [1]], 0, "[0]"),
    ],
)
def test_a_column_that_holds_no_labels_is_refused_before_any_image_is_read(
    tmp_path: Path, labels: Any, row: int, shown: str
) -> None:
    config = parquet(tmp_path, labels)
    with pytest.raises(ConfigError) as refused:
        make_source(config, "val")
    where = f"row {row} of 'validation' of dataset 'hfds/{tmp_path}/data'"
    assert (
        str(refused.value)
        == f"{where} has the label {shown}; {WHAT}; data.label_key may name another column: image, label"
    )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("labels", [[0, 1, 2], [0.0, 1.0, 2.0]])
def test_a_column_of_integers_holds_labels(tmp_path: Path, labels: list[Any]) -> None:
    config = parquet(tmp_path, labels)
    found = batches(config, "val")
    assert (labels_of(found), numbers_of(found, config)) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("image", [None, b"", b"no picture"])
def test_a_row_without_an_image_is_named_and_left_out_if_that_is_allowed(
    tmp_path: Path, image: Any, workers: int
) -> None:
    config = parquet(tmp_path, [0, 1, 2], [0, image, 2], system__workers=workers)
    with pytest.raises(
        CorruptImages,
        match=r"^row 1 of 'validation' is not an image that can be read; --set system\.corrupt_images=1",
    ):
        batches(config, "val")
    allowed = config.model_copy(update={"system": config.system.model_copy(update={"corrupt_images": 1})})
    assert labels_of(batches(allowed, "val")) == [0, -1, 2]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("labels", "images", "said"),
    [
        ([0.0, 1.7], [0, 1], f"has the label 1.7; {WHAT}"),
        (["ant", "bee"], [0, 1], f"has the label 'ant'; {WHAT}"),
        ([0, 1], [0, None], "cannot be decoded: 'NoneType' object has no attribute 'mode'"),
        ([0, 1], [0, b"no picture"], "cannot be decoded: it has no image format that is known"),
    ],
)
def test_what_is_no_sample_in_a_stream_of_rows_is_named(
    tmp_path: Path, labels: Any, images: Any, said: str, workers: int
) -> None:
    config = parquet(tmp_path, labels, images, features=True, system__download=True, system__workers=workers)
    loader = Loader(config, "val", CPU)
    with pytest.raises(ConfigError) as refused:
        list(loader.epoch())
    loader.close()
    where = f"of worker 0 of process 0 in dataset 'hfids/{tmp_path}/data'"
    assert str(refused.value).startswith(f"image {int('ant' not in said)} {where} {said}")


# Streams of WebDataset


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"b.jpg": jpeg(1), "b.cls": b"cat"}, f"b.cls in {{shard}} has the label 'cat'; {WHAT}"),
        ({"b.jpg": jpeg(1), "b.cls": b"1.7"}, f"b.cls in {{shard}} has the label '1.7'; {WHAT}"),
        ({"b.jpg": jpeg(1)}, "sample 'b' in {shard} has no label: no member cls, but jpg"),
        (
            {"b.jpg": jpeg(1), "b.JPG": jpeg(1)},
            "a shard has two members b.JPG; adjacent samples need different names",
        ),
    ],
)
def test_a_label_of_a_stream_that_is_none_is_named(
    tmp_path: Path, members: dict[str, bytes], said: str, workers: int
) -> None:
    pytest.importorskip("webdataset")
    shard = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0), "a.cls": b"0"} | members)
    config = plain(
        tmp_path,
        data__dataset="wds/x",
        data__val_split="a.tar|2",
        system__workers=workers,
        system__corrupt_images=9,
    )
    loader = Loader(config, "val", CPU)
    with pytest.raises(ConfigError) as refused:
        list(loader.epoch())
    loader.close()
    assert str(refused.value) == said.format(shard=shard)


def test_a_stream_skips_what_archivers_leave_and_reads_names_that_are_not_utf_8(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    members = {
        f"{FOREIGN}.jpg": jpeg(5),
        "PaxHeader/x.jpg": b"",
        f"._{FOREIGN}.jpg": b"",
        ".git/x.jpg": b"",
        f"{FOREIGN}.json": b'{"a": {"b": 2}}',
    }
    write_tar(tmp_path / "a.tar", members)
    config = plain(tmp_path, data__dataset="wds/x", data__val_split="a.tar|1", data__label_key="a/b")
    found = batches(config, "val")
    assert (labels_of(found), numbers_of(found, config)) == ([2], [5])


# Names


@pytest.mark.parametrize("dataset", ["folder", "torch/image_folder"])
def test_class_folders_whose_names_are_not_utf_8_are_refused(tmp_path: Path, dataset: str) -> None:
    root = write_folder(tmp_path / "data")
    for split in ("train", "val"):
        (root / split / "ant").rename(root / split / FOREIGN)
    with pytest.raises(ConfigError) as refused:
        make_source(config_of(root, data__dataset=dataset), "train")
    assert (
        str(refused.value)
        == f"{root}/train has class folders whose names are not UTF-8: caf\\xe9; rename them"
    )
    if dataset == "folder":
        with pytest.raises(ConfigError, match="not UTF-8"):
            check_data(config_of(root))


@pytest.mark.parametrize("dataset", ["folder", "torch/image_folder"])
def test_images_whose_names_are_not_utf_8_are_read_and_named(tmp_path: Path, dataset: str) -> None:
    root = write_folder(tmp_path / "data")
    (root / "val" / "ant" / "0.jpg").rename(root / "val" / "ant" / f"{FOREIGN}.jpg")
    config = plain(root, data__dataset=dataset, system__stage_dir=str(tmp_path / "disk"))
    found = batches(config, "val")
    assert sorted(numbers_of(found, config)) == list(range(9))
    source = make_source(config, "val")
    assert [name for name in map(source.name, range(9)) if "caf" in name] == [f"{root}/val/ant/caf\\xe9.jpg"]
