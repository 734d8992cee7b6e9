"""What collect.py finds out by itself, what its options choose, and that it opens no more files than it
needs.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.records import RunDir, prepare
from roadmap.report.stats import holm
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.committed_reports import unpack
from tests.helpers.reports import result_of

TOP1 = {
    "resnet50": [80.0, 80.5, 81.0],
    "enhanced_recipe": [84.0, 84.6, 84.9],
    "stage_ratio": [84.5, 85.2, 85.3],
    "patchify_stem": [85.0, 86.0, 85.4],
}


def finish(
    runs: Path,
    step: str,
    seed: int,
    top1: float | None,
    *,
    roadmap: str = "convnext_t",
    profile: str | None = "cifar10",
) -> RunDir:
    run = prepare(runs, resolve(load_roadmap(name=roadmap), step, profile=profile, seed=seed))
    document = result_of(step, seed, run.hash, top1, roadmap=roadmap, profile=profile).model_dump(mode="json")
    run.result.write_text(json.dumps(document), encoding="utf-8")
    return run


def fill(runs: Path) -> None:
    for step, values in TOP1.items():
        for seed, top1 in enumerate(values):
            finish(runs, step, seed, top1)


PRINT_ACCESSES = """
import json, runpy, sys
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) \
if event in ("open", "os.scandir", "os.listdir") else None)
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
print("TOLD", json.dumps({"opened": opened, "modules": list(sys.modules)}))
"""


def opened_and_imported(folder: Path, *words: str) -> dict[str, list[str]]:
    """The files that collect.py opens, and the modules that it imports."""
    command = [sys.executable, "-c", PRINT_ACCESSES, str(ROOT / "collect.py"), *words, "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[str]] = json.loads(done.stdout.rpartition("TOLD ")[2])
    return found


def collect(folder: Path, *words: str | Path) -> str:
    """What collect.py prints."""
    command = [sys.executable, str(ROOT / "collect.py"), *map(str, words), "--out", "out"]
    done = commands.run(command, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def table(out: Path, name: str = "ablation") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def heads(out: Path) -> Sequence[str]:
    lines = (out / "ablation.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("| ")).strip("| ").split(" | ")


def test_of_finished_runs_only_the_result_is_opened_and_no_folder_of_theirs(tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    told = opened_and_imported(tmp_path, "runs", "--tables-only")
    inside = [
        Path(path)
        for path in told["opened"]
        if "seed" in Path(path).as_posix().removeprefix(tmp_path.as_posix())
    ]
    assert {path.name for path in inside} == {"result.json"}
    assert len(inside) == len(set(inside)) == sum(map(len, TOP1.values()))
    assert not {"torch", "torchvision", "timm", "sklearn", "matplotlib"} & set(told["modules"])


def test_columns_are_those_that_were_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    said = collect(tmp_path, "runs", "--tables-only", "--columns", "top1, step,hash,step")
    assert heads(tmp_path / "out") == ["top-1 (%)", "step", "hash"]
    assert "what changed" not in said
    assert len(table(tmp_path / "out")[0]) > 20  # the CSV keeps all figures


def test_holm_adjusts_the_verdicts_of_all_steps_together(tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    collect(tmp_path, "runs", "--tables-only")
    plain = {row["step"]: row for row in table(tmp_path / "out") if row["p"]}
    assert [row["p_holm"] for row in plain.values()] == [""] * 3
    said = collect(tmp_path, "runs", "--tables-only", "--holm", "--columns", "all")
    rows = {row["step"]: row for row in table(tmp_path / "out") if row["p"]}
    assert [float(row["p_holm"]) for row in rows.values()] == pytest.approx(
        holm([float(row["p"]) for row in plain.values()])
    )
    assert "(Holm)" in said
    needed = [(int(plain[step]["seeds_needed"]), int(rows[step]["seeds_needed"])) for step in rows]
    assert all(together >= alone for alone, together in needed)
    assert sum(together for _, together in needed) > sum(alone for alone, _ in needed)
    assert all(
        rows[step][key] == plain[step][key] for step in rows for key in ("delta", "delta_margin_95", "p")
    )
    assert "with at least 80 % probability" in said


def test_an_axis_more_is_a_figure_more(tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    collect(tmp_path, "runs", "--x", "params,device_hours")
    names = {path.stem for path in (tmp_path / "out").glob("accuracy_vs_*.pdf")}
    assert {"accuracy_vs_gmacs", "accuracy_vs_params", "accuracy_vs_device_hours"} <= names
    assert "accuracy_vs_peak_memory_mb" not in names


def test_the_roadmap_and_the_profile_are_found_out(tmp_path: Path) -> None:
    finish(tmp_path / "runs", "gelu", 0, 81.25, roadmap="convnext_b", profile=None)
    said = collect(tmp_path, "runs", "--tables-only")
    assert "ResNet-200 to ConvNeXt-B on ImageNet-1K" in said
    finish(tmp_path / "runs", "gelu", 0, 71.25, roadmap="convnext_b")
    assert "81.25" in collect(tmp_path, "runs", "--tables-only", "--profile", "paper")
    assert "71.25" in collect(tmp_path, "runs/convnext_b/cifar10", "--tables-only")


def test_a_copied_run_counts_once_and_the_copy_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "runs" / "now")
    for step in ("resnet50", "gelu"):
        finish(tmp_path / "runs" / "old", step, 0, 80.0 if step == "resnet50" else 86.5)
    name = finish(tmp_path / "runs" / "old", "enhanced_recipe", 1, 20.0).name
    # has no result, unlike its copy
    prepare(tmp_path / "runs" / "now", resolve(load_roadmap(), "gelu", profile="cifar10"))
    said = collect(tmp_path, "runs", "--tables-only")
    assert f"- old/{name} is the same run as now/{name}, and left out, though their results differ.\n" in said
    assert said.count("is the same run as") == 3
    assert said.count("though their results differ") == 1
    rows = {row["step"]: row for row in table(tmp_path / "out")}
    assert (rows["resnet50"]["n"], rows["enhanced_recipe"]["n"], rows["gelu"]["n"]) == ("3", "3", "1")
    assert float(rows["enhanced_recipe"]["top1_mean"]) == pytest.approx(84.5)
    assert len(table(tmp_path / "out", "runs")) == 13


def test_a_folder_of_copies_is_a_few_notes(tmp_path: Path) -> None:
    fill(tmp_path / "runs" / "a")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    said = collect(tmp_path, "runs", "--tables-only")
    assert said.count("is the same run as") == 3
    assert "- 9 more runs with a copy, counted once.\n" in said
    assert "12 of 57 runs" in said


def test_runs_of_a_later_version_are_named_and_not_counted(tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    run = finish(tmp_path / "runs", "gelu", 0, 99.5)
    run.result.write_text(
        run.result.read_text(encoding="utf-8").replace('"format": 1', '"format": 2'), encoding="utf-8"
    )
    said = collect(tmp_path, "runs", "--tables-only")
    assert (
        f"- {run.name}/result.json was written by a later version (format 2, this one reads 1); update this"
        " code to collect it.\n" in said
    )
    assert "99.5" not in said
    assert [row["state"] for row in table(tmp_path / "out", "runs") if row["step"] == "gelu"] == ["newer"]


def records(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 0)}
        return {member.name: opened.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def test_from_the_records_the_same_report_is_made_without_paths_and_unfinished_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    fill(runs)
    finish(runs, "gelu", 0, None)
    overrides = {"system.data_dir": "/home/me/images", "system.init_from": "weights.pth"}
    prepare(runs, resolve(load_roadmap(), "kernel_7", profile="cifar10"))
    config = resolve(load_roadmap(), "kernel_9", profile="cifar10", overrides=overrides)
    done = finish(runs, "kernel_9", 0, 87.0)
    done.config.write_text(config.to_yaml(), encoding="utf-8")
    done.metrics.write_text('{"kind": "epoch", "epoch": 1, "top1": 87.0}\n', encoding="utf-8")
    done.checkpoints.mkdir()
    (done.checkpoints / "last.pt").write_bytes(b"weights")

    printed = collect(tmp_path, "runs", "--records")
    assert "records: out/records.tar.xz" in printed
    found = records(tmp_path / "out/records.tar.xz")
    assert len([name for name in found if name.endswith("/result.json")]) == sum(map(len, TOP1.values())) + 2
    assert {name.rpartition("/")[2] for name in found} == {"config.yaml", "metrics.jsonl", "result.json"}
    assert found[f"{done.name}/metrics.jsonl"] == done.metrics.read_bytes()
    assert b"/home/me" not in b"".join(found.values())
    before = (tmp_path / "out/records.tar.xz").read_bytes()
    collect(tmp_path, "runs", "--records")
    assert (tmp_path / "out/records.tar.xz").read_bytes() == before

    other = tmp_path / "elsewhere"
    unpack(tmp_path / "out/records.tar.xz", other / "runs")
    assert collect(other, "runs", "--records") == printed
    for path in (tmp_path / "out").glob("ablation.*"):
        assert path.read_bytes() == (other / "out" / path.name).read_bytes(), path.name
    finished = [row for row in table(tmp_path / "out", "runs") if row["step"] != "kernel_7"]
    assert table(other / "out", "runs") == finished
    assert RunConfig.read(other / "runs" / f"{done.name}/config.yaml").hash == config.hash


def test_records_that_are_not_unpacked_are_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "records.tar.xz").write_bytes(b"records")
    done = commands.run(
        [sys.executable, str(ROOT / "collect.py"), "records.tar.xz", "--out", "out"], cwd=tmp_path
    )
    assert done.returncode == 2
    assert "; unpack it: mkdir -p runs && tar xJf records.tar.xz -C runs" in done.stderr


@pytest.mark.parametrize("words", [["runs", "runs"], ["runs", "--watch"]])
def test_records_are_those_of_one_folder(words: Sequence[str], tmp_path: Path) -> None:
    fill(tmp_path / "runs")
    command = [sys.executable, str(ROOT / "collect.py"), *words, "--records", "--out", "out"]
    done = commands.run(command, cwd=tmp_path)
    assert done.returncode == 2
    assert "--records takes one folder of RUNS and no --watch" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("roadmap: convnext_t\n", "is damaged: it has no section 'system'"), ("system: [\n", "config.yaml:")],
)
def test_a_damaged_configuration_is_named_before_anything_is_written(
    text: str, message: str, tmp_path: Path
) -> None:
    fill(tmp_path / "runs")
    finish(tmp_path / "runs", "gelu", 0, 86.0).config.write_text(text, encoding="utf-8")
    command = [sys.executable, str(ROOT / "collect.py"), "runs", "--records", "--out", "out"]
    done = commands.run(command, cwd=tmp_path)
    assert done.returncode == 2
    assert "gelu/seed0-" in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
