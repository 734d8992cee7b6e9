"""The README does what it says, and shows what the reports hold."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from roadmap import ROOT
from roadmap.steps import load_roadmap

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = "--set recipe.epochs=1 --set data.copies=1 --set model.depths=[1,1,1,1]"


def block_with(text: str) -> str:
    """The fenced block of the README that holds `text`."""
    found: list[str] = re.findall(r"```\w+\n(.*?)```", README, re.DOTALL)
    return next(block for block in found if text in block)


def test_the_worked_example_runs_from_yaml_to_table(tmp_path: Path) -> None:
    steps_file = tmp_path / "my.yaml"
    steps_file.write_text(block_with("name: hard_swish"), encoding="utf-8")
    assert load_roadmap(steps_file).steps[-1] == "hard_swish"
    commands = [
        line for line in block_with("submit.py --steps separate_downsampling hard_swish").splitlines() if line
    ]
    assert len(commands) == 3
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "python"
        quick = "" if "diff" in words else QUICK
        # there may be a Slurm on the machine
        quick += " --cluster local" if "slurm/submit.py" in words else ""
        command = [sys.executable, *words[1:], *shlex.split(quick)]
        if words[1].endswith(".py"):
            command[1] = str(ROOT / words[1])
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    rows = (tmp_path / "reports/mine/ablation.md").read_text(encoding="utf-8")
    assert re.search(
        r"\| hard_swish \| act\.kind gelu → hard_swish \| 3 \| \d+\.\d\d ± \d+\.\d\d \| [+-]", rows
    )


def test_the_example_trains_on_dataset_objects(tmp_path: Path) -> None:
    code = block_with("class Shapes(Dataset)").replace('"recipe.epochs": 4', '"recipe.epochs": 1')
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"top-1 \d+\.\d %, runs/convnext_t/paper/fewer_norms/seed0-[0-9a-f]{8}/result\.json\n", done.stdout
    )


def test_every_profile_is_in_the_table_with_its_budget() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    named = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(load_roadmap().profiles)


def test_every_command_line_names_files_and_options_that_exist() -> None:
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    scripts = {
        words[1]
        for line in lines
        if (words := line.split()) and words[0] == "python" and words[1].endswith(".py")
    }
    assert scripts == {
        "run_step.py",
        "collect.py",
        *(f"slurm/{name}.py" for name in ("submit", "status", "logs", "cancel")),
    }
    assert all((ROOT / script).is_file() for script in scripts)
    for script in sorted(scripts):
        known = subprocess.run(
            [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True
        ).stdout
        used = {word for line in lines if script in line for word in line.split() if word.startswith("--")}
        assert used <= set(re.findall(r"--[a-z-]+", known)) | {"--nproc-per-node"}


def test_links_lead_somewhere() -> None:
    found = re.findall(r"\]\(([^)]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    links = [link for link in found if not link.startswith("http")]
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_demo_table_is_the_one_that_collect_wrote() -> None:
    report = (ROOT / "reports/digits_noisy/ablation.md").read_text(encoding="utf-8")
    table = [line for line in report.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(load_roadmap().steps)
    assert "\n".join(table) in README


def test_the_committed_reports_are_whole() -> None:
    report = (ROOT / "reports/digits_noisy/ablation.md").read_text(encoding="utf-8")
    assert "57 of 57 runs" in report
    assert "Hardware:" in report
    assert "MIXED" not in report
    tables = {"ablation.md", "ablation.csv", "ablation.json", "ablation.tex", "ablation.html"}
    figures = {
        f"{name}.{kind}" for name in ("roadmap", "accuracy_vs_gmacs") for kind in ("png", "svg", "pdf")
    }
    paper = ROOT / "reports/paper"
    assert figures | {"report.html", "comparison.md"} <= {path.name for path in paper.iterdir()}
    assert all(
        tables == {path.name for path in (paper / roadmap).iterdir()}
        for roadmap in ("convnext_t", "convnext_b")
    )
    assert tables | figures | {"report.html", "runs.csv"} <= {
        path.name for path in (ROOT / "reports/digits_noisy").iterdir()
    }
