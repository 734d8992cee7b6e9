"""A folder of runs becomes tables that count what is there, name what is not, and are the same every time."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from roadmap import ROOT
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.reports import COMMIT, SPEEDS, result_of

ROADMAP = load_roadmap()
COLLECT = str(ROOT / "collect.py")
TABLES = {f"ablation.{kind}" for kind in ("csv", "html", "json", "md", "tex")}
KINDS = ("pdf", "png", "svg")
BRANCHES = ["kernel_5", "kernel_9", "kernel_11", "no_downsampling_norms"]
# By step and seed; None diverged, and a seed that is not here was prepared, but has no result.
TOP1: dict[str, dict[int, float | None]] = {
    "resnet50": {0: 80.12345678, 1: 81.25, 2: 79.5},
    "enhanced_recipe": {0: 83.12345678, 1: 84.75, 2: 82.0},
    "stage_ratio": {0: 83.5, 2: 85.0},
    "patchify_stem": {0: 83.9, 1: None, 2: 84.3},
    "depthwise_conv": {},
    "increase_width": {0: None, 1: None, 2: None},
    "kernel_9": {1: 86.87654321},
}
SMALL = {"data.copies": 1}  # where the reference must not take long
SET_SMALL = ("--set", "data.copies=1")
DAMAGE = ["", '{"format": 1, "status": "do', '{"format": 99}']  # depthwise_conv's result.json by seed
PRESENT = {
    "resnet50": 3,
    "enhanced_recipe": 3,
    "stage_ratio": 3,
    "patchify_stem": 3,
    "depthwise_conv": 3,
    "increase_width": 3,
    "kernel_9": 1,
    "gelu": 1,  # of another configuration
    "no_such_step": 1,
}


def write_run(
    runs: Path,
    step: str,
    seed: int,
    *,
    profile: str = "digits_noisy",
    overrides: Mapping[str, Any] | None = None,
) -> RunDir:
    """A run that has not begun."""
    return prepare(runs, resolve(ROADMAP, step, profile=profile, seed=seed, overrides=overrides))


def finish(run: RunDir, step: str, seed: int, top1: float | None) -> None:
    """Gives a run its result; None is a divergence."""
    result = result_of(step, seed, run.hash, top1)
    run.result.write_text(json.dumps(result.model_dump(mode="json")), encoding="utf-8")


def number(cell: str) -> float | None:
    return float(cell) if cell else None


def fill(runs: Path) -> None:
    for step, results in TOP1.items():
        for seed in [1] if step == "kernel_9" else range(3):
            run = write_run(runs, step, seed)
            if seed in results:
                finish(run, step, seed, results[seed])
    for seed, text in enumerate(DAMAGE):
        write_run(runs, "depthwise_conv", seed).result.write_text(text, encoding="utf-8")
    finish(write_run(runs, "gelu", 0, overrides={"recipe.epochs": 7}), "gelu", 0, 99.5)
    stranger = runs / ROADMAP.name / "digits_noisy" / "no_such_step"
    shutil.copytree(runs / ROADMAP.name / "digits_noisy" / "kernel_9", stranger)


@dataclass(frozen=True)
class Report:
    """What two collections of the same runs left."""

    runs: Path
    out: Path
    again: Path
    modules: set[str]

    @property
    def markdown(self) -> list[str]:
        return (self.out / "ablation.md").read_text(encoding="utf-8").splitlines()

    @property
    def notes(self) -> list[str]:
        return [line.removeprefix("- ") for line in self.markdown if line.startswith("- ")]

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def step(self, step: str) -> dict[str, str]:
        (row,) = [row for row in self.table("ablation") if row["step"] == step]
        return row


NAMES_MODULES = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
print("MODULES", *sys.modules)
"""


def settings_of_a_user(folder: Path) -> dict[str, str]:
    """What changes how programs print and draw: a dark matplotlibrc with LaTeX, a notebook's backend, a
    terminal without UTF-8.
    """
    matplotlibrc = {
        "text.usetex": "True",
        "figure.facecolor": "black",
        "axes.facecolor": "black",
        "lines.linewidth": "5",
    }
    matplotlibrc |= {
        "text.color": "white",
        "font.size": "20",
        "savefig.dpi": "50",
        "savefig.bbox": "tight",
        "axes.formatter.use_locale": "True",
    }
    (folder / "matplotlibrc").write_text(
        "".join(f"{key}: {value}\n" for key, value in matplotlibrc.items()), encoding="utf-8"
    )
    terminal = {
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "30",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
    }
    others = {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "0", "PYTHONCOERCECLOCALE": "0"}
    return (
        terminal
        | others
        | {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "MATPLOTLIBRC": str(folder / "matplotlibrc"),
        }
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Collected twice, by processes that iterate sets in different orders, and the second one with a user's
    own settings.
    """
    folder = tmp_path_factory.mktemp("collect")
    runs, out, again = folder / "runs", folder / "reports" / "one", folder / "reports" / "again"
    fill(runs)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    first = [sys.executable, COLLECT, str(runs), "--out", str(out)]
    second = [
        sys.executable,
        "-c",
        NAMES_MODULES,
        COLLECT,
        str(runs),
        "--out",
        str(again),
        "--profile",
        "digits_noisy",
    ]
    commands.run(first, cwd=folder, env=environment, check=True)
    done = subprocess.run(
        second,
        cwd=folder,
        env=environment | settings_of_a_user(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    return Report(runs, out, again, set(done.stdout.rpartition("MODULES")[2].split()))


class Outcome(NamedTuple):
    """What the command did in this process."""

    code: int
    out: str
    err: str


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs collect.py with arguments, here, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", [COLLECT, *map(str, words)])
        with threadpool_limits(1), pytest.raises(SystemExit) as done:
            runpy.run_path(COLLECT, run_name="__main__")
        return Outcome(int(done.value.code or 0), *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("step", "change", "n", "top1", "delta", "resolved"),
    [
        ("resnet50", "the base", "3", "80.29 ± 0.89", "–", "–"),
        ("enhanced_recipe", "6 values of the recipe", "3", "83.29 ± 1.38", "+3.00 ± 1.24", "yes"),
        ("stage_ratio", "depths [3, 4, 6, 3] → [3, 3, 9, 3]", "2/3", "84.25 ± 1.06", "+0.96 ± 3.65", "no"),
        ("depthwise_conv", "spatial.kind conv → depthwise", "0/3", "–", "–", "–"),
        ("increase_width", "width 64 → 96", "0/3", "diverged", "–", "–"),
        ("└ kernel_9", "from move_up_depthwise: spatial.kernel 3 → 9", "1/3", "86.88", "–", "–"),
        ("gelu", "act.kind relu → gelu", "0/3", "–", "–", "–"),
    ],
)
def test_markdown_rows(
    report: Report, step: str, change: str, n: str, top1: str, delta: str, resolved: str
) -> None:
    heads, _, *rows = [line.strip("| ").split(" | ") for line in report.markdown if line.startswith("| ")]
    (row,) = [dict(zip(heads, cells, strict=True)) for cells in rows if cells[0] == step]
    assert [row[head] for head in ("what changed", "n", "top-1 (%)", "Δ to parent", "resolved?")] == [
        change,
        n,
        top1,
        delta,
        resolved,
    ]


def test_the_markdown_has_a_row_for_every_step_in_order(report: Report) -> None:
    rows = [line.split(" | ")[0].strip("| └") for line in report.markdown if line.startswith("| ")]
    assert rows == ["step", "---", *ROADMAP.steps]
    assert len({line.count(" | ") for line in report.markdown if line.startswith("| ")}) == 1


@pytest.mark.parametrize("step", TOP1)
def test_ablation_csv_is_in_full_precision(report: Report, step: str) -> None:
    row, values = report.step(step), [value for value in TOP1[step].values() if value is not None]
    speeds = [SPEEDS[seed] for seed in TOP1[step]]
    assert (row["n"], row["planned"]) == (str(len(values)), "3")
    assert row["diverged"] == str(sum(value is None for value in TOP1[step].values()))
    assert number(row["top1_mean"]) == (
        pytest.approx(statistics.fmean(values), rel=1e-14) if values else None
    )
    assert number(row["top1_std"]) == (
        pytest.approx(statistics.stdev(values), rel=1e-12) if len(values) > 1 else None
    )
    assert number(row["images_per_s"]) == (pytest.approx(statistics.fmean(speeds)) if speeds else None)


@pytest.mark.parametrize(
    ("step", "parent", "paired"),
    [
        ("enhanced_recipe", "resnet50", True),
        ("stage_ratio", "enhanced_recipe", False),
        ("patchify_stem", "stage_ratio", True),
    ],
)
def test_differences_are_scipys_in_full_precision(
    report: Report, step: str, parent: str, paired: bool
) -> None:
    row = report.step(step)
    ours, theirs = (
        [value for _, value in sorted(TOP1[name].items()) if value is not None] for name in (step, parent)
    )
    test = stats.ttest_rel(ours, theirs) if paired else stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert row["parent"] == parent
    assert number(row["delta"]) == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs), rel=1e-11)
    assert number(row["delta_margin_95"]) == pytest.approx((interval.high - interval.low) / 2, rel=1e-11)
    assert row["delta_resolved"] == str(bool(interval.low > 0 or interval.high < 0))


def test_costs_and_published_values_are_listed_beside_ours(report: Report) -> None:
    row = report.step("separate_downsampling")
    assert [row[key] for key in ("paper_top1_mean", "paper_top1_std", "paper_gmacs", "n", "top1_mean")] == [
        "81.97",
        "0.06",
        "4.49",
        "0",
        "",
    ]
    assert number(row["paper_delta"]) == pytest.approx(0.5)
    assert [row["step"] for row in report.table("ablation") if row["side_branch"] == "True"] == BRANCHES


def test_runs_csv_has_a_row_for_every_run(report: Report) -> None:
    rows = report.table("runs")
    assert sorted(row["run"] for row in rows) == sorted(
        path.relative_to(report.runs).as_posix() for path in report.runs.glob("*/*/*/seed*")
    )
    assert Counter(row["run"].split("/")[2] for row in rows) == PRESENT
    assert Counter(row["state"] for row in rows) == {"done": 12, "diverged": 4, "pending": 4, "newer": 1}
    finished = [row for row in rows if row["state"] == "done"]
    assert [number(row["top1"]) for row in finished[:3]] == list(TOP1["resnet50"].values())
    assert {(row["commit"], row["scikit_learn"], row["hardware"]) for row in finished} == {
        (COMMIT, "1.7.0", "one core")
    }
    assert [bool(row["why"]) for row in rows] == [
        "depthwise_conv" in row["run"] or "no_such_step" in row["run"] for row in rows
    ]


def test_runs_csv_has_counts_as_integers(report: Report) -> None:
    row = next(row for row in report.table("runs") if row["state"] == "done")
    assert [row[key] for key in ("seed", "epochs", "iterations", "global_batch", "params", "attempts")] == [
        "0",
        "3",
        "222",
        "64",
        "400000",
        "1",
    ]


def test_runs_of_another_configuration_are_left_out_and_named(report: Report) -> None:
    assert (
        "1 run of another configuration left out (gelu); add --set recipe.epochs=7 to collect it."
        in report.notes
    )
    assert report.step("gelu")["top1_mean"] == ""


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (0, "is empty"),
        (1, "is damaged"),
        (2, "was written by a later version (format 99, this one reads 1); update this code"),
    ],
)
def test_a_result_that_cannot_be_read_is_named_and_not_counted(report: Report, seed: int, what: str) -> None:
    config = resolve(ROADMAP, "depthwise_conv", profile="digits_noisy")
    notes = [note for note in report.notes if f"depthwise_conv/seed{seed}-{config.hash}/result.json" in note]
    assert len(notes) == 1
    assert what in notes[0]
    assert report.step("depthwise_conv")["n"] == "0"


def test_divergences_are_listed(report: Report) -> None:
    assert "Diverged, and in no mean: patchify_stem (1), increase_width (3)." in report.notes


def test_a_folder_that_is_no_step_is_named(report: Report) -> None:
    assert "no_such_step: not a step of steps.yaml, left out." in report.notes


def test_the_notes_count_runs_and_name_their_provenance(report: Report) -> None:
    counted = sum(value is not None for results in TOP1.values() for value in results.values())
    assert report.notes[0].startswith(f"{counted} of {3 * len(ROADMAP.steps)} runs;")
    assert {"Hardware: one core.", "Versions: python 3.11.7, scikit-learn 1.7.0.", f"Code: {COMMIT}."} <= set(
        report.notes
    )
    assert not any("MIXED" in note for note in report.notes)


def test_the_rank_correlation_with_the_paper_is_spearmans(report: Report) -> None:
    # four steps of the path have a mean, the last two in the other order: 1 - 6 * 2 / (4 * 15)
    assert (
        "Spearman's rank correlation with the paper's top-1 along the path: +0.80 (n = 4 steps); it has no"
        " interval, because each step adds to the one before." in report.notes
    )


def test_a_logistic_regression_is_the_reference(report: Report) -> None:
    (note,) = [note for note in report.notes if "logistic regression" in note]
    (accuracy,) = [float(word) for word in note.split() if word.replace(".", "").isdigit()]
    assert 80 < accuracy < 92


def test_two_collections_write_the_same_bytes_whatever_the_users_settings(report: Report) -> None:
    names = {path.name for path in report.out.iterdir()}
    assert names == {path.name for path in report.again.iterdir()}
    assert [
        name
        for name in sorted(names)
        if (report.out / name).read_bytes() != (report.again / name).read_bytes()
    ] == []


def figure_names(out: Path) -> set[str]:
    """The figures in a folder, each of which must be there in all kinds."""
    files = [path for path in out.iterdir() if path.suffix.strip(".") in KINDS]
    assert Counter(path.stem for path in files) == dict.fromkeys((path.stem for path in files), len(KINDS))
    return {path.stem for path in files}


def test_a_report_is_tables_figures_and_a_page(report: Report) -> None:
    assert {"roadmap", "accuracy_vs_gmacs"} <= figure_names(report.out)
    others = {path.name for path in report.out.iterdir() if path.suffix.strip(".") not in KINDS}
    assert others == TABLES | {"runs.csv", "report.html"}
    document = json.loads((report.out / "ablation.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in document["rows"]] == list(ROADMAP.steps)
    page = (report.out / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (*ROADMAP.steps, "83.29"))
    assert "83.29" in (report.out / "ablation.tex").read_text(encoding="utf-8")
    assert "83.29" in (report.out / "ablation.html").read_text(encoding="utf-8")


def test_collecting_does_not_import_torch(report: Report) -> None:
    assert {"roadmap.report.write", "matplotlib", "pandas"} <= report.modules
    assert not {"torch", "torchvision", "timm"} & report.modules


def test_the_terminal_shows_the_table_the_notes_and_where_the_files_are(collect: Any, tmp_path: Path) -> None:
    finish(write_run(tmp_path / "runs", "resnet50", 0, overrides=SMALL), "resnet50", 0, 81.234)
    done = collect("runs", "--out", "out", *SET_SMALL)
    assert (done.code, done.err) == (0, "")
    assert "81.23" in done.out
    assert "1 of 19 runs" in done.out
    files = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "out").rglob("*")]
    assert len(files) > 12
    assert [path for path in files if path not in re.split(r"[,\s]+", done.out)] == []


@pytest.mark.parametrize(
    "start", [f"{ROADMAP.name}", f"{ROADMAP.name}/digits_noisy", f"{ROADMAP.name}/digits_noisy/resnet50"]
)
def test_a_folder_below_the_runs_may_be_named_from_within(
    start: str, collect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(write_run(tmp_path / "runs", "resnet50", 0, overrides=SMALL), "resnet50", 0, 81.234)
    monkeypatch.chdir(tmp_path / "runs" / start)
    done = collect(".", "--out", tmp_path / "out", "--tables-only", *SET_SMALL)
    assert done.code == 0
    assert "81.23" in done.out


def test_runs_that_differ_in_hardware_are_marked(collect: Any, tmp_path: Path) -> None:
    for seed, hardware in enumerate(["one core", "two cores"]):
        run = write_run(tmp_path / "runs", "resnet50", seed, overrides=SMALL)
        finish(run, "resnet50", seed, 80.0 + seed)
        result = json.loads(run.result.read_text(encoding="utf-8")) | {"hardware": hardware}
        run.result.write_text(json.dumps(result), encoding="utf-8")
    assert (
        "Hardware: one core; two cores. MIXED."
        in collect("runs", "--out", "out", "--tables-only", *SET_SMALL).out
    )


def test_a_result_of_another_run_is_not_counted(collect: Any, tmp_path: Path) -> None:
    run, other = (
        write_run(tmp_path / "runs", step, 0, overrides=SMALL) for step in ("enhanced_recipe", "resnet50")
    )
    finish(other, "resnet50", 0, 81.234)
    other.result.replace(run.result)  # as if files had been copied by hand
    finish(write_run(tmp_path / "runs", "gelu", 0, overrides=SMALL), "gelu", 0, 75.0)
    done = collect("runs", "--out", "out", "--tables-only", *SET_SMALL)
    assert "81.23" not in done.out
    assert "enhanced_recipe/seed0" in done.out


def test_the_paper_needs_no_runs(collect: Any, tmp_path: Path) -> None:
    done = collect("--paper", "--out", "out")
    assert (done.code, done.err) == (0, "")
    assert {"roadmap", "accuracy_vs_gmacs"} <= figure_names(tmp_path / "out")
    assert TABLES | {"report.html"} == {
        path.name for path in (tmp_path / "out").iterdir() if path.suffix.strip(".") not in KINDS
    }
    lines = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8").splitlines()
    assert any(
        line.startswith("| └ kernel_9 | from move_up_depthwise: spatial.kernel 3 → 9 | 3 | 80.57 ± 0.06 | ")
        for line in lines
    )
    assert [line.rpartition(" | ")[2] for line in lines if line.startswith("| ") and "*" in line] == [
        "4.46* |",
        "4.49* |",
    ]


def nothing(runs: Path) -> None:
    """No folder at all."""


def two_profiles(runs: Path) -> None:
    for profile in ("digits", "digits_noisy"):
        write_run(runs, "resnet50", 0, profile=profile)


def one_run(runs: Path) -> None:
    finish(write_run(runs, "gelu", 0, overrides=SMALL), "gelu", 0, 80.0)


def two_roadmaps(runs: Path) -> None:
    for name in ("convnext_t", "convnext_b"):
        prepare(runs, resolve(load_roadmap(name=name), "gelu", profile="digits"))


REFUSED: list[tuple[str, Any, Sequence[str], Sequence[str]]] = [
    (
        "two profiles",
        two_profiles,
        ["runs"],
        ["runs holds runs of the profiles digits, digits_noisy", "--profile"],
    ),
    (
        "another profile",
        lambda runs: write_run(runs, "gelu", 0),
        ["runs", "--profile", "digits"],
        ["no runs of profile 'digits'", "digits_noisy"],
    ),
    (
        "unknown profile",
        lambda runs: (runs / "convnext_t/old/gelu/seed0-00000000").mkdir(parents=True),
        ["runs"],
        ["unknown profile 'old'"],
    ),
    ("no folder", nothing, ["runs"], ["runs cannot be read as a folder of runs"]),
    (
        "a file",
        lambda runs: runs.write_text("", encoding="utf-8"),
        ["runs"],
        ["runs cannot be read as a folder of runs"],
    ),
    ("an empty folder", lambda runs: runs.mkdir(), ["runs"], ["runs holds no runs"]),
    (
        "no finished run",
        lambda runs: write_run(runs, "gelu", 0),
        ["runs"],
        ["runs holds no finished run of these configurations (1 pending in all); nothing is written"],
    ),
    (
        "finished runs of another configuration",
        one_run,
        ["runs", "--set", "recipe.epochs=7"],
        ["holds no finished run of these configurations (1 done in all)", "1 run of another configuration"],
    ),
    ("no RUNS", nothing, [], ["either a folder of RUNS, or two, or --paper"]),
    ("RUNS and --paper", one_run, ["runs", "--paper"], ["either a folder of RUNS, or two, or --paper"]),
    ("three folders", one_run, ["runs", "runs", "runs"], ["compares two folders of RUNS"]),
    (
        "three papers",
        nothing,
        ["--paper", "convnext_t", "convnext_b", "family"],
        ["two roadmaps of the paper, not more"],
    ),
    (
        "two roadmaps",
        two_roadmaps,
        ["runs"],
        ["runs holds runs of the roadmaps convnext_b, convnext_t; choose one with --roadmap"],
    ),
    (
        "another roadmap",
        one_run,
        ["runs", "--roadmap", "family"],
        ["no runs of roadmap 'family', but of convnext_t"],
    ),
    (
        "unknown roadmap",
        nothing,
        ["--paper", "convnext"],
        ["unknown roadmap 'convnext'; did you mean 'convnext_t'"],
    ),
    (
        "unknown column",
        nothing,
        ["runs", "--columns", "step,topp1"],
        ["--columns: unknown key 'topp1'; did you mean 'top1'"],
    ),
    ("no column", nothing, ["runs", "--columns", " , "], ["--columns names nothing; there are step, title"]),
    ("unknown axis", nothing, ["runs", "--x", "gmac"], ["--x: unknown key 'gmac'; did you mean 'gmacs'"]),
    ("--watch 0", one_run, ["runs", "--watch", "0"], ["--watch must be more than 0, not 0"]),
    ("--check nan", one_run, ["runs", "--check", "nan"], ["--check must be more than 0, not nan"]),
    (
        "--against alone",
        one_run,
        ["runs", "--against", "a.csv"],
        ["--against is the table for --check TOLERANCE"],
    ),
    ("--check of two", one_run, ["runs", "runs", "--check", "1"], ["--check takes one folder of RUNS"]),
    (
        "--check of digits",
        one_run,
        ["runs", "--check", "1", *SET_SMALL],
        ["data set 'digits', 20 px", "--against"],
    ),
    ("--paper and --holm", nothing, ["--paper", "--holm"], ["--paper takes no --holm"]),
    (
        "--paper twice",
        nothing,
        ["--paper", "convnext_b", "--roadmap", "convnext_t"],
        ["--roadmap is not needed"],
    ),
]


@pytest.mark.parametrize(
    ("make", "words", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_bad_input_is_one_line_and_writes_nothing(
    make: Any, words: list[str], said: list[str], collect: Any, tmp_path: Path
) -> None:
    make(tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))
    done = collect(*words, "--out", "out")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert all(part in done.err for part in said)
    assert sorted(tmp_path.rglob("*")) == before


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Root may read everything, so that it steps down for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("locked", ["", "runs", f"runs/{ROADMAP.name}/digits_noisy"])
def test_a_folder_that_may_not_be_read_is_one_line(locked: str, collect: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        runs = Path(name) / "runs"
        write_run(runs, "gelu", 0)
        (Path(name) / locked).chmod(0o000)
        try:
            with without_root():
                done = collect(runs, "--out", "out")
        finally:
            (Path(name) / locked).chmod(0o755)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert name in done.err
