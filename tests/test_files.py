"""Locks between processes: who waits, for whom, and when a lock ends."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from roadmap.bench.results import add_rows, read_rows
from roadmap.files import locked
from tests.test_bench import ROWS, STEPS

FORK = multiprocessing.get_context("fork")
WAIT_S = 20


def take(path: Path, report: Any) -> None:
    """Says when it waits for another, and when it has the lock."""
    with locked(path, waiting=lambda: report.put("waits")):
        report.put("has it")


def hold(path: Path, report: Any) -> None:
    """Has the lock until it is killed."""
    with locked(path):
        report.put("has it")
        signal.pause()


def test_the_second_process_to_lock_reports_it_and_waits(tmp_path: Path) -> None:
    path, report = tmp_path / "new.lock", FORK.Queue()
    process = FORK.Process(target=take, args=(path, report))
    with locked(path, waiting=pytest.fail):
        process.start()
        assert report.get(timeout=WAIT_S) == "waits"
        process.join(0.3)
        assert process.is_alive()
        assert report.empty()
    assert report.get(timeout=WAIT_S) == "has it"
    process.join(WAIT_S)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path, report = tmp_path / "lock", FORK.Queue()
    process = FORK.Process(target=hold, args=(path, report))
    process.start()
    assert report.get(timeout=WAIT_S) == "has it"
    process.kill()
    process.join(WAIT_S)
    with locked(path, waiting=pytest.fail):
        pass


def test_a_child_that_outlives_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        child = FORK.Process(target=signal.pause)  # it has the file, too
        child.start()
    try:
        with locked(path, waiting=pytest.fail):
            pass
    finally:
        child.kill()
        child.join(WAIT_S)


def test_a_lock_leaves_what_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("kept", encoding="utf-8")
    with locked(path):
        assert path.read_text(encoding="utf-8") == "kept"


def test_measurements_are_saved_where_a_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="not implemented"), locked(tmp_path / "lock"):
        pass
    path = tmp_path / "device.csv"
    assert set(add_rows(path, ROWS, "convnext_t", STEPS)) == set(read_rows(path)) == set(ROWS)
