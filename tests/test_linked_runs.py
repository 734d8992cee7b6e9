"""Folders of runs that are links, such as to a larger disk: all commands find the same runs, each once, by
the names of their tree.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.records import find_runs
from tests.helpers import commands
from tests.test_status import PLAN, call, finish, make, status_json

NAMES = [f"convnext_t/digits/{step}/seed{seed}-0123abcd" for step in ("gelu", "resnet50") for seed in (0, 1)]
LINKED = {
    "all": ".",
    "a roadmap": "convnext_t",
    "a profile": "convnext_t/digits",
    "a step": "convnext_t/digits/gelu",
    "a run": "convnext_t/digits/gelu/seed0-0123abcd",
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path / "runs"


def move_away(folder: Path, disk: Path) -> None:
    """Leaves a link to where a folder is now; what is above it there could be a roadmap, a profile and a
    step.
    """
    target = disk / "a/b/c" / folder.name
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    folder.symlink_to(target)


def names(root: Path) -> list[str]:
    return [run.name for run in find_runs(root)]


@pytest.mark.parametrize("which", LINKED.values(), ids=LINKED)
def test_runs_behind_a_link_have_the_names_of_their_tree(which: str, runs: Path, tmp_path: Path) -> None:
    move_away(runs / which, tmp_path / "disk")
    assert names(runs) == NAMES
    assert [run.path for run in find_runs(runs)] == [runs / name for name in NAMES]
    assert names(runs / "convnext_t/digits") == NAMES
    assert names(runs / "convnext_t/digits/gelu") == NAMES[:2]
    assert names(runs / NAMES[0]) == NAMES[:1]


def test_each_folder_is_searched_once_however_many_links_lead_to_it(runs: Path, tmp_path: Path) -> None:
    (runs / "a_copy").symlink_to(runs / "convnext_t")
    (runs / "convnext_t/digits/gelu/up").symlink_to(runs)
    (runs / "convnext_t/digits/resnet50/out").symlink_to(tmp_path)
    (runs / "convnext_t/digits/itself").symlink_to("itself")
    (runs / "convnext_t/digits/broken").symlink_to("nowhere")
    (runs / "convnext_t/digits/gelu/seed2-0123abcd").symlink_to("seed0-0123abcd")
    (runs / "notes").symlink_to(ROOT / "steps.yaml")
    assert [run.path for run in find_runs(runs)] == [runs / name for name in NAMES]


def test_of_two_links_the_first_one_counts(runs: Path, tmp_path: Path) -> None:
    move_away(runs / "convnext_t/digits", tmp_path / "disk")
    (runs / "convnext_t/mine").symlink_to(tmp_path / "disk/a/b/c/digits")
    (runs / "convnext_t/again").symlink_to(tmp_path / "disk/a/b/c/digits")
    assert {run.experiment for run in find_runs(runs)} == {("convnext_t", "again")}
    assert len(find_runs(runs)) == len(NAMES)


def test_a_folder_behind_a_link_that_cannot_be_left_by_its_parent(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`..` behind a link is the parent of where the link leads; the shell's name of the current folder keeps
    the links.
    """
    move_away(runs / "convnext_t/digits", tmp_path / "disk")
    (tmp_path / "disk/a/b/other/kernel_7/seed0-0123abcd").mkdir(parents=True)
    assert names(runs / "convnext_t/digits/../../other") == ["b/other/kernel_7/seed0-0123abcd"]
    monkeypatch.chdir(runs / "convnext_t/digits")
    monkeypatch.setenv("PWD", str(runs / "convnext_t/digits"))
    assert names(Path()) == NAMES
    monkeypatch.setenv("PWD", str(runs))
    assert names(Path("gelu")) == ["c/digits/gelu/seed0-0123abcd", "c/digits/gelu/seed1-0123abcd"]


def shown(runs: Path, out: Path) -> list[object]:
    """What the commands say of a folder of runs."""
    states = [
        [one[key] for key in ("roadmap", "profile", "step", "seed", "state", "top1")]
        for one in status_json(runs)["runs"]
    ]
    plan = ["--profile", "digits", "--steps", "gelu", "resnet50", "--seeds", "3", "--cluster", "local", *PLAN]
    planned = call("submit", "--runs", runs, "--dry-run", *plan).stdout
    cancelled = call("cancel", runs, "--steps", "gelu", "--seed", "2", "--dry-run").stdout
    collect = [sys.executable, str(ROOT / "collect.py"), str(runs), "--out", str(out), "--tables-only", *PLAN]
    done = commands.run(collect, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return [
        states,
        planned,
        cancelled,
        *((out / name).read_bytes() for name in ("ablation.md", "ablation.json", "runs.csv")),
    ]


def test_all_commands_find_the_same_runs_behind_links(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for step in ("gelu", "resnet50"):
        for seed in (0, 1):
            finish(make(runs, step, seed), top1=80.0 + seed)
    make(runs, "gelu", 2)
    before = shown(runs, tmp_path / "before")
    for which in ("a run", "a step", "a profile"):
        move_away(runs / LINKED[which].replace("0123abcd", make(runs, "gelu").hash), tmp_path / "disk")
    assert shown(runs, tmp_path / "after") == before
