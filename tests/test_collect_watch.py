"""Collecting while runs go on: something is written when something has changed, and nothing stops it but
Ctrl-C or the end.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.records import RunDir, prepare
from roadmap.report.command import fingerprint
from roadmap.report.runs import read_experiment
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.reports import result_of

ROADMAP = load_roadmap()
INTERVAL = 0.1
PATIENCE = 60.0


def write_run(runs: Path, step: str, seed: int) -> RunDir:
    return prepare(runs, resolve(ROADMAP, step, profile="cifar10", seed=seed))


def finish(run: RunDir, top1: float | None) -> None:
    """Gives a run its result as training does, whole at once."""
    document = result_of(run.step, run.seed, run.hash, top1, profile="cifar10").model_dump(mode="json")
    aside = run.path / "aside"
    aside.write_text(json.dumps(document), encoding="utf-8")
    aside.replace(run.result)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., commands.Command]]:
    """Starts collect.py --watch on `runs`; kills what a failed test leaves."""
    started: list[commands.Command] = []

    def start(*words: str, terminal: int | None = None) -> commands.Command:
        command = [
            sys.executable,
            str(ROOT / "collect.py"),
            "runs",
            "--out",
            "out",
            "--watch",
            str(INTERVAL),
            *words,
        ]
        started.append(commands.Command(command, cwd=tmp_path, terminal=terminal))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def lines_of(process: commands.Command, number: int) -> list[str]:
    """The first lines that it prints."""
    until(lambda: process.printed().count("\n") >= number or process.poll() is not None)
    return process.printed().splitlines()[:number]


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(INTERVAL / 4)


def test_watching_writes_what_has_changed_and_ends_with_the_last_run(
    tmp_path: Path, watch: Callable[..., commands.Command]
) -> None:
    runs = [write_run(tmp_path / "runs", "gelu", seed) for seed in range(3)]
    finish(runs[0], 80.0)
    process, table = watch("--tables-only"), tmp_path / "out" / "ablation.md"
    lines = ["3 runs: 2 pending, 1 done"]
    assert lines_of(process, 1) == lines
    assert "| 1/3 | 80.00 |" in table.read_text(encoding="utf-8")
    before = times(tmp_path / "out")
    # a run that gets on changes no table
    runs[1].metrics.write_text('{"kind": "epoch", "epoch": 1}\n', encoding="utf-8")
    time.sleep(8 * INTERVAL)
    assert times(tmp_path / "out") == before
    runs[1].result.write_text('{"format": 1, "sta', encoding="utf-8")
    lines.append("3 runs: 2 pending, 1 done")
    assert lines_of(process, 2) == lines
    assert f"{runs[1].name}/result.json is damaged" in table.read_text(encoding="utf-8")
    finish(runs[1], None)
    lines.append("3 runs: 1 done, 1 diverged, 1 pending")
    assert lines_of(process, 3) == lines
    shutil.rmtree(runs[2].path)
    lines.append("2 runs: 1 done, 1 diverged")
    assert lines_of(process, 4) == lines
    assert process.wait(PATIENCE) == 0
    assert "1 of 38 runs" in table.read_text(encoding="utf-8")
    assert set(times(tmp_path / "out")) == {
        f"ablation.{kind}" for kind in ("csv", "html", "json", "md", "tex")
    } | {"runs.csv"}


def test_watching_draws_the_figures_and_the_page_too(
    tmp_path: Path, watch: Callable[..., commands.Command]
) -> None:
    finish(write_run(tmp_path / "runs", "gelu", 0), 80.0)
    process = watch()
    assert process.wait(PATIENCE) == 0
    assert {"roadmap.png", "report.html", "ablation.md"} <= set(times(tmp_path / "out"))


def test_runs_of_a_later_version_are_not_waited_for(
    tmp_path: Path, watch: Callable[..., commands.Command]
) -> None:
    write_run(tmp_path / "runs", "gelu", 0).result.write_text('{"format": 2}', encoding="utf-8")
    process = watch("--tables-only")
    assert lines_of(process, 1) == ["1 run: 1 newer"]
    assert process.wait(PATIENCE) == 0


def test_ctrl_c_is_a_way_to_end_it(tmp_path: Path, watch: Callable[..., commands.Command]) -> None:
    write_run(tmp_path / "runs", "gelu", 0)
    process = watch("--tables-only")
    assert lines_of(process, 1) == ["1 run: 1 pending"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert process.communicate() == ("1 run: 1 pending\n", "")


def test_a_terminal_shows_one_line(tmp_path: Path, watch: Callable[..., commands.Command]) -> None:
    run = write_run(tmp_path / "runs", "gelu", 0)
    screen, terminal = pty.openpty()
    process = watch("--tables-only", terminal=terminal)
    os.close(terminal)
    until((tmp_path / "out" / "runs.csv").exists)
    finish(run, 80.0)
    assert process.wait(PATIENCE) == 0
    shown = b""
    while chunk := _read(screen):
        shown += chunk
    os.close(screen)
    assert b"1 run: 1 pending" in shown
    assert b"1 run: 1 done" in shown
    assert b"\x1b[2K" in shown  # the line is cleared to make place for the next


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # its other end is closed
        return b""


def test_two_fingerprints_differ_where_a_run_does(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "gelu", seed) for seed in range(2)]
    experiment = read_experiment(tmp_path)

    def current() -> str:
        return fingerprint([experiment.read()])

    seen = [current()]
    assert current() == seen[0]
    for change in (
        lambda: finish(runs[0], 80.0),
        lambda: finish(runs[0], 80.5),
        lambda: runs[1].result.write_text("", encoding="utf-8"),
        lambda: runs[1].result.write_text("{", encoding="utf-8"),
        lambda: write_run(tmp_path, "gelu", 2),
        lambda: shutil.rmtree(runs[1].path),
    ):
        change()
        assert current() not in seen
        seen.append(current())
    (runs[0].path / "unknown").write_text("", encoding="utf-8")
    assert current() == seen[-1]
