"""Throughput: turns and their statistics, the device's file, its tables and figure, and the command that
fills it.
"""

from __future__ import annotations

import csv
import multiprocessing
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from blocks.cost import complexity, training_macs
from blocks.model import build_model
from roadmap import STEPS_YAML
from roadmap.__main__ import parser, run
from roadmap.bench import workloads
from roadmap.bench.bench import row_format, write_report
from roadmap.bench.config import config_of, overrides_of
from roadmap.bench.figure import throughput_figure
from roadmap.bench.interleave import interleave, ratio_of, spread_of
from roadmap.bench.results import TIMM_DEFAULTS, Measurement, add_rows, merged, read_rows, slug, to_csv
from roadmap.bench.tables import device_markdown, groups_of
from roadmap.bench.workloads import build, in_float32
from roadmap.cli.arguments import select
from roadmap.cli.options import main_of
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.report.render import GLUE
from roadmap.steps import load_roadmap, load_roadmaps, resolve
from roadmap.training.device import float32_precision
from tests.helpers import commands

ROADMAPS = load_roadmaps()
STEPS = ROADMAPS["convnext_t"].steps
TIMES = st.floats(1e-6, 1e3)
QUICK = ["--profile", "digits_noisy", "--set", "model.depths=[1, 1, 1, 1]", "--seconds", "0.01"]


def row(
    step: str = "resnet50", mode: str = "train", subject: str = "ours", speed: float = 50.0, **more: Any
) -> Measurement:
    """A row that nobody measured, of 16 images unless `more` says otherwise."""
    ms = 1e3 * more.get("batch", 16) / speed
    figures: dict[str, Any] = {
        "roadmap": "convnext_t", "step": step, "mode": mode, "subject": subject,
        "precision": "bf16", "memory_format": "channels_last", "batch": 16, "image_size": 224,
        "n": 5, "ms": ms, "ms_low": 0.9 * ms, "ms_high": 1.25 * ms, "images_per_s": speed,
        "gmacs": 4.089, "memory_mb": 1234.5, "tflops": 0.41, "peak_matmul_tflops": 0.9,
        "peak_conv_tflops": 1.2, "share_of_peak": 0.34, "threads": 2,
        "hardware": "Some(R) Processor, 2 cores", "torch": "2.9", "timm": "1.0",
        "commit": "0123456789+changes", "date": "2026-01-02",
    }  # fmt: skip
    return Measurement.model_validate(figures | more)


def rival(step: str, mode: str, ratio: float, subject: str = "timm", **more: Any) -> Measurement:
    ratios = {"ratio_to": "ours bf16", "ratio": ratio, "ratio_low": 0.8 * ratio, "ratio_high": 1.25 * ratio}
    return row(step, mode, subject, 50 * ratio, **ratios, **more)


ROWS = [
    row("resnet50"),
    rival("resnet50", "train", 0.5),
    rival("resnet50", "train", 0.25, "timm_defaults", precision="fp32", memory_format="contiguous"),
    row("resnet50", "inference", speed=200.0, n=7),
    row("gelu", batch=8),
    row("gelu", "inference", share_of_peak=None, memory_mb=None),
]


# Turns


@given(st.lists(TIMES, min_size=1, max_size=20))
def test_the_interquartile_range_holds_the_median_in_any_order(values: list[float]) -> None:
    found = spread_of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.n == len(values)
    assert spread_of(values[::-1]) == found
    # a quartile lies at the value of this rank from its end, or between it and the next
    reach = (len(values) - 1) // 4 + 1
    assert sum(value < found.low for value in values) <= reach <= sum(value <= found.low for value in values)
    assert (
        sum(value > found.high for value in values) <= reach <= sum(value >= found.high for value in values)
    )


@given(st.lists(st.tuples(TIMES, st.floats(0.1, 10)), min_size=1, max_size=20))
def test_a_ratio_is_of_measurements_of_one_round(turns: list[tuple[float, float]]) -> None:
    found = ratio_of([time * factor for time, factor in turns], [time for time, _ in turns])
    expected = spread_of([factor for _, factor in turns])
    assert (found.low, found.median, found.high) == pytest.approx(
        (expected.low, expected.median, expected.high)
    )


def test_rounds_that_lack_a_measurement_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio_of([1.0], [1.0, 2.0])


def test_each_round_measures_all_and_begins_with_another() -> None:
    order: list[str] = []

    def subject(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleave({name: lambda name=name: subject(name) for name in "abc"}, seconds=0, least=4)  # type: ignore[misc]
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_rounds_continue_until_the_time_is_over() -> None:
    began = time.perf_counter()
    found = interleave({"a": time.perf_counter}, seconds=0.05, least=1)
    assert time.perf_counter() - began >= 0.05
    assert len(found["a"]) > 5


# What an iteration computes


def test_training_is_three_forward_passes_without_the_gradient_of_the_images() -> None:
    resnet, convnext = (resolve(load_roadmap(), step).ours for step in ("resnet50", "separate_downsampling"))
    assert training_macs(resnet) == 3 * complexity(resnet).macs - 112**2 * 64 * 3 * 7**2
    assert training_macs(convnext, 64) == 3 * complexity(convnext, 64).macs - 16**2 * 96 * 3 * 4**2


def test_torch_counts_the_same_where_no_convolution_is_depthwise() -> None:
    spec = resolve(load_roadmap(), "resnet50").ours
    with torch.device("meta"):
        network, images = build_model(spec).train(), torch.randn(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(network(images).sum())
    assert counter.get_total_flops() == 2 * 2 * training_macs(spec, 64)


# The file


@pytest.mark.parametrize(
    ("hardware", "threads", "name"),
    [
        ("Intel(R) Xeon(R) Processor, 2 cores", 2, "intel-xeon-processor-2-threads"),
        ("AMD EPYC 7B13, 1 core", 1, "amd-epyc-7b13-1-thread"),
        ("NVIDIA H100 80GB HBM3", None, "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_device_has_a_file(hardware: str, threads: int | None, name: str) -> None:
    assert slug(hardware, threads) == name


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "device.csv"
    odd = row(step="gelu@order7", profile='a "b", c', speed=1 / 3, commit=None, memory_mb=None)
    assert add_rows(path, [odd, *ROWS], "convnext_t", STEPS) == read_rows(path)
    assert set(read_rows(path)) == {odd, *ROWS}
    assert next(csv.reader(path.open(encoding="utf-8")))[:4] == ["roadmap", "step", "profile", "mode"]


def test_new_rows_replace_those_with_their_keys_and_stand_in_the_order_of_the_path() -> None:
    others = [row(step, roadmap="family") for step in ("convnext_s", "convnext_t")]
    old = [*others, row("gelu"), row("resnet50", batch=32), row("resnet50")]
    new = [
        row("resnet50", speed=99.0),
        row("stage_ratio"),
        row("resnet50", "inference"),
        rival("resnet50", "train", 2.0),
    ]
    found = merged(old, new, "convnext_t", STEPS)
    assert [(one.step, one.mode, one.batch, one.subject) for one in found] == [
        ("resnet50", "train", 16, "ours"),
        ("resnet50", "train", 16, "timm"),
        ("resnet50", "train", 32, "ours"),
        ("resnet50", "inference", 16, "ours"),
        ("stage_ratio", "train", 16, "ours"),
        ("gelu", "train", 16, "ours"),
        ("convnext_s", "train", 16, "ours"),  # another roadmap's rows stay in their own order
        ("convnext_t", "train", 16, "ours"),
    ]
    assert found[0].images_per_s == 99
    assert merged(found, new, "convnext_t", STEPS) == found


def test_a_step_with_other_values_is_another_row() -> None:
    wide = row("gelu", speed=20.0, overrides="model.width_mult=2.0")
    assert merged([row("gelu"), wide], [row("gelu", speed=60.0)], "convnext_t", STEPS) == [
        row("gelu", speed=60.0),
        wide,
    ]


def test_a_file_without_overrides_is_read_and_has_them_from_then_on(tmp_path: Path) -> None:
    lines = list(csv.reader(TEXT.splitlines()))
    place, path = lines[0].index("overrides"), tmp_path / "device.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*line[:place], *line[place + 1 :]] for line in lines)
    assert read_rows(path) == ROWS
    new = row("gelu", overrides="model.width_mult=2.0")
    assert set(add_rows(path, [new], "convnext_t", STEPS)) == {*ROWS, new} == set(read_rows(path))


def _add(folder: Path, number: int) -> None:
    for batch in range(1, 6):
        add_rows(folder / "device.csv", [row(batch=10 * number + batch)], "convnext_t", STEPS)


def test_nothing_is_lost_where_many_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [one.batch for one in read_rows(tmp_path / "device.csv")] == [
        10 * number + batch for number in range(4) for batch in range(1, 6)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"device.csv", ".device.csv.lock"}


TEXT = to_csv(ROWS)


@given(st.integers(0, len(TEXT) - 1))
def test_a_truncated_file_is_refused_or_ends_with_a_complete_row(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.csv"
    path.write_text(TEXT[:length], encoding="utf-8")
    said, found = "", []
    try:
        found = read_rows(path)
    except ConfigError as error:
        said = str(error)
    assert to_csv(found) == TEXT[:length] or re.fullmatch(
        r".*torn\.csv is not a table of this command: [^\n]+", said
    )


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("roadmap,step", "roadmap,steps", "its columns are not roadmap, step"),
        (",50.0,", ",fast,", "line 2, images_per_s: input should be a valid number"),
        (",train,ours,", ",training,ours,", "line 2, mode: input should be 'train', 'inference' or 'loop'"),
        (",16,224,", ",0,224,", "line 2, batch: "),
        ("resnet50,,train", "resnet50,train", "line 2 does not have 31 columns"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_stays(
    tmp_path: Path, before: str, after: str, why: str
) -> None:
    path = tmp_path / "device.csv"
    assert before in TEXT
    path.write_text(text := TEXT.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(why)):
        add_rows(path, ROWS, "convnext_t", STEPS)
    assert path.read_text(encoding="utf-8") == text


# Tables and figures


def cells(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the table under a title."""
    lines = text.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, found, strict=True)) for found in body]


def test_the_table_of_training_names_what_was_measured() -> None:
    text = device_markdown(ROWS, ROADMAPS)
    assert text.startswith("# Throughput on Some(R) Processor, 2 cores, 2 threads\n")
    resnet, gelu = cells(text, "ResNet-50 to ConvNeXt-T: training in bf16")
    assert resnet == {
        "step": "ResNet-50", "batch": "16", "GMACs": "4.09", "images/s": "50.0",
        "IQR": "40.0 to 55.6", "TFLOP/s": "0.41", "% of peak": "34 %", "MiB": "1,234",
        "timm": "25.0", "ours / timm": "2.00 (1.60 to 2.50)", "timm's MiB": "1,234",
        "timm's defaults": "12.5", "ours / defaults": "4.00 (3.20 to 5.00)",
    }  # fmt: skip
    assert (gelu["step"], gelu["batch"], gelu["ours / timm"]) == ("ReLU to GELU", "8", "–")
    assert "- The same in all rows: 224 px, n = 5." in text
    assert "commit 0123456+changes, 2026-01-02" in text


def test_a_table_has_no_column_of_which_nothing_is_known() -> None:
    resnet, gelu = cells(device_markdown(ROWS, ROADMAPS), "ResNet-50 to ConvNeXt-T: inference in bf16")
    assert (resnet["n"], gelu["n"], gelu["% of peak"], gelu["MiB"]) == ("7", "5", "–", "–")
    assert "timm" not in resnet


def test_the_family_stands_beside_what_was_published() -> None:
    rows = [row(step, "inference", roadmap="family") for step in ("convnext_t", "isotropic_s")]
    text = device_markdown(rows, ROADMAPS)
    found = cells(text, "the ConvNeXt family: inference in bf16")
    assert [(one["step"], one["images/s"], one["published"]) for one in found[:3]] == [
        ("ConvNeXt-T", "50.0", "1,943.5"),
        ("isotropic ConvNeXt-S", "50.0", "–"),
        ("Swin-T", "–", "1,325.6"),
    ]
    assert (
        "Published: images/s in inference on an A100 with TF32 and channels_last (arXiv 2201.03545, Table"
        " 12)." in text
    )
    assert (
        "published"
        not in cells(
            device_markdown([row("convnext_t", roadmap="family")], ROADMAPS),
            "the ConvNeXt family: training in bf16",
        )[0]
    )


def test_a_throughput_of_no_step_is_refused_where_it_stands(tmp_path: Path) -> None:
    path, text = tmp_path / "steps.yaml", STEPS_YAML.read_text(encoding="utf-8")
    lines = text.splitlines()
    line = lines.index("        convnext_xl_384: 147.4")
    lines[line] = "        convnext_xxl: 147.4"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_roadmap(path, "family")
    said = (
        f":{line + 1}:9: roadmap 'family': throughput: unknown step 'convnext_xxl'; did you mean"
        " 'convnext_xl'?"
    )
    assert [str(problem).removeprefix(str(path)) for problem in refused.value.problems] == [said]


def test_what_was_set_is_in_the_title_and_apart_from_the_step_itself() -> None:
    given = "model.width_mult=0.5;system.compile=true"
    rows = [*ROWS, row("resnet50", speed=99.0, overrides=given)]
    (plain, other), text = groups_of(rows, ROADMAPS), device_markdown(rows, ROADMAPS)
    assert plain == groups_of(ROWS, ROADMAPS)[0]
    assert cells(text, "ResNet-50 to ConvNeXt-T: training in bf16")[0]["images/s"] == "50.0"
    title = "ResNet-50 to ConvNeXt-T, model.width_mult=0.5, system.compile=true"
    assert cells(text, f"{title}: training in bf16")[0]["images/s"] == "99.0"
    figure = throughput_figure(other)
    assert figure is not None
    assert figure.get_suptitle().replace("\n", " ").startswith(f"{title}: Some(R)")
    (long,) = groups_of([row(overrides=f"{given};recipe.lr={'1' * 300}")], ROADMAPS)
    assert len({plain.name, other.name, long.name}) == 3
    assert re.fullmatch(r"convnext_t-[a-z0-9-]{1,120}-bf16", long.name)


def test_what_was_published_does_not_stand_beside_another_network() -> None:
    rows = [row("convnext_t", "inference", roadmap="family", overrides="model.width_mult=0.5")]
    assert "ublished" not in device_markdown(rows, ROADMAPS)


def test_the_loop_stands_beside_the_bare_step() -> None:
    ratio: dict[str, Any] = {"ratio_to": "bare bf16", "ratio": 0.8, "ratio_low": 0.75, "ratio_high": 0.85}
    pair = [
        row(mode="loop", subject="loop", speed=40.0, **ratio),
        row(mode="loop", subject="bare", speed=50.0),
    ]
    (found,) = cells(device_markdown(pair, ROADMAPS), "ResNet-50 to ConvNeXt-T: the training loop in bf16")
    assert (found["images/s"], found["bare step"], found["loop / bare"]) == (
        "40.0",
        "50.0",
        "0.80 (0.75 to 0.85)",
    )
    assert throughput_figure(groups_of(pair, ROADMAPS)[0]) is None


def test_the_figure_shows_each_speed_and_its_spread() -> None:
    (group,) = groups_of(ROWS, ROADMAPS)
    figure = throughput_figure(group)
    assert figure is not None
    training, inference = figure.axes
    assert [label.get_text() for label in training.get_yticklabels()] == ["ResNet-50", "ReLU to GELU"]
    assert [bar.get_width() for bar in training.patches] == [50, 50]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in inference.patches] == [200, 50]  # type: ignore[attr-defined]
    assert [note.get_text() for note in training.texts] == ["50.0 · 34 %", "50.0 · 34 %, batch 8"]
    assert [note.get_text() for note in inference.texts] == ["200 · 34 %", "50.0"]
    marks = {line.get_xdata()[0] for line in training.lines if line.get_marker() == "D"}  # type: ignore[index]
    assert marks == {25.0, 12.5}
    paths: list[Any] = [path for line in training.collections for path in line.get_paths()]
    ends = {round(path.vertices[-1, 0], 3) for path in paths}
    assert ends == {round(speed / 0.9, 3) for speed in (50, 25, 12.5)}


def test_networks_of_several_sizes_and_batches_have_a_line_each() -> None:
    rows = [
        row(),
        row("resnet50", "inference", batch=8),
        row(image_size=160),
        row(batch=32),
        row("gelu", "inference"),
        row("gelu", "inference"),
    ]
    figure = throughput_figure(groups_of(merged([], rows, "convnext_t", STEPS), ROADMAPS)[0])
    assert figure is not None
    assert f"224{GLUE}px{GLUE}unless{GLUE}noted" in figure.get_suptitle().replace("\n", " ")
    training, inference = figure.axes
    assert [label.get_text() for label in training.get_yticklabels()] == [
        "ResNet-50, 160 px",
        "ResNet-50",
        "ResNet-50",
        "ReLU to GELU",
    ]
    assert [round(bar.get_y() + 0.35) for bar in training.patches] == [0, 1, 2]  # type: ignore[attr-defined]
    assert [note.get_text() for note in training.texts] == [
        "50.0 · 34 %",
        "50.0 · 34 %",
        "50.0 · 34 %, batch 32",
    ]
    assert [round(bar.get_y() + 0.35) for bar in inference.patches] == [1, 3]  # type: ignore[attr-defined]
    assert [note.get_text() for note in inference.texts] == ["50.0 · 34 %, batch 8", "50.0 · 34 %"]


def test_a_report_is_made_of_the_file_alone_and_the_same_each_time(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "other"):
        path = tmp_path / folder / "device.csv"
        path.parent.mkdir()
        add_rows(path, ROWS, "convnext_t", STEPS)
        made.append({one.name: one.read_bytes() for one in write_report(path, ROADMAPS)})
    figures = [f"device-convnext_t-bf16.{kind}" for kind in ("png", "svg", "pdf")]
    assert list(made[0]) == ["device.md", *figures]
    assert made[0] == made[1]


# The command


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["roadmap", "bench", *words])
    return main_of(parser(), run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet5"], "steps.yaml: unknown step 'resnet5'; did you mean 'resnet50'?"),
        (["gelu", "--batch", "0"], "--batch must be at least 1, not 0"),
        (["gelu", "--seconds", "nan"], "--seconds must be more than 0, not nan"),
        (
            ["gelu", "--loop", "--against", "timm"],
            "--against cannot be used with --loop, since timm has no such loop",
        ),
        (
            ["gelu", "--loop", "--mode", "inference"],
            "--mode cannot be used with --loop, which measures the training loop",
        ),
        (["gelu", "--loop", "--batch", "3", "--profile", "synthetic"], "must be even, not 3"),
        (
            ["separate_downsampling", "--set", "data.image_size=16"],
            "data.image_size: an image of 16 pixels is too small for this network",
        ),
        (
            ["resnet50", *QUICK, "--set", "data.image_size=8", "--batch", "1"],
            "--batch the network rejects it: Expected more than 1 value",
        ),
        (
            ["gelu", "--set", "recipe.precision=int8"],
            "recipe.precision: input should be 'fp32', 'tf32', 'bf16' or 'fp16', not 'int8'",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, *words, "--out", str(tmp_path)) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert command(monkeypatch, "gelu", "--out", str(tmp_path / "file" / "in")) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'file' / 'in'} cannot be written: Not a directory\n"


def test_a_network_too_large_for_memory_is_tried_with_half_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "resnet50",
        *QUICK,
        "--mode",
        "inference",
        "--batch",
        "2",
        "--set",
        "data.image_size=4000000",
        "--out",
        str(tmp_path),
    ]
    assert command(monkeypatch, *words) == 2
    output = capsys.readouterr()
    assert "resnet50, inference: out of memory with 2 images at a time; measured with 1" in output.out
    assert (
        output.err == "step 'resnet50' is too large for this device: out of memory with 1 images at a time\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], None),
        (["system.compile=true", "model.width_mult=.50"], "model.width_mult=0.5;system.compile=default"),
        (["model.width_mult=1"], "model.width_mult=1.0"),
        (["model.depths=[1,1, 1,1]"], "model.depths=[1, 1, 1, 1]"),
        (["recipe.precision=fp32", "data.image_size=64", "system.threads=1", "recipe.global_batch=8"], None),
        (["system.data_dir=/data", "system.stage_dir=/tmp"], None),
        (["recipe.mixup=0.5", "recipe.local_batch=32"], None),  # the bare step has neither
    ],
)
def test_overrides_are_reported_in_one_spelling(words: list[str], told: str | None) -> None:
    arguments = parser().parse_args(["bench", *(word for value in words for word in ("--set", value))])
    assert overrides_of(config_of(select(arguments), "gelu", arguments, 16), arguments) == told


def test_the_loop_has_mixup_and_a_local_batch() -> None:
    arguments = parser().parse_args(
        ["bench", "--loop", "--set", "recipe.mixup=0.5", "--set", "recipe.local_batch=32"]
    )
    assert (
        overrides_of(config_of(select(arguments), "gelu", arguments, None), arguments)
        == "recipe.local_batch=32;recipe.mixup=0.5"
    )
    arguments.batch = 64
    assert overrides_of(config_of(select(arguments), "gelu", arguments, 64), arguments) == "recipe.mixup=0.5"


def test_measuring_with_other_values_leaves_the_step_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("roadmap.bench.bench.memory_mb", lambda *_: None)  # takes a process, and has its test
    words = ["gelu", *QUICK, "--mode", "inference", "--batch", "2", "--out", str(tmp_path)]
    assert command(monkeypatch, *words) == 0
    assert command(monkeypatch, *words, "--set", "system.grad_checkpointing=true") == 0
    rows = read_rows(next(tmp_path.glob("*.csv")))
    depths = "model.depths=[1, 1, 1, 1]"
    assert [one.overrides for one in rows] == [depths, f"{depths};system.grad_checkpointing=true"]


def test_networks_are_measured_beside_timms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = ["model.depths=[1, 1, 1, 1]", "data.image_size=32", "model.num_classes=10"]
    words = [
        "separate_downsampling",
        "--batch",
        "2",
        "--seconds",
        "0.01",
        "--against",
        "timm",
        "--mode",
        "train",
        "--out",
        str(tmp_path),
    ]
    assert command(monkeypatch, *words, *(word for value in small for word in ("--set", value))) == 0
    (path,) = tmp_path.glob("*.csv")
    ours, timm, defaults = read_rows(path)
    assert [
        (one.subject, one.precision, one.memory_format, one.ratio_to) for one in (ours, timm, defaults)
    ] == [
        ("ours", "bf16", "channels_last", None),
        ("timm", "bf16", "channels_last", "ours bf16"),
        ("timm_defaults", "fp32", "contiguous", "ours bf16"),
    ]
    for one in (ours, timm, defaults):
        assert one.n >= 5
        assert one.ms_low <= one.ms <= one.ms_high
        assert one.images_per_s == pytest.approx(2e3 / one.ms)
        assert one.peak_matmul_tflops is not None
        assert one.peak_conv_tflops is not None
        if sys.platform == "linux":  # weights, gradients and two moments, at the least
            assert one.memory_mb is not None
            assert one.memory_mb > 4 * 4 * 4_000_000 / 2**20
    spec = resolve(
        load_roadmap(),
        "separate_downsampling",
        overrides={"model.depths": (1, 1, 1, 1), "model.num_classes": 10},
    ).ours
    assert ours.gmacs == pytest.approx(training_macs(spec, 32) / 1e9)
    assert path.with_suffix(".md").exists()


@pytest.mark.parametrize("has_tf32", [True, False])
def test_timms_defaults_are_measured_in_the_precision_that_their_row_names(
    has_tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def theirs(config: RunConfig, *_: Any) -> Any:
        def run() -> None:
            seen.extend({config.recipe.precision, *float32_precision().values()})

        run()
        return run

    monkeypatch.setattr(workloads, "has_tf32", lambda device: has_tf32)
    monkeypatch.setattr(
        workloads, "theirs_inferring", lambda config, device, _: theirs(in_float32(config, device))
    )
    config = resolve(load_roadmap(), "gelu", overrides={"recipe.precision": "bf16"})
    build(TIMM_DEFAULTS, "inference", config, torch.device("cpu"))()
    named = row_format(TIMM_DEFAULTS, "bf16", torch.device("cpu"))["precision"]
    assert named == ("tf32" if has_tf32 else "fp32")
    assert set(seen) == ({"tf32"} if has_tf32 else {"fp32", "ieee"})


def test_a_gpus_peak_is_measured_on_more_than_it_does_in_no_time() -> None:
    with FakeTensorMode():
        probe = workloads.matmul(torch.device("cuda"), torch.bfloat16)
        product: Any = probe.run()
    assert probe.flop == 2 * 8192**3
    assert product.shape == (8192, 8192)


def test_the_loop_is_measured_beside_the_bare_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (
        command(
            monkeypatch,
            "gelu",
            *QUICK,
            "--set",
            "data.copies=1",
            "--loop",
            "--batch",
            "32",
            "--out",
            str(tmp_path),
        )
        == 0
    )
    loop, bare = read_rows(next(tmp_path.glob("*.csv")))
    assert (loop.subject, loop.ratio_to, loop.batch, loop.profile) == (
        "loop",
        "bare fp32",
        32,
        "digits_noisy",
    )
    assert (bare.subject, bare.ratio, bare.share_of_peak) == ("bare", None, None)
    assert loop.ratio is not None
    assert loop.ratio_low is not None
    assert loop.ratio_high is not None
    assert 0 < loop.ratio_low <= loop.ratio <= loop.ratio_high


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    words = ["resnet50", "gelu", *QUICK, "--set", "data.copies=1", "--loop", "--out", str(tmp_path)]
    process = commands.Command([sys.executable, "-m", "roadmap", "bench", *words])
    process.wait_for("images/s")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    (path,) = tmp_path.glob("*.csv")
    assert {one.step for one in read_rows(path)} == {"resnet50"}
    assert "ResNet-50" in path.with_suffix(".md").read_text(encoding="utf-8")
