"""A few iterations of a real training under the profiler: what is written, when it is over, and what a short
run leaves.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, parse_overrides, resolve
from roadmap.train import train
from roadmap.training.callbacks import Callback, Callbacks
from roadmap.training.profiler import ROWS, WARM_UP, Profiler
from tests.helpers.stopping import StopAt

ITERATIONS = 18
TINY = ["data.copies=1", "model.depths=[1, 1, 1, 1]", "recipe.epochs=1", "system.device=cpu"]


def config_of() -> RunConfig:
    return resolve(load_roadmap(), "gelu", profile="digits", overrides=parse_overrides(TINY))


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_is_profiled_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    run = prepare(tmp_path, config)
    with monkeypatch.context() as machine:
        machine.setattr("torch.cuda.is_available", lambda: True)
        profiler = Profiler(run.path, 1)
    with profiler:
        train(config, run.path, callback=profiler)
    assert "iteration on CPU" in (run.path / "profile" / "operators.txt").read_text(encoding="utf-8")


def profiled(folder: Path, steps: int, other: Callback | None = None) -> tuple[RunDir, Profiler]:
    config = config_of()
    run = prepare(folder, config)
    with Profiler(run.path, steps) as profiler:
        train(config, run.path, callback=Callbacks([profiler, other or Callback()]))
    return run, profiler


def names(run: RunDir) -> list[str]:
    folder = run.path / "profile"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def events(trace: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return found


def iterations(trace: Path) -> list[str]:
    """The iterations in a trace, counted from 0 at the profiler's start."""
    marks = {event["name"] for event in events(trace) if str(event.get("name")).startswith("ProfilerStep#")}
    return sorted(marks, key=lambda mark: int(mark.partition("#")[2]))


def timed(run: RunDir) -> list[tuple[int, float]]:
    text = (run.path / "profile" / "operators.txt").read_text(encoding="utf-8")
    return [
        (int(number), float(ms))
        for number, ms in re.findall(r"^iteration (\d+): (\d+\.\d+) ms$", text, re.MULTILINE)
    ]


class Present(Callback):
    """Notes after which iterations the profile is there, and whether PyTorch is being profiled still."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.there, self.active = folder, list[bool](), list[bool]()

    def on_step(self) -> None:
        import torch

        self.there.append(any(self.folder.rglob("operators.txt")))
        self.active.append(torch._C._autograd._profiler_enabled())


def test_the_iterations_after_the_warm_up_are_profiled_and_then_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    present = Present(tmp_path)
    run, profiler = profiled(tmp_path, 3, present)
    assert caplog.messages == []
    assert names(run) == ["operators.txt", "trace-6.json"]
    trace = run.path / "profile" / "trace-6.json"
    assert iterations(trace) == [f"ProfilerStep#{number}" for number in (5, 6, 7)]
    operators = {event["name"] for event in events(trace) if event.get("cat") == "cpu_op"}
    assert {"aten::convolution", "aten::gelu", "aten::convolution_backward"} <= operators
    assert present.there == [number >= WARM_UP + 3 for number in range(1, ITERATIONS + 1)]
    assert present.active == [WARM_UP <= number < WARM_UP + 3 for number in range(1, ITERATIONS + 1)]
    assert profiler._profile is None


def test_the_table_holds_each_iterations_time_and_the_operators_by_self_time(tmp_path: Path) -> None:
    run, _ = profiled(tmp_path, 4)
    times = timed(run)
    assert [number for number, _ in times] == [6, 7, 8, 9]
    text = (run.path / "profile" / "operators.txt").read_text(encoding="utf-8")
    average = re.match(r"4 iterations on CPU, (\d+\.\d+) ms on average\n", text)
    assert average is not None
    assert float(average[1]) == pytest.approx(sum(ms for _, ms in times) / 4, abs=1e-3)
    marks = [
        event
        for event in events(run.path / "profile" / "trace-6.json")
        if str(event.get("name")).startswith("ProfilerStep#")
    ]
    assert sum(ms for _, ms in times) == pytest.approx(sum(mark["dur"] for mark in marks) / 1e3, rel=0.5)
    _, columns, _, *rows, _ = (
        text.partition("\n\n")[2].rpartition("Self CPU time total")[0].rstrip().splitlines()
    )
    column = columns.split("  ")
    share = [word.strip() for word in column if word.strip()].index("Self CPU %")
    shares = [float(re.split(r"\s{2,}", row.strip())[share].rstrip("%")) for row in rows]
    assert len(shares) == ROWS
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("steps", [ITERATIONS - WARM_UP, ITERATIONS - WARM_UP + 1, 1000])
def test_a_run_with_fewer_iterations_is_profiled_to_its_end_with_a_warning(
    steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = profiled(tmp_path, steps)
    assert names(run) == ["operators.txt", "trace-6.json"]
    assert [number for number, _ in timed(run)] == list(range(6, ITERATIONS + 1))
    said = f"the run ended after 13 of the {steps} iterations that were to be profiled"
    assert caplog.messages == ([said] if steps > 13 else [])


def stopped(folder: Path, iteration: int, steps: int) -> RunDir:
    config, stop = config_of(), StopSignals()
    run = prepare(folder, config)
    with pytest.raises(Stopped), Profiler(run.path, steps) as profiler:
        train(config, run.path, stop=stop, callback=Callbacks([profiler, StopAt(stop, iteration)]))
    return run


def test_a_run_that_is_stopped_leaves_the_iterations_that_were_profiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(tmp_path, iteration=7, steps=10)
    assert names(run) == ["operators.txt", "trace-6.json"]
    assert [number for number, _ in timed(run)] == [6, 7]
    assert caplog.messages == ["the run ended after 2 of the 10 iterations that were to be profiled"]


@pytest.mark.parametrize("iteration", [1, WARM_UP])
def test_a_run_stopped_in_the_warm_up_leaves_nothing_but_a_warning(
    iteration: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(tmp_path, iteration, steps=10)
    assert names(run) == []
    assert caplog.messages == ["the run ended after 0 of the 10 iterations that were to be profiled"]


def test_a_resumed_run_is_profiled_where_it_resumes(tmp_path: Path) -> None:
    run = stopped(tmp_path, iteration=10, steps=1)
    config = config_of()
    with Profiler(run.path, 2) as profiler:
        train(config, run.path, callback=profiler)
    assert names(run) == ["operators.txt", "trace-16.json", "trace-6.json"]
    assert [number for number, _ in timed(run)] == [16, 17]


def test_the_last_iteration_is_profiled_if_it_is_all_that_is_left(tmp_path: Path) -> None:
    stopped(tmp_path, iteration=ITERATIONS - 2, steps=1)
    config = config_of()
    run = prepare(tmp_path, config)
    with Profiler(run.path, 5) as profiler:
        train(config, run.path, callback=profiler)
    assert [number for number, _ in timed(run)] == [ITERATIONS]


def test_a_profiled_run_has_the_metrics_of_one_that_is_not(tmp_path: Path) -> None:
    config = config_of()
    plain = prepare(tmp_path / "plain", config)
    train(config, plain.path)
    run, _ = profiled(tmp_path / "profiled", 5)
    times = ("seconds", "data_seconds", "images_per_s")
    ours, theirs = (
        [
            {name: value for name, value in json.loads(line).items() if name not in times}
            for line in r.metrics.read_text().splitlines()
        ]
        for r in (run, plain)
    )
    assert ours == theirs


def test_a_finished_run_has_nothing_left_to_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Profiler(tmp_path, 3) as profiler:
        profiler.on_train_start(18, 18)
        profiler.on_step()
    assert caplog.messages == ["nothing is left of the run to profile"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [0, -3])
def test_at_least_one_iteration_is_profiled(steps: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--profile-steps must be at least 1, not {steps}$"):
        Profiler(tmp_path, steps)
