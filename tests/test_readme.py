"""The README and the pages in docs/ do what they say, and show what the reports hold."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import detection
import pytest
import segmentation
import yaml

from blocks.layers import kinds
from roadmap import ROOT, STEPS_YAML
from roadmap.__main__ import parser as parser_of_roadmap
from roadmap.cli import collect, run
from roadmap.deltas import NO_PROFILE, Roadmap, parse_overrides
from roadmap.report.records_archive import NAME
from roadmap.steps import load_roadmap, resolve
from roadmap.strict_yaml import show
from slurm import cancel, logs, status, submit
from slurm.cluster import load_cluster
from slurm.testbed.__main__ import parser as parser_of_testbed
from tests.helpers import commands
from tests.helpers.committed_reports import REPORTS
from tests.helpers.committed_reports import collect as collect_again

MAX_LINES, MAX_WORDS = 190, 1500  # of the README
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
TEXTS = {ROOT / "README.md": README} | PAGES
QUICK = "--set recipe.epochs=1 --set data.copies=1 --set model.depths=[1,1,1,1]"
SCRIPTS: dict[str, Any] = {
    "run_step.py": run,
    "collect.py": collect,
    "slurm/submit.py": submit,
    "slurm/status.py": status,
    "slurm/logs.py": logs,
    "slurm/cancel.py": cancel,
    "examples/segmentation.py": segmentation,
    "examples/detection.py": detection,
}
BLOCKS: list[tuple[str, str]] = [
    block for text in TEXTS.values() for block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
]


def blocks_of(language: str) -> list[str]:
    """The fenced blocks of all pages in a language."""
    return [block for name, block in BLOCKS if name == language]


def block_with(text: str) -> str:
    """The first fenced block that holds `text`."""
    return next(block for _, block in BLOCKS if text in block)


def command_lines() -> Iterator[list[str]]:
    """The words of every command line: those in blocks, and those in running text."""
    prose = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in TEXTS.values()]
    spans = [" ".join(span.split()) for text in prose for span in re.findall(r"`([^`]+)`", text)]
    lines = [line for block in blocks_of("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        span for span in spans if re.match(r"(make|pip|convnext-roadmap) |python .*(?<!-m roadmap)$", span)
    ]
    for line in lines:
        called = re.match(
            r'eval "\$\((.*)\)"', line
        )  # what a shell is to evaluate is the output of a command
        if words := shlex.split(called[1] if called else line, comments=True):
            yield words


COMMANDS = [list(words) for words in dict.fromkeys(map(tuple, command_lines()))]


def rows_of(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`, head included."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if "---" not in line]


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(text: str, level: str = "#+") -> list[str]:
    return re.findall(rf"^{level} (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    assert len(README.split()) <= MAX_WORDS


def test_the_worked_example_runs_from_yaml_to_table(tmp_path: Path) -> None:
    steps_file = tmp_path / "my.yaml"
    steps_file.write_text(block_with("name: hard_swish"), encoding="utf-8")
    assert load_roadmap(steps_file).steps[-1] == "hard_swish"
    block = block_with("submit.py --steps separate_downsampling hard_swish")
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "python"
        quick = "" if "diff" in words else QUICK
        # there may be a Slurm on the machine
        quick += " --cluster local" if "slurm/submit.py" in words else ""
        command = [sys.executable, *words[1:], *shlex.split(quick)]
        if words[1].endswith(".py"):
            command[1] = str(ROOT / words[1])
        done = commands.run(command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    rows = (tmp_path / "reports/mine/ablation.md").read_text(encoding="utf-8")
    assert re.search(
        r"\| hard_swish \| act\.kind gelu → hard_swish \| 3 \| \d+\.\d\d ± \d+\.\d\d \| [+-]", rows
    )


def test_the_python_blocks_run(tmp_path: Path) -> None:
    """All in one process: most of its time is PyTorch's import."""
    blocks = blocks_of("python")
    assert len(blocks) == 3
    code = "\n".join(blocks).replace('"recipe.epochs": 4', '"recipe.epochs": 1')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"top-1 \d+\.\d %, runs/convnext_t/paper/fewer_norms/seed0-[0-9a-f]{8}/result\.json\n", done.stdout
    )


def test_every_block_is_run_or_checked(tmp_path: Path) -> None:
    """Commands and Python have tests of their own; what is YAML is a step of the project, a steps file, or
    entries of a cluster file.
    """
    assert {language for language, _ in BLOCKS} == {"bash", "python", "yaml"}
    known = yaml.safe_load(STEPS_YAML.read_text(encoding="utf-8"))["roadmaps"]["convnext_t"]["steps"]
    path = tmp_path / "block.yaml"
    for block in blocks_of("yaml"):
        content = yaml.safe_load(block)
        path.write_text(block, encoding="utf-8")
        if isinstance(content, list):
            assert content
            for step in content:
                (there,) = [entry for entry in known if entry["name"] == step["name"]]
                assert step.items() <= there.items()
        elif "clusters" in content:
            assert content["clusters"]
            for name in content["clusters"]:
                assert load_cluster(name, path).scheduler == "slurm"
        else:
            roadmap = load_roadmap(path)
            assert roadmap.steps[-1] == "hard_swish" or "vit_ti" in roadmap.references


def test_every_profile_is_in_the_table_with_its_budget() -> None:
    rows = rows_of(PAGES[ROOT / "docs/training.md"], "profile")[1:]
    assert all(len(row) == 3 and all(row) for row in rows)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(load_roadmap().profiles)


def test_the_axes_of_a_block_are_those_of_the_configuration() -> None:
    head, *rows = rows_of(README, "axis")
    assert head == ["axis", "values", "ResNet-50", "ConvNeXt-T"]
    for place, step in ((2, "resnet50"), (3, "separate_downsampling")):
        block = resolve(load_roadmap(), step).ours.block.model_dump()
        values: dict[str, object] = {}
        for key, value in block.items():
            values |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        assert {row[0].strip("`"): row[place] for row in rows} == {
            key: show(value) for key, value in values.items()
        }
    for role in ("spatial", "norm", "act"):
        (named,) = [row[1] for row in rows if row[0] == f"`{role}.kind`"]
        assert tuple(re.findall(r"`(\w+)`", named)) == kinds(role)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's steps file."""
    path = tmp_path_factory.mktemp("example") / "my.yaml"
    path.write_text(block_with("name: hard_swish"), encoding="utf-8")
    return path


@cache
def roadmap_of(steps_file: Path, name: str | None, ablation: str | None) -> Roadmap:
    return load_roadmap(steps_file, name or "convnext_t", ablation=ablation)


def check_names(arguments: argparse.Namespace, example: Path) -> None:
    """That the roadmap, the profile, the steps and the keys that a command names are there."""
    given = vars(arguments)
    if "steps_file" not in given:
        return
    steps_file = example if arguments.steps_file == Path("my.yaml") else arguments.steps_file
    roadmap = roadmap_of(steps_file, given.get("roadmap"), given.get("ablate"))
    steps = [given[key] for key in ("step", "one", "other") if given.get(key)] + (given.get("steps") or [])
    profile = given.get("profile")
    overrides = parse_overrides(given.get("overrides") or [])
    for step in steps or roadmap.steps[:1]:
        resolve(roadmap, step, profile=None if profile == NO_PROFILE else profile, overrides=overrides)


def parsed(words: list[str]) -> argparse.Namespace | None:
    """A command's options, if it has any of this project's; AssertionError for what is not there."""
    match words:
        case ["torchrun", "--nproc-per-node", number, *rest]:
            assert int(number) > 0
            return parsed(["python", *rest])
        case ["convnext-roadmap", *rest] | ["python", "-m", "roadmap", *rest]:
            return parser_of_roadmap().parse_args(rest)
        case ["python" | "python3", "-m", "slurm.testbed", *rest]:
            return parser_of_testbed().parse_args(rest)
        case ["python", "-m", "pytest", *rest]:
            assert all((ROOT / word).exists() for word in rest if word.endswith(".py"))
        case ["python", "-m", module, *_]:
            path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
            assert '__name__ == "__main__"' in path.read_text(encoding="utf-8")
        case ["python", script, *rest]:
            assert (ROOT / script).is_file()
            arguments: argparse.Namespace = SCRIPTS[script].parser().parse_args(rest)
            return arguments
        case ["make", target, *variables]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            phony = re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)
            assert phony
            assert target in phony[1].split()
            assert all(f"\n{variable.split('=')[0]} ?= " in makefile for variable in variables)
        case ["pip", "install", source]:
            assert source.startswith(".")
        case ["mkdir", "-p", "runs"]:
            pass
        case ["tar", "xJf", archive, "-C", "runs"]:
            assert (ROOT / archive).is_file()
        case _:
            assert words == ["source", ".venv/bin/activate"]
    return None


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_line_names_what_exists(words: list[str], example: Path) -> None:
    try:
        arguments = parsed(words)
    except SystemExit:
        pytest.fail("an option or argument that the command does not take")
    if arguments is not None:
        check_names(arguments, example)


def test_every_script_is_shown() -> None:
    assert {words[1] for words in COMMANDS if words[0] == "python" and words[1].endswith(".py")} == set(
        SCRIPTS
    )


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    found = re.findall(r"\]\(([^)]+)\)", TEXTS[path]) + re.findall(r'src="([^"]+)"', TEXTS[path])
    links = [link for link in found if not link.startswith("http")]
    assert len(links) >= 6
    for link in links:
        name, _, section = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if section:
            assert section in map(anchor, headings(TEXTS[target])), link


def test_the_readme_links_to_every_page() -> None:
    assert set(re.findall(r"\]\((docs/[^)#]+)\)", README)) >= {f"docs/{path.name}" for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_begins_with_its_purpose_and_its_contents(path: Path) -> None:
    title, purpose, contents, *_ = PAGES[path].split("\n\n")
    assert re.fullmatch(r"# [^\n]+", title)
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*\.", purpose)
    sections = headings(PAGES[path], "##")
    if len(sections) > 3:
        assert contents.splitlines() == [f"- [{section}](#{anchor(section)})" for section in sections]


def table_of(report: str) -> list[dict[str, str]]:
    """The rows of a committed report's table, by column."""
    text = (ROOT / "reports" / report / "ablation.md").read_text(encoding="utf-8")
    head, *rows = rows_of(text, "step")
    return [dict(zip(head, row, strict=True)) for row in rows]


def resolved_in(report: str) -> str:
    """How many differences a committed report's table resolves, in words."""
    verdicts = [row["resolved?"] for row in table_of(report) if row["resolved?"] != "–"]
    return f"resolve {verdicts.count('yes')} of the {len(verdicts)} differences"


def test_the_demo_table_is_the_one_that_collect_wrote() -> None:
    report = (ROOT / "reports/digits_noisy/ablation.md").read_text(encoding="utf-8")
    table = [line for line in report.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(load_roadmap().steps)
    page = PAGES[ROOT / "docs/demo.md"]
    assert "\n".join(table) in page
    assert resolved_in("digits_noisy") in page


def test_the_rows_in_the_readme_are_those_of_the_report() -> None:
    full = {row["step"]: row for row in table_of("cifar10_small")}
    shown_head, *shown = rows_of(README, "step")
    assert len(shown) == 6
    for row in shown:
        assert dict(zip(shown_head, row, strict=True)).items() <= full[row[0]].items()
    assert resolved_in("cifar10_small") in README
    assert resolved_in("cifar10_small") in PAGES[ROOT / "docs/cifar10.md"]


def without_regression(path: Path) -> str:
    """A file of a report without the logistic regression's accuracy, which is fitted where it is read."""
    fitted = r'(logistic regression on the pixels(?:",\s+"top1":|,) )[\d.]+'
    return re.sub(fitted, r"\1", path.read_text("utf-8"))


@pytest.mark.parametrize("report", REPORTS)
def test_a_committed_report_follows_from_its_records(report: str, tmp_path: Path) -> None:
    collect_again(report, tmp_path / "report", tmp_path, "--tables-only", "--records")
    made, committed = tmp_path / "report", ROOT / "reports" / report
    for path in made.iterdir():
        if path.name != NAME:
            assert without_regression(path) == without_regression(committed / path.name), path.name
    assert {path.name for path in made.iterdir()} == {
        path.name for path in committed.iterdir() if path.suffix in (".csv", ".json", ".md", ".tex", ".xz")
    } | {"ablation.html"}


RUNS = {
    "cifar10_small": "57 of 57",
    "digits_as_timm": "50 of 210",  # five rows alone are compared with timm's
    "digits_noisy": "95 of 95",
    "digits_noisy_beyond": "45 of 45",
    "digits_noisy_factorial": "36 of 36",
    "digits_noisy_references": "125 of 125",
}


@pytest.mark.parametrize("report", REPORTS)
def test_a_committed_report_is_of_finished_runs_that_are_alike(report: str) -> None:
    text = (ROOT / "reports" / report / "ablation.md").read_text(encoding="utf-8")
    assert f"\n- {RUNS[report]} runs;" in text
    assert "Hardware:" in text
    # of the references, timm's ResNet was trained later than the others
    mixed = ["Code"] if report == "digits_noisy_references" else []
    assert re.findall(r"^- (\w+): .*MIXED", text, re.MULTILINE) == mixed


def test_the_committed_reports_are_complete() -> None:
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
    for report in REPORTS:
        files = {path.name for path in (ROOT / "reports" / report).iterdir()}
        drawn = set() if "--tables-only" in REPORTS[report] else figures | {"report.html"}
        assert drawn | {"runs.csv", NAME} <= files
