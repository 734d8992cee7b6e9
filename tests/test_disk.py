"""A full disk is one clear message that says which, and how much is missing; nothing is lost, and with room
all goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from roadmap import ROOT
from roadmap.disk import DiskError, disk_error, explaining, file_system
from roadmap.errors import ConfigError
from roadmap.export import export
from roadmap.files import JsonLines, create_exclusive, write_atomic, write_errors
from roadmap.lease import Lease
from roadmap.records import RunDir, prepare, status
from roadmap.train import train
from roadmap.training.checkpoint import Checkpoints
from slurm.cluster import Cluster
from slurm.executor import Array, submit
from tests.helpers.disks import fill, mounted
from tests.test_prepare import noise
from tests.test_prepare import prepare as make_shards
from tests.test_records import config_of
from tests.test_resume import metrics

PAGE = os.sysconf("SC_PAGE_SIZE")


def test_a_run_on_a_full_disk_keeps_what_it_saved_and_ends_with_room_as_if_there_had_been_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of()
    undisturbed = prepare(tmp_path / "undisturbed", config)
    train(config, undisturbed.path)
    newest, *_ = Checkpoints(undisturbed.checkpoints).files()
    size = newest.stat().st_size
    assert "needs" not in caplog.text
    with mounted(tmp_path / "disk", f"size={4 * size}") as disk:
        run = prepare(disk, config)
        filler = fill(disk, int(1.6 * size))
        lack = rf"no space left on {disk} \(needed [\d.]+ MB, free [\d.,]+ (MB|bytes)\)"
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(DiskError, match=rf"checkpoint/0000000\d\d\.pt cannot be written: {lack}$"),
        ):
            train(config, run.path)
        assert re.search(
            rf"checkpoint needs [\d.]+ MB for 2 checkpoints of [\d.]+ MB, and {disk} has [\d.,]+ MB free",
            caplog.text,
        )
        kept = Checkpoints(run.checkpoints)
        assert len(list(kept.load())) == len(list(run.checkpoints.iterdir())) == 1
        assert status(run).state == "failed"
        assert "no space left" in str(status(run).why)
        filler.unlink()
        assert train(config, run.path).status == "done"
        assert metrics(run) == metrics(undisturbed)
        ours, theirs = kept.newest(), Checkpoints(undisturbed.checkpoints).newest()
        assert ours is not None and theirs is not None  # noqa: PT018
        assert all(
            torch.equal(tensor, theirs["engine"]["model"][name])
            for name, tensor in ours["engine"]["model"].items()
        )


def test_what_is_short_is_what_the_files_take_that_are_there_at_a_time(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        checkpoints, state = Checkpoints(disk / "checkpoint"), {"x": torch.zeros(250_000)}
        assert checkpoints.shortage(1_000_000, 100) is None
        assert (
            checkpoints.shortage(5_000_000, 1)
            == f"{disk}/checkpoint needs 5.0 MB for a checkpoint, and {disk} has 4.2 MB free"
        )
        assert "needs 4.5 MB for 3 checkpoints of 1.5 MB" in str(checkpoints.shortage(1_500_000, 100))
        checkpoints.save(1, state)
        assert checkpoints.shortage(1_500_000, 100) is None  # the one that is there says how large they are
        checkpoints.save(2, state)
        filler = fill(disk, 500_000)
        assert "needs 1.0 MB for 3 checkpoints of 1.0 MB" in str(checkpoints.shortage(1_500_000, 1))
        assert checkpoints.shortage(1_500_000, 0) is None
        filler.unlink()


def append_to_log(path: Path) -> None:
    with closing(JsonLines(path)) as log:
        log.append({"loss": "x" * PAGE})


WAYS: dict[str, Callable[[Path], Any]] = {
    "whole": lambda path: write_atomic(path, "x" * PAGE),
    "exclusive": lambda path: create_exclusive(path, "x" * PAGE),
    "log": append_to_log,
    "lease": lambda path: Lease(path.parent).__enter__(),
    "checkpoint of large tensors": lambda path: Checkpoints(path.parent).save(1, {"x": torch.zeros(10**6)}),
    "checkpoint of small tensors": (
        lambda path: Checkpoints(path.parent).save(1, {str(i): torch.zeros(100) for i in range(1000)})
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_writes_to_a_full_disk_report_it_and_leave_no_partial_file(way: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        filler = fill(disk)
        with pytest.raises(
            DiskError, match=rf" cannot be written: no space left on {disk} \((needed .*, )?free 0 bytes\)$"
        ) as caught:
            WAYS[way](disk / "name")
        assert caught.value.errno == errno.ENOSPC
        filler.unlink()
        assert [path.name for path in disk.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_run_that_is_finished_is_no_failure_where_its_end_cannot_be_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with Lease(disk) as lease:
            lease.outcome = "done"
            fill(disk)
        assert (
            f"the end of the attempt was not recorded: {disk}/attempts/0001.json cannot be written: no space"
            f" left on {disk}" in caplog.text
        )


def test_read_only_and_without_inodes(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "read-only", "ro") as disk,
        pytest.raises(ConfigError) as caught,
        write_errors(disk / "a.csv"),
    ):
        write_atomic(disk / "a.csv", "x")
    assert str(caught.value) == f"{disk}/a.csv cannot be written: {disk} is mounted read-only"
    with mounted(tmp_path / "crowded", "nr_inodes=2") as disk:
        (disk / "one").touch()
        with pytest.raises(
            DiskError, match=rf"no space left on {disk} for another file \(all 2 inodes are taken\)"
        ):
            write_atomic(disk / "a.csv", "x")


def test_the_cause_is_found_beneath_what_a_library_makes_of_it(tmp_path: Path) -> None:
    def hide(code: int) -> None:
        try:
            raise OSError(code, os.strerror(code))
        except OSError:
            raise RuntimeError("unexpected pos 146624 vs 146520")  # noqa: B904 - as PyTorch does

    where = file_system(tmp_path)
    quota = rf"the disk quota on {where} is used up \(needed 2\.0 MB, free unknown\)"
    with (
        pytest.raises(DiskError, match=rf"^{tmp_path}/a cannot be written: {quota}$"),
        explaining(tmp_path / "a", 2_000_000),
    ):
        hide(errno.EDQUOT)
    with pytest.raises(OSError, match="File too large"), explaining(tmp_path / "a"):
        hide(errno.EFBIG)
    with pytest.raises(RuntimeError, match="no cause"), explaining(tmp_path / "a"):
        raise RuntimeError("no cause")
    assert disk_error(OSError(errno.EACCES, "")) is None


def test_shards_exports_and_submissions_name_the_full_disk(tmp_path: Path) -> None:
    source, config = noise(tmp_path / "data", 3, 1), config_of()
    run = prepare(tmp_path, config)
    Checkpoints(run.checkpoints).save(
        1, {"engine": {"iteration": 1, "model": {"x": torch.zeros(4 * PAGE)}, "ema": None}}
    )
    with mounted(tmp_path / "disk", "size=64k") as disk:
        out = disk / "shards"
        out.mkdir()
        fill(disk, 3 * PAGE)
        lack = rf"no space left on {disk} \((needed .*, )?free [\d,]+ bytes\)"
        done = make_shards(source, out, "--splits", "train", code=2)
        assert re.search(
            rf"^{out}/train-000000\.tar cannot be written: {lack}; the finished shards are kept",
            done.stderr,
            re.MULTILINE,
        )
        with pytest.raises(ConfigError, match=rf"^{disk}/weights\.pt cannot be written: {lack}$"):
            export(run.path, disk / "weights.pt", names="ours")
        fill(disk)
        with pytest.raises(ConfigError, match=lack):
            submit(
                Array(Cluster(scheduler="slurm"), ((RunDir(run.path),),)), disk / "jobs", "slurm", tmp_path
            )
        with pytest.raises(ConfigError, match=rf"cannot be created: {lack}$"):
            prepare(disk, config)


def test_a_log_on_a_full_disk_ends_no_command() -> None:
    code = (
        "import sys\nfrom roadmap.cli.options import print_anywhere\nprint_anywhere()\nprint('epoch 1',"
        " file=sys.stderr)\nsys.exit(3)"
    )
    with Path("/dev/full").open("wb") as full:
        assert (
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=full, check=False).returncode == 3
        )
