"""What counts as training time: no warm-up, no waiting for data; and who is told of the waiting."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.records import Result, RunDir, prepare
from roadmap.report.ablation import measured
from roadmap.report.tables import ablation_table
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training import clock as clocks
from roadmap.training.callbacks import Callback
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.clock import WARM_UP, Clock
from tests.helpers.images import CPU, Pictures, custom, picture
from tests.helpers.reports import finished
from tests.helpers.stopping import StopAt

ROADMAP = load_roadmap()


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes when a test says so: `present.now`."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def nothing() -> Batch:
    return Batch(torch.zeros(1), torch.zeros(1))


def iterations(clock: Clock, present: SimpleNamespace, count: int, wait: float, work: float) -> None:
    """An epoch of that many iterations, two batches each, and of waits and work for each batch."""

    def loaded() -> Iterator[Batch]:
        for _ in range(2 * count):
            present.now += wait
            yield nothing()

    batches = clock.batches(loaded())
    clock.start()
    for _ in range(count):
        for _ in itertools.islice(batches, 2):
            present.now += work
        clock.step()
    clock.stop()
    present.now += 1000  # an evaluation


def test_the_first_iterations_count_only_where_nothing_follows(present: SimpleNamespace) -> None:
    clock = Clock(CPU)
    iterations(clock, present, WARM_UP - 1, wait=5, work=9)
    assert clock.measured == clocks.Tally(WARM_UP - 1, 28.0 * (WARM_UP - 1), 10.0 * (WARM_UP - 1))
    iterations(clock, present, 1, wait=5, work=9)
    assert clock.measured.iterations == WARM_UP
    iterations(clock, present, 3, wait=1, work=2)
    assert clock.measured == clocks.Tally(3, 18.0, 6.0)


def test_each_attempt_warms_up_and_adds_to_what_was_measured(present: SimpleNamespace) -> None:
    clock = Clock(CPU)
    iterations(clock, present, WARM_UP + 4, wait=1, work=2)
    resumed = Clock(CPU)
    resumed.restore(json.loads(json.dumps(clock.state())))
    iterations(resumed, present, WARM_UP, wait=70, work=80)
    assert resumed.measured == clock.measured == clocks.Tally(4, 24.0, 8.0)
    iterations(resumed, present, 1, wait=2, work=2)
    assert resumed.measured == clocks.Tally(5, 32.0, 12.0)


class Device:
    """A device that does what is queued one after the other, and the events on it."""

    def __init__(self, present: SimpleNamespace) -> None:
        self.present, self.free, self.reset = present, 0.0, 0

    def queue(self, seconds: float) -> None:
        self.free = max(self.free, self.present.now) + seconds

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        found = SimpleNamespace(at=None)
        found.record = lambda: setattr(found, "at", max(self.free, self.present.now))
        found.query = lambda: self.present.now >= found.at
        found.elapsed_time = lambda other: 1000 * (other.at - found.at)
        return found

    def synchronize(self, _: torch.device) -> None:
        self.present.now = max(self.present.now, self.free)

    def reset_peak(self, _: torch.device) -> None:
        self.reset += 1


def test_on_cuda_waiting_is_the_time_without_work_for_the_device(
    present: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training thread waits for each batch, and the device, which is slower or faster, for few or all."""
    for work, wait, idle in ((5.0, 2.0, 0.0), (5.0, 7.0, 2.0)):
        device = Device(present)
        for name, stand_in in (
            ("Event", device.event),
            ("synchronize", device.synchronize),
            ("reset_peak_memory_stats", device.reset_peak),
        ):
            monkeypatch.setattr(torch.cuda, name, stand_in)
        clock = Clock(torch.device("cuda"))

        def loaded(wait: float = wait) -> Iterator[Batch]:
            for _ in range(WARM_UP + 20):
                present.now += wait
                yield nothing()

        batches = clock.batches(loaded())
        clock.start()
        for number in range(WARM_UP + 20):
            next(batches)
            device.queue(work)
            clock.step()
            assert device.reset == (number >= WARM_UP - 1)
        device.synchronize(clock.device)
        clock.stop()
        assert clock.timed.iterations == 20
        # where the warm-up ends, the device has nothing to do until the next batch
        assert clock.timed.data_seconds == pytest.approx(19 * idle + wait)
        assert clock.timed.seconds == pytest.approx(19 * max(work, wait) + wait + work)


class Slow(Pictures):
    """Pictures for each of which time passes."""

    def __init__(self, present: SimpleNamespace, seconds: float) -> None:
        super().__init__([(picture(number), number % 3) for number in range(64)])
        self.present, self.seconds = present, seconds

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.present.now += self.seconds
        return super().__getitem__(number)


class Work(Callback):
    """Time passes in each iteration."""

    def __init__(self, present: SimpleNamespace, seconds: float) -> None:
        self.present, self.seconds = present, seconds

    def on_step(self) -> None:
        self.present.now += self.seconds


class WorkAndStop(StopAt):
    """The same, and a stop after some iterations."""

    def __init__(self, work: Work, stop: StopSignals, iterations: int) -> None:
        super().__init__(stop, iterations)
        self.work = work

    def on_step(self) -> None:
        self.work.on_step()
        super().on_step()


def run_of(
    config: RunConfig, root: Path, present: SimpleNamespace, load: float, work: float
) -> tuple[RunDir, Result]:
    run = prepare(root, config)
    data: Any = (Slow(present, load), Pictures([(picture(0), 0)]))
    return run, train(config, run.path, data=data, callback=Work(present, work))


def records(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def test_a_run_reports_how_long_it_waited(
    present: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = custom(recipe__epochs=2, system__log_every=4)
    run, result = run_of(config, tmp_path, present, load=1.0, work=6.0)  # 4 images an iteration
    assert (result.iterations, result.train_seconds, result.data_seconds) == (32, 320.0, 128.0)
    assert result.images_per_s == round(4 / 6, 1)
    assert result.val_images == 1
    assert [record["data_seconds"] / record["seconds"] for record in records(run)] == [0.4] * 10
    told = [record.message for record in caplog.records if "waits for data" in record.message]
    assert len(told) == 1
    assert "40 % of the time" in told[0]


def test_a_run_that_seldom_waits_gives_no_warning(
    present: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, result = run_of(custom(), tmp_path, present, load=0.1, work=6.0)
    assert result.data_seconds == pytest.approx(16 * 0.4)
    assert not caplog.records


@pytest.mark.parametrize("earlier", [False, True])
def test_a_resumed_run_adds_to_its_times(earlier: bool, present: SimpleNamespace, tmp_path: Path) -> None:
    """`earlier`: from a checkpoint of an earlier version."""
    config, stop = custom(recipe__epochs=2), StopSignals()
    run = prepare(tmp_path, config)
    data: Any = (Slow(present, 1.0), Pictures([(picture(0), 0)]))
    work = Work(present, 6.0)
    with pytest.raises(Stopped):
        train(config, run.path, data=data, stop=stop, callback=WorkAndStop(work, stop, WARM_UP + 2))
    if earlier:
        path = max(run.checkpoints.glob("*.pt"))
        state = torch.load(path, weights_only=True)
        path.unlink()
        assert state.pop("clock")["timed"] == {"iterations": 2, "seconds": 20.0, "data_seconds": 8.0}
        state["seconds"] = 240.0
        Checkpoints(run.checkpoints).save(WARM_UP + 2, state)
    work.seconds = 26.0
    result = train(config, run.path, data=data, callback=work)
    after = 32 - 12 - WARM_UP
    timed, seconds, waited = (12 + after, 240 + 30 * after, 4 * after) if earlier else (
        2 + after, 20 + 30 * after, 8 + 4 * after
    )  # fmt: skip
    assert result.train_seconds == pytest.approx(32 * seconds / timed, abs=1e-2)
    assert result.data_seconds == pytest.approx(32 * waited / timed, abs=1e-2)


def test_tables_mark_rows_that_waited() -> None:
    hash = resolve(ROADMAP, "gelu", profile="digits_noisy").hash
    runs = [
        finished("gelu", seed, hash, 90.0, images_per_s=50.0, train_seconds=7200.0, data_seconds=waited)
        for seed, waited in ((0, 3600.0), (1, 0.0))
    ]
    other = resolve(ROADMAP, "layer_norm", profile="digits_noisy").hash
    runs.append(finished("layer_norm", 0, other, 91.0, train_seconds=3600.0, data_seconds=300.0))
    table = ablation_table(
        measured(ROADMAP, "digits_noisy", {}, runs), ["step", "images_per_s", "device_hours"]
    )
    rows = {row[0].strip("└ "): row[1:] for row in table.rows}
    assert rows["gelu"] == ["50.0‡", "1.50"]
    assert rows["layer_norm"][1] == "0.917"
    assert "‡" not in rows["layer_norm"][0]
    (note,) = [note for note in table.notes if note.startswith("‡")]
    assert note.endswith("leave out: gelu (25 %).")
