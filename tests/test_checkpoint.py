"""The checkpoints of a folder are those that the suite wrote there; whatever else somebody keeps beside them
stays as it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from roadmap.files import temporary_path
from roadmap.training.checkpoint import Checkpoints
from roadmap.weight_files import located

ITERATION = "engine"


def iterations(checkpoints: Checkpoints) -> list[int]:
    return [state[ITERATION] for state in checkpoints.load()]


def saved(folder: Path, *iterations: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for iteration in iterations:
        checkpoints.save(iteration, {ITERATION: iteration})
    return checkpoints


@pytest.mark.parametrize(
    "copies",
    [
        ["best-epoch1.pt"],
        ["2026-11-27.pt", "2026-11-28.pt"],
        [
            "999999999-copy.pt",
            "20261127-0123456789abcdef.pt",
            "000000036-0123456789abcdef.pt.bak",
            "999999999-0123456789ABCDEF.pt",
        ],
        [".backup.tmp", ".best.pt.old.tmp"],
    ],
)
def test_copies_under_other_names_are_not_read_counted_or_deleted(copies: list[str], tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "checkpoint", 18, 36)
    (tmp_path / "config.yaml").touch()
    oldest = checkpoints.files()[-1]
    for name in copies:
        shutil.copy(oldest, checkpoints.folder / name)
    assert iterations(checkpoints) == [36, 18]
    assert located(tmp_path) == checkpoints.files()[0]
    checkpoints.save(54, {ITERATION: 54})
    assert iterations(checkpoints) == [54, 36]
    checkpoints.forget_after(36)
    assert iterations(checkpoints) == [36]
    checkpoints.forget_after(0)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == sorted(copies)


def test_the_newest_checkpoint_is_that_of_the_latest_iteration(tmp_path: Path) -> None:
    """As text, 1000000000 comes before 999999999."""
    checkpoints = saved(tmp_path / "checkpoint", 999_999_998, 999_999_999, 1_000_000_000)
    (tmp_path / "config.yaml").touch()
    assert iterations(checkpoints) == [1_000_000_000, 999_999_999]
    assert located(tmp_path).name.startswith("1000000000-")


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 18)
    left = temporary_path(tmp_path / "000000036.pt")
    others = (
        left.with_name(left.name.replace(".tmp", "1.tmp")),
        left.with_name(".000000036.pt.node-7.cluster.example.4711.tmp"),
    )
    for path in (left, *others):
        path.write_bytes(b"torn")
    checkpoints.save(36, {ITERATION: 36})
    assert sorted(path.name[:9] for path in tmp_path.iterdir()) == ["000000018", "000000036"]
