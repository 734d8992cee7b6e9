"""Streams of timm's readers: the same epoch again, from its middle, shared by processes; what cannot be read
is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.corrupt import CorruptImages
from roadmap.data.loader import Loader
from roadmap.errors import ConfigError
from tests.helpers.images import (
    CPU,
    batches,
    labels_of,
    numbers_of,
    plain,
    plan_of,
    same,
    sample,
    write_folder,
    write_shards,
    write_tar,
)

IMAGES, VAL_IMAGES = 32, 12

pytest.importorskip("webdataset")


def wds(root: Path, **overrides: Any) -> RunConfig:
    """Eight shards of four pictures, three for validation."""
    if not root.exists():
        write_shards(root, train=8, val=3)
    splits = {
        "data__train_split": f"train-{{00..07}}.tar|{IMAGES}",
        "data__val_split": f"val-{{00..02}}.tar|{VAL_IMAGES}",
    }
    return plain(root, data__dataset="wds/pictures", **splits | overrides)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shards"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_trains_on_its_images_in_another_order_each_epoch(root: Path, workers: int) -> None:
    config = wds(root, system__workers=workers)
    loader = Loader(config, "train", CPU)
    found = [list(loader.epoch(epoch)) for epoch in range(3)]
    assert [len(epoch) for epoch in found] == [IMAGES // 4] * 3
    assert (len(loader), loader.images) == (IMAGES // 4, IMAGES)
    orders = [numbers_of(epoch, config) for epoch in found]
    assert all(sorted(order) == list(range(IMAGES)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != sorted(orders[0])
    assert [labels_of(epoch) for epoch in found] == [[number % 3 for number in order] for order in orders]
    loader.close()


@pytest.mark.parametrize(("workers", "turns"), [(0, 2), (2, 1), (2, 2)])
def test_a_stream_resumes_in_the_middle_of_an_epoch(root: Path, workers: int, turns: int) -> None:
    augmented = {
        "recipe__crop_scale": [0.2, 1.0],
        "recipe__hflip": 0.5,
        "recipe__randaugment": "rand-m9-mstd0.5-inc1",
    }
    config = wds(root, system__workers=workers, system__micro_batch=4 // turns, **augmented)
    lived_on, resumed = Loader(config, "train", CPU), Loader(config, "train", CPU)
    list(lived_on.epoch(0))
    whole = list(lived_on.epoch(1))
    assert len(whole) == turns * len(lived_on)
    for first in (0, 1, 3, 8):
        assert same(list(resumed.epoch(1, first)), whole[turns * first :])
    lived_on.close()
    resumed.close()


def test_the_images_of_one_shard_are_shuffled_by_epoch(root: Path) -> None:
    root.mkdir()
    write_tar(
        root / "a.tar", {name: content for number in range(12) for name, content in sample(number).items()}
    )
    config = wds(root, data__train_split="a.tar|12")
    orders = [tuple(numbers_of(batches(config, epoch=epoch), config)) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))


def test_another_seed_is_another_order(root: Path) -> None:
    one, other = (wds(root).model_copy(update={"seed": seed}) for seed in (0, 1))
    assert numbers_of(batches(one), one) != numbers_of(batches(other), other)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_a_stream(root: Path, workers: int) -> None:
    config = wds(root, system__workers=workers)
    plan = plan_of(config, 2)
    parts = [numbers_of(batches(config, rank=rank, plan=plan), config) for rank in range(2)]
    assert [len(part) for part in parts] == [IMAGES // 2] * 2
    assert sorted(parts[0] + parts[1]) == list(range(IMAGES))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_each_image_of_a_stream_once_over_all_processes(
    root: Path, workers: int, world: int
) -> None:
    config = wds(root, system__workers=workers)
    found: list[Batch] = []
    for rank in range(world):
        loader = Loader(config, "val", CPU, rank=rank, plan=plan_of(config, world))
        found += [*loader.epoch()]
        assert same(list(loader.epoch()), list(loader.epoch()))
        loader.close()
    assert sorted(numbers_of(found, config)) == list(range(VAL_IMAGES))
    assert sorted(labels_of(found)) == sorted(number % 3 for number in range(VAL_IMAGES))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_of_a_stream_is_left_out(root: Path, workers: int) -> None:
    config = wds(root, system__workers=workers, system__corrupt_images=1)
    write_tar(
        root / "val-01.tar", sample(4) | sample(5) | {"0006.jpg": b"no picture", "0006.cls": b"0"} | sample(7)
    )
    loader = Loader(config, "val", CPU)
    for _ in range(2):
        assert sorted(numbers_of(list(loader.epoch()), config)) == [
            number for number in range(VAL_IMAGES) if number != 6
        ]
    assert loader.corrupt.count == 1
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_more_corrupt_images_of_a_stream_than_allowed_end_the_run(root: Path, workers: int) -> None:
    config = wds(root, system__workers=workers)
    for shard in range(8):
        write_tar(root / f"train-{shard:02d}.tar", {"1.jpg": b"no picture", "1.cls": b"0"})
    with pytest.raises(
        CorruptImages,
        match=(
            r"^(\d+) images? cannot .* lets 0 pass: the log names them; --set system\.corrupt_images=\1"
            r" leaves (it|these) out$"
        ),
    ):
        batches(config)


def test_a_truncated_shard_of_a_stream_is_an_error(root: Path) -> None:
    config = wds(root)
    torn = root / "val-01.tar"
    torn.write_bytes(torn.read_bytes()[:1500])
    with pytest.raises(Exception, match=r"val-01\.tar"):
        batches(config, "val")


def test_members_of_other_names_are_read(root: Path) -> None:
    picture = sample(5)["0005.jpg"]
    write_tar(
        root / "a.tar",
        {"1.jpg": sample(1)["0001.jpg"], "1.photo": picture, "1.json": json.dumps({"kind": 2}).encode()},
    )
    config = wds(root, data__val_split="a.tar|1", data__image_key="photo", data__label_key="kind")
    found = batches(config, "val")
    assert (numbers_of(found, config), labels_of(found)) == ([5], [2])


def test_a_stream_that_cannot_be_shared_or_counted_is_refused(root: Path) -> None:
    for given, said in (
        ({"system__workers": 9}, "has 8 shards for 1 processes of 9 workers, of which each needs one"),
        ({"data__train_split": "train-{00..07}.tar"}, "num_samples not specified in train mode"),
        (
            {"data__classes": ["0", "1"], "model__num_classes": 2},
            "data.classes cannot choose from dataset 'wds/pictures'",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            Loader(wds(root, **given), "train", CPU)
    with pytest.raises(ConfigError, match="does not announce how many images it has"):
        Loader(wds(root, data__val_split="val-{00..02}.tar"), "val", CPU)


def test_a_label_of_a_stream_that_the_model_has_no_class_for_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="has label 2 in val, but the 2 classes of the model are 0 to 1"):
        batches(wds(root, model__num_classes=2), "val")


def test_a_stream_of_hugging_face_is_read_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    folder = write_folder(tmp_path / "data")
    (folder / "val").rename(folder / "validation")
    named = {"data__dataset": f"hfids/{folder}", "data__val_split": "validation", "system__download": True}
    config = plain(tmp_path / "cache", **named)
    whole = batches(config, epoch=1)
    order = numbers_of(whole, config)
    assert len(set(order)) == len(order) == 12
    assert labels_of(whole) == [number // 5 for number in order]
    assert same(batches(config, epoch=1, first=2), whole[2:])
    assert numbers_of(batches(config, epoch=2), config) != order
    parts = [
        numbers_of(batches(config, "val", rank=rank, plan=plan_of(config, 2)), config) for rank in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(9))
