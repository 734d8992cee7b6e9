"""The same table goes into a paper, a talk and a browser, and in full precision into a program.

`python -m tests.test_tables` writes the golden files anew.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from roadmap import ROOT
from roadmap.errors import ConfigError
from roadmap.report.ablation import Ablation, measured, published
from roadmap.report.columns import COLUMNS, _folded
from roadmap.report.stats import Difference
from roadmap.report.tables import ablation_table, to_frame, to_json, write_tables
from roadmap.steps import load_roadmap, resolve
from tests.helpers.reports import finished

ROADMAP = load_roadmap()
GOLDEN = {"published": ROOT / "reports/paper/convnext_t", "measured": ROOT / "tests/golden/tables"}
KINDS = ["md", "csv", "json", "tex", "html"]
HOSTILE = (
    r"""<script>alert("1")</script> & 100 % of $a_b^{c}$ # ~ \input{x} | *a* `b` [c](javascript:d) """
    r"""-- ''e'' Δ±×→−–†…é 漢😀"""
)
GPU = {"hardware": "8 x A100", "peak_memory_mb": 20480.25, "processes": 8, "train_seconds": 45000.5}
TOP1: dict[str, list[float | None]] = {
    "resnet50": [80.12345678901234, 81.25, 79.5],
    "enhanced_recipe": [83.12345678, 84.75, 82.0],
    "stage_ratio": [83.5, 85.0],
    "patchify_stem": [83.9, None, 84.3],
    "increase_width": [None, None, None],
    "kernel_7": [85.1, 85.1, 85.1],
    "kernel_9": [86.87654321],
    "gelu": [85.1, 85.2, 85.3],
    "fewer_activations": [90.1, 90.3, 90.2],
}


@cache
def of_runs() -> Ablation:
    """Rows that are whole, or of few seeds, diverged, missing, of mixed hardware, with EMA; and texts against
    every format.
    """
    runs = []
    for step, values in TOP1.items():
        hash = resolve(ROADMAP, step, profile="digits_noisy").hash
        for seed, top1 in enumerate(values):
            more = GPU | {"ema_top1": None if top1 is None or step != "gelu" else top1 + 0.5}
            more |= {"hardware": "A100"} if (step, seed) == ("kernel_7", 1) else {}
            runs.append(finished(step, seed, hash, top1, **more))
    found = measured(ROADMAP, "digits_noisy", {}, runs, adjusted=True)
    rows = [replace(row, title=HOSTILE, change=HOSTILE) if row.step == "gelu" else row for row in found.rows]
    return replace(found, rows=tuple(rows), title=f"{found.title}: {HOSTILE}", notes=[*found.notes, HOSTILE])


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "published": cache(lambda: published(ROADMAP)),
    "measured": of_runs,
}


def rounded(text: str) -> str:
    """The last digits of what is computed with logarithms and the like are another machine's own."""
    return re.sub(r"\d+\.\d{9,}(e-?\d+)?", lambda found: f"{float(found[0]):.9g}", text)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_files_are_as_they_were(name: str, tmp_path: Path) -> None:
    written = write_tables(ABLATIONS[name](), tmp_path / "new" / "folder")
    assert [path.name for path in written] == [f"ablation.{kind}" for kind in KINDS]
    for path in written:
        golden = (GOLDEN[name] / path.name).read_text(encoding="utf-8")
        assert rounded(path.read_text(encoding="utf-8")) == rounded(golden), (
            "look at it, then `python -m tests.test_tables`"
        )


def test_chosen_columns_come_in_their_order_and_once() -> None:
    table = ablation_table(of_runs(), ["top1", "step", "top1"])
    assert [column.key for column in table.columns] == ["top1", "step"]
    assert table.rows[0] == ["80.29 ± 0.89", "resnet50"]
    assert not any("same in all rows" in note for note in table.notes)


def test_every_column_and_its_key_are_documented() -> None:
    page = (ROOT / "docs/reports.md").read_text(encoding="utf-8")
    tables = "".join(line for line in page.splitlines(keepends=True) if line.startswith("| "))
    for key, column in COLUMNS.items():
        assert f"`{key}`" in tables
        assert column.head in tables


def test_the_note_on_differences_is_below_tables_that_have_them() -> None:
    noted = [
        any(note.startswith("Δ ") for note in ablation_table(of_runs(), keys).notes)
        for keys in (None, ["step", "delta"], ["step", "resolved"], ["step", "top1"])
    ]
    assert noted == [True, True, True, False]


def test_a_column_that_there_is_not_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--columns.*unknown column 'topl'.*top1"):
        write_tables(of_runs(), tmp_path / "out", ["step", "topl"])
    assert not (tmp_path / "out").exists()


def test_columns_for_readers_leave_the_data_files_unchanged(tmp_path: Path) -> None:
    every, few = (
        write_tables(of_runs(), tmp_path / name, keys)
        for name, keys in (("every", None), ("few", ["step", "n"]))
    )
    assert {
        one.suffix for one, other in zip(every, few, strict=True) if one.read_bytes() == other.read_bytes()
    } == {".csv", ".json"}


def test_all_columns_are_those_with_content_and_what_is_the_same_in_all_rows_is_a_note() -> None:
    table = ablation_table(of_runs(), ["all"])
    keys = {column.key for column in table.columns}
    assert keys == COLUMNS.keys() - {
        "epochs", "global_batch", "image_size", "val_images", "gap", "reached",
    }  # fmt: skip
    assert "The same in all rows: 3 epochs; global batch 64; images of 32 px." in table.notes
    assert not any("except" in note for note in table.notes)
    assert ablation_table(of_runs(), ["step", "all"]) == table


def test_warnings_of_columns_that_are_not_shown_are_notes() -> None:
    ablation = of_runs()
    of_gelu = ablation.row("gelu").runs[0]
    assert of_gelu.result is not None
    slow = of_gelu.result.model_copy(update={"data_seconds": 20000.0, "epochs": 5, "val_images": 9999})
    others = [
        replace(run, result=run.result and run.result.model_copy(update={"val_images": 10_000}))
        for row in ablation.rows
        for run in row.runs
        if row.step != "gelu"
    ]
    table = ablation_table(measured(ROADMAP, "digits_noisy", {}, [*others, replace(of_gelu, result=slow)]))
    assert [column.key for column in table.columns] == [
        "step", "change", "n", "top1", "delta", "resolved", "gmacs", "params", "paper_delta",
    ]  # fmt: skip
    found = {
        "Diverged, and in no mean: patchify_stem (1), increase_width (3).",
        "† Runs of a row, or of it and its parent, that differ in more than the step: kernel_7 (hardware);"
        " gelu (hardware).",
        "Training waited for data, a share of its time that images/s and device-hours leave out:"
        " gelu (44 %).",
        "3 epochs, except gelu (5).",
        "10000 test images, except gelu (9999).",
        "The same in all rows: global batch 64; images of 32 px.",
        "Runs of a step: 3 pending, except resnet50, enhanced_recipe, kernel_7, fewer_activations (3 done);"
        " kernel_9, gelu (1 done, 2 pending); stage_ratio (2 done, 1 pending); patchify_stem (2 done, 1"
        " diverged); increase_width (3 diverged).",
    }
    assert found - set(table.notes) == set()


def test_a_note_counts_one_epoch() -> None:
    assert _folded(COLUMNS["epochs"], "10") == "10 epochs"
    assert _folded(COLUMNS["epochs"], "1") == "1 epoch"
    assert _folded(COLUMNS["val_images"], "1") == "1 test image"
    assert _folded(COLUMNS["global_batch"], "1") == "global batch 1"


def test_the_sampling_error_of_the_test_images_is_below_the_table() -> None:
    """Of 599 images, of which the profile has 4 copies each, as if all copies of an image were alike."""
    right = {"resnet50": 485, "enhanced_recipe": 545}
    runs = [
        finished(step, seed, resolve(ROADMAP, step, profile="digits_noisy").hash, top1, val_images=4193)
        for step, images in right.items()
        for seed, top1 in enumerate([100 * images / 599 - 1, 100 * images / 599 + 1])
    ]
    notes = ablation_table(measured(ROADMAP, "digits_noisy", {}, runs)).notes
    (note,) = [note for note in notes if "binomial" in note]
    margins = []
    for images in right.values():
        low, high = stats.binomtest(images, 599).proportion_ci(0.95, "wilson")
        margins.append(100 * (high - low) / 2)
    assert f"by up to {margins[0]:.2f} points" in note
    assert f"a Δ by up to {math.hypot(*margins):.2f}," in note
    assert "599 test images, with 7 copies of each" in note
    assert not any("binomial" in note for note in of_runs().notes)  # whose results are of an earlier version


def test_a_roadmap_without_results_has_only_columns_of_published_values() -> None:
    table = ablation_table(measured(ROADMAP, "digits_noisy", {}, []))
    assert [column.key for column in table.columns] == [
        "step",
        "change",
        "n",
        "gmacs",
        "params",
        "paper_delta",
    ]
    assert not any("same in all rows" in note for note in table.notes)


def test_a_row_that_has_not_run_keeps_the_states_from_being_the_same() -> None:
    ablation = of_runs()
    rows = tuple(row for row in ablation.rows if row.step in ("resnet50", "depthwise_conv"))
    assert [row.states for row in rows] == [{"done": 3}, {"pending": 3}]
    few = replace(ablation, rows=rows)
    assert "status" in {column.key for column in ablation_table(few, ["all"]).columns}
    assert "Runs of a step: 3 done, except depthwise_conv (3 pending)." in ablation_table(few).notes


@pytest.mark.parametrize(
    ("key", "step", "text"),
    [
        ("top1", "kernel_7", "85.10 ± 0.00†"),
        ("top1", "increase_width", "diverged"),
        ("n", "patchify_stem", "2/3"),
        ("epochs", "patchify_stem", "3"),
        ("epochs", "increase_width", "–"),
        ("device_hours", "resnet50", "100"),
        ("peak_memory_mb", "resnet50", "20480"),
        ("resolved", "fewer_activations", "yes"),
        ("p", "fewer_activations", "< 0.001"),
        ("status", "patchify_stem", "2 done, 1 diverged"),
        ("step", "kernel_9", "└ kernel_9"),
    ],
)
def test_cells(key: str, step: str, text: str) -> None:
    assert COLUMNS[key].text(of_runs().row(step)) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.00605, "0.00605"), (0.5, "0.500"), (9.999, "10.0"), (99.96, "100"), (123456.7, "123457")],
)
def test_hours_have_three_digits_and_no_exponent(hours: float, text: str) -> None:
    hash = resolve(ROADMAP, "gelu", profile="digits_noisy").hash
    row = measured(
        ROADMAP, "digits_noisy", {}, [finished("gelu", 0, hash, 90.0, train_seconds=hours * 3600)]
    ).row("gelu")
    assert COLUMNS["device_hours"].text(row) == text


def test_csv_holds_every_value_exactly(tmp_path: Path) -> None:
    write_tables(of_runs(), tmp_path)
    with (tmp_path / "ablation.csv").open(encoding="utf-8", newline="") as file:
        lines = {line["step"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(ROADMAP.steps)
    for row in of_runs().rows:
        line = {key: value or None for key, value in lines[row.step].items()}
        delta, top1, ema = row.delta, row.top1, row.ema
        expected = {
            **{f"top1_seed{seed}": row.seeds.get(seed) for seed in range(3)},
            **{
                key: getattr(row, key)
                for key in ("p_holm", "gap", "gap_z", "images_per_s", "device_hours", "peak_memory_mb")
            },
            **dict.fromkeys(("p", "seeds_needed", "delta", "delta_margin_95")),
            **(
                {
                    "p": delta.p,
                    "seeds_needed": delta.needed,
                    "delta": delta.value,
                    "delta_margin_95": delta.margin,
                }
                if delta
                else {}
            ),
            **{
                "top1_mean": top1.mean if top1 else None,
                "top1_std": top1.std if top1 else None,
                "ema_top1_mean": ema.mean if ema else None,
            },
        }
        assert {key: float(value) if (value := line[key]) else None for key in expected} == expected
        assert (line["title"], line["change"]) == (row.title, row.change)
        assert line["delta_resolved"] == (None if row.resolved is None else str(row.resolved))
        assert (line["mixed"], line["states"]) == (", ".join(row.mixed) or None, COLUMNS["status"].value(row))


def test_data_and_table_agree_on_what_is_resolved() -> None:
    row = of_runs().row("fewer_activations")
    one = replace(of_runs(), rows=(replace(row, p_holm=0.5),))
    assert row.resolved
    assert row.delta is not None
    assert row.delta.resolved
    assert ablation_table(one, ["resolved"]).rows == [["no"]]
    assert to_frame(one)["delta_resolved"].tolist() == [False]
    assert json.loads(to_json(one))["rows"][0]["delta"]["resolved"] is False


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_holds_the_runs_and_what_belongs_to_the_table() -> None:
    found = strict(to_json(of_runs()))
    assert (found["roadmap"], found["profile"], found["source"]) == ("convnext_t", "digits_noisy", "measured")
    assert found["notes"] == of_runs().notes
    assert found["agreement"]["top1"]["n"] == sum(
        bool(row.top1 and row.paper) for row in of_runs().rows if row.step in ROADMAP.trunk
    )
    for row, line in zip(of_runs().rows, found["rows"], strict=True):
        assert [run["top1"] for run in line["seeds"]] == TOP1.get(row.step, [])
        assert (line["delta"] is None) == (row.delta is None)
        assert line["delta"] is None or line["delta"]["p_holm"] == row.p_holm


def test_json_knows_no_infinity() -> None:
    row = replace(of_runs().rows[1], delta=Difference(float("inf"), float("nan")), gap=-float("inf"))
    (line,) = strict(to_json(replace(of_runs(), rows=(row,))))["rows"]
    assert (line["delta"]["value"], line["delta"]["margin_95"], line["paper"]["gap"]) == (None, None, None)


def test_the_long_form_has_a_line_for_every_run(tmp_path: Path) -> None:
    runs = [run for row in of_runs().rows for run in row.runs] + [finished("gelu", 7, "0" * 8, 99.5)]
    ablation = replace(of_runs(), runs=runs, folder=Path("runs"))
    (path,) = [path for path in write_tables(ablation, tmp_path / "out") if path.name == "runs.csv"]
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == [run.run.name for run in runs]
    assert [line["in_table"] for line in lines] == ["True"] * (len(runs) - 1) + ["False"]


@pytest.mark.parametrize("name", ["ablation.md", "ablation.html"])
def test_a_folder_that_cannot_be_written_is_one_problem(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_tables(of_runs(), tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_roadmap_without_results_has_a_frame() -> None:
    assert len(to_frame(measured(ROADMAP, "digits_noisy", {}, []))) == len(ROADMAP.steps)


def regenerate() -> None:
    """Writes the golden files; those of what is published are a report's, made by `collect.py --paper`."""
    write_tables(ABLATIONS["measured"](), GOLDEN["measured"])


if __name__ == "__main__":
    regenerate()
