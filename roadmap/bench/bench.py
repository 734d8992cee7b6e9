"""`python -m roadmap bench`: measures steps one after another, and saves the rows of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from roadmap.bench.config import check_options, config_of, overrides_of
from roadmap.bench.figure import throughput_figure
from roadmap.bench.interleave import LEAST, SHORTEST, interleave, ratio_of, spread_of, timed
from roadmap.bench.memory import memory_mb
from roadmap.bench.options import BATCH, BATCHES, MODES
from roadmap.bench.results import (
    BARE,
    LOOP,
    OURS,
    TIMM,
    TIMM_DEFAULTS,
    Measurement,
    add_rows,
    merged,
    read_rows,
    slug,
)
from roadmap.bench.tables import device_markdown, groups_of, tables_of
from roadmap.bench.workloads import (
    build,
    convolution,
    default_precision,
    free,
    has_timm,
    loop_and_bare,
    matmul,
)
from roadmap.cli.arguments import Selection, select
from roadmap.config import RunConfig
from roadmap.deltas import Roadmap
from roadmap.errors import config_error, relative
from roadmap.files import write_atomic, write_errors
from roadmap.lease import now
from roadmap.networks import costs_of
from roadmap.provenance import commit
from roadmap.report.figures.style import save
from roadmap.steps import load_roadmaps
from roadmap.terminal import console, table
from roadmap.training.compiled import CompilerFailed
from roadmap.training.device import PRECISIONS, OutOfMemory, hardware, oom_hint, select_device, set_up

MATMUL, CONVOLUTION = "matmul", "convolution"
Times = Mapping[str, Sequence[float]]


def bench(arguments: argparse.Namespace) -> int:
    """Measures the steps that the command line chooses; ConfigError before the first if it is invalid."""
    selection = select(arguments)
    roadmap = selection.roadmap
    steps = arguments.steps or list(roadmap.steps)
    check_options(arguments)
    first = config_of(selection, steps[0], arguments, arguments.batch)
    if first.system.compile == "try":
        raise config_error(
            "system.compile",
            "is 'try', but a benchmark needs to know whether it is compiled: set off or another mode",
        )
    device = select_device(first)
    batch = arguments.batch or (None if arguments.loop else BATCHES.get(device.type, BATCH))
    configs = [config_of(selection, step, arguments, batch) for step in dict.fromkeys(steps)]
    set_up(first, device)
    meter = Meter(selection, arguments, device)
    console().print(f"{meter.place['hardware']}: {relative(meter.path)}", soft_wrap=True)
    read_rows(meter.path)  # raises before anything is measured if the file has another format
    try:
        for config in configs:
            for mode in ("loop",) if arguments.loop else dict.fromkeys(arguments.mode or MODES):
                meter.measure(config, mode)
    finally:
        meter.report()
    return 0


class Meter:
    """Measures steps of a roadmap on a device; each row is appended to the file at `path` at once."""

    def __init__(self, selection: Selection, arguments: argparse.Namespace, device: torch.device) -> None:
        self.selection = selection
        self.roadmap = selection.roadmap
        self.arguments = arguments
        self.device = device
        threads = torch.get_num_threads() if device.type == "cpu" else None
        self.place = {
            "hardware": hardware(device),
            "threads": threads,
            "torch": torch.__version__,
            "timm": version("timm"),
        }
        self.place["commit"] = commit()
        self.path: Path = arguments.out / f"{slug(hardware(device), threads)}.csv"
        self.shortest = min(SHORTEST, arguments.seconds / LEAST)
        self.rows: list[Measurement] = []

    def measure(self, config: RunConfig, mode: str) -> None:
        """Measures a step in a mode, with the batch halved while memory is short; prints a line per row."""
        while True:
            try:
                with oom_hint(f"{config.recipe.global_batch} images", []):
                    rows = self._loop(config) if mode == "loop" else self._networks(config, mode)
                break
            except OutOfMemory as error:
                reason, half = str(error).partition(";")[0], config.recipe.global_batch // 2
            free(self.device)
            if mode == "loop" or half < 1:
                raise config_error(f"step '{config.step}'", f"is too large for this device: {reason}")
            console().print(f"{config.step}, {mode}: {reason}; measured with {half}", soft_wrap=True)
            config = config_of(self.selection, config.step, self.arguments, half)
        add_rows(self.path, rows, self.roadmap.name, self.roadmap.steps)
        self.rows += rows
        for row in rows:
            console().print(line(row), soft_wrap=True)

    def _networks(self, config: RunConfig, mode: str) -> list[Measurement]:
        """A step's network, timm's, and the device's peak, all interleaved."""
        rivals = (TIMM, TIMM_DEFAULTS) if self.arguments.against and has_timm(config) else ()
        names = (OURS, *rivals)
        dtype = PRECISIONS[config.recipe.precision]
        probes = {MATMUL: matmul(self.device, dtype), CONVOLUTION: convolution(self.device, dtype)}
        runs = _built(names, mode, config, self.device)
        names = tuple(runs)
        runs |= {name: probe.run for name, probe in probes.items()}
        measurements = {name: timed(run, self.device, self.shortest) for name, run in runs.items()}
        times = interleave(measurements, self.arguments.seconds * len(measurements))
        del runs, measurements
        free(self.device)
        memory = {name: memory_mb(name, mode, config, self.device) for name in names}
        peaks = {
            name: [probe.flop / seconds / 1e12 for seconds in times[name]] for name, probe in probes.items()
        }
        return [self._row(config, mode, name, times, peaks, memory[name], OURS) for name in names]

    def _loop(self, config: RunConfig) -> list[Measurement]:
        """The training loop and the bare step."""
        with loop_and_bare(config, self.device, self.shortest) as measurements:
            times = interleave(measurements, self.arguments.seconds * len(measurements))
        return [self._row(config, "loop", name, times, {}, None, BARE) for name in (LOOP, BARE)]

    def _row(
        self,
        config: RunConfig,
        mode: str,
        name: str,
        times: Times,
        peaks: Times,
        memory: float | None,
        other: str,
    ) -> Measurement:
        recipe, size, took = config.recipe, config.data.image_size, spread_of(times[name])
        cost, training = costs_of(config)
        macs = cost.macs if mode == "inference" else training
        rates = [2e-12 * macs * recipe.global_batch / seconds for seconds in times[name]]
        found = self.place | _against(times, name, other, recipe.precision) | _peak(rates, peaks)
        return Measurement.model_validate(
            found
            | config.model_dump(include={"roadmap", "step", "profile"})
            | {"mode": mode, "subject": name, "batch": recipe.global_batch, "image_size": size, "n": took.n}
            | {"overrides": overrides_of(config, self.arguments)}
            | row_format(name, recipe.precision, self.device)
            | {"ms": 1e3 * took.median, "ms_low": 1e3 * took.low, "ms_high": 1e3 * took.high}
            | {"images_per_s": recipe.global_batch / took.median, "memory_mb": memory or None}
            | {"gmacs": macs / 1e9, "tflops": spread_of(rates).median, "date": now()}
        )

    def report(self) -> None:
        """Prints the tables of the new rows, and writes the device's tables and figures."""
        if not self.rows:
            return
        roadmaps = load_roadmaps(self.arguments.steps_file) | {self.roadmap.name: self.roadmap}
        for made in tables_of(merged([], self.rows, self.roadmap.name, self.roadmap.steps), roadmaps):
            console().print(table(made.heads, made.rows, made.title))
        for path in write_report(self.path, roadmaps):
            console().print(relative(path), soft_wrap=True)


def write_report(path: Path, roadmaps: Mapping[str, Roadmap]) -> list[Path]:
    """Writes the Markdown beside a CSV file, and a figure for each group that has one; returns the paths.

    ConfigError if the file has another format, or the folder cannot be written to.
    """
    rows, made = read_rows(path), [path.with_suffix(".md")]
    with write_errors(path.parent):
        write_atomic(made[0], device_markdown(rows, roadmaps))
        for group in groups_of(rows, roadmaps):
            figure = throughput_figure(group)
            if figure is not None:
                made += save(figure, path.with_name(f"{path.stem}-{group.name}"))
    return made


def _built(
    names: Sequence[str], mode: str, config: RunConfig, device: torch.device
) -> dict[str, Callable[[], object]]:
    """An iteration of each subject, without timm's networks that PyTorch compiles wrong.

    ConfigError if ours is compiled wrong.
    """
    runs: dict[str, Callable[[], object]] = {}
    for name in names:
        try:
            runs[name] = build(name, mode, config, device)
        except CompilerFailed as error:
            if name == OURS:
                raise config_error(
                    f"{config.step}, system.compile", f"cannot be measured: {error}"
                ) from error
            console().print(
                f"{config.step}, {mode}: {name} is skipped because it is compiled wrong: {error}",
                soft_wrap=True,
            )
    return runs


def _against(times: Times, name: str, other: str, precision: str) -> dict[str, Any]:
    """The ratio of throughputs."""
    if name == other:
        return {}
    ratio = ratio_of(times[other], times[name])
    return {
        "ratio_to": f"{other} {precision}",
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def _peak(rates: Sequence[float], peaks: Times) -> dict[str, Any]:
    """Both peaks, and the part of the larger one that was reached, round by round."""
    if not peaks:
        return {}
    medians = {name: spread_of(values).median for name, values in peaks.items()}
    largest = max(medians, key=lambda name: medians[name])
    return {
        "peak_matmul_tflops": medians[MATMUL],
        "peak_conv_tflops": medians[CONVOLUTION],
        "share_of_peak": ratio_of(rates, peaks[largest]).median,
    }


def row_format(name: str, precision: str, device: torch.device) -> dict[str, str]:
    """A subject's precision and memory format."""
    if name != TIMM_DEFAULTS:
        return {"precision": precision, "memory_format": "channels_last"}
    return {"precision": default_precision(device), "memory_format": "contiguous"}


def line(row: Measurement) -> str:
    """A row as a line that is printed during the measurement."""
    low, high = row.throughput
    words = (
        f"{row.step:<24} {row.mode:<9} {row.subject:<13} {row.precision} {row.batch:>4} x"
        f" {row.image_size} px "
    )
    words += f"{row.images_per_s:>10,.1f} images/s ({low:,.1f} to {high:,.1f}, n = {row.n})"
    if row.share_of_peak is not None:
        words += f", {100 * row.share_of_peak:.0f} % of peak FLOP/s"
    if row.memory_mb is not None:
        words += f", {row.memory_mb:,.0f} MiB"
    if row.ratio is not None:
        words += f", {row.ratio:.3f} x {row.ratio_to} ({row.ratio_low:.3f} to {row.ratio_high:.3f})"
    return words
