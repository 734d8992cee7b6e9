"""What is handed over to Slurm, of which a few words on the PATH take the place: what a job reads, and what
is not submitted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from roadmap import ROOT
from slurm.jobs import job_of_each_run, sources, submissions
from tests.helpers import commands

STEP = (
    "{name: hard_swish, title: hard swish, parent: separate_downsampling, set: {model.block.act.kind:"
    " hard_swish}}"
)
FILES = {
    "steps/my.yaml": f"extends: ../base.yaml\nroadmaps:\n  convnext_t:\n    steps:\n      - {STEP}\n",
    "base.yaml": (
        "extends: steps.yaml\nprofiles:\n  mine: {title: my digits, parent: digits, set: {data.copies: 3}}\n"
    ),
}
HALF_SAVED = "roadmaps:\n  convnext_t: {steps: [\n"
SLURM = {"sbatch": "echo $$", "squeue": "", "srun": "", "scontrol": "echo MaxArraySize = 1001"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, which may be edited."""
    for path in sources(ROOT):
        (tmp_path / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "project" / path)
    return tmp_path / "project"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder to submit from, with a Slurm that takes everything."""
    for name, line in SLURM.items():
        tool = tmp_path / "site/bin" / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        tool.chmod(0o755)
    return tmp_path / "site"


def submit(project: Path, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{site / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    command = [sys.executable, str(project / "slurm/submit.py"), "--cluster", "slurm", "--seeds", "1", *words]
    environment = os.environ | {"PYTHONPATH": str(project), "PATH": path}
    if project == ROOT:
        return commands.run(command, cwd=site, env=environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=site)


def collect(site: Path) -> subprocess.CompletedProcess[str]:
    """Runs the job that collects, as it was submitted."""
    (job,) = site.glob("runs/*/*/jobs/collect/*_submitted.pkl")
    (snapshot,) = site.glob("runs/*/*/jobs/source-*")
    command = DelayedSubmission.load(job).function.command
    environment = os.environ | {"PYTHONPATH": str(snapshot), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [*command, "--tables-only"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=snapshot,
    )


@pytest.mark.parametrize("whose", ["the project's", "the user's"])
def test_the_job_that_collects_reads_nothing_that_is_edited_meanwhile(
    whose: str, project: Path, site: Path
) -> None:
    """Neither steps nor weights."""
    mine = {site / name: text for name, text in FILES.items()}
    for path, text in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (site / "w.pth").write_bytes(b"weights")
    words = (
        ["--profile", "digits"]
        if whose == "the project's"
        else ["--profile", "mine", "--steps-file", "steps/my.yaml"]
    )
    words += ["--steps", "gelu", "--init-from", "w.pth", "--set", "recipe.lr=1e-6", "--out", "out"]
    done = submit(project, site, *words, "--set", "data.val_split='08 😀'")
    assert (done.returncode, done.stderr) == (0, "")
    for path in (*mine, project / "steps.yaml"):
        path.write_text(HALF_SAVED, encoding="utf-8")
    (site / "w.pth").unlink()
    collected = collect(site)
    assert (collected.returncode, collected.stdout) == (2, "")
    # neither what is half saved nor the missing weights, but what no run has brought yet
    assert "holds no finished run of these configurations" in collected.stderr


@pytest.mark.parametrize("more", [[], ["--only", "failed"]])
def test_nothing_is_submitted_while_slurm_does_not_answer(more: list[str], site: Path) -> None:
    words = ["--profile", "digits", "--steps", "gelu"]
    submit(ROOT, site, *words)
    (config,) = site.glob("runs/*/*/*/*/config.yaml")
    before = config.read_bytes(), sorted(config.parents[2].rglob("*submit*"))
    (site / "bin/squeue").write_text("#!/bin/sh\necho slurm_load_jobs error >&2; exit 1\n", encoding="utf-8")
    done = submit(ROOT, site, *words, *more)
    said = (
        "Slurm does not answer, so it is unknown what is queued, and nothing was submitted:"
        " slurm_load_jobs error\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert before == (config.read_bytes(), sorted(config.parents[2].rglob("*submit*")))


PLANS = {
    "one kind fills all": (
        4,
        ["resnet50"],
        ["resnet50", "gelu", "kernel_7"],
        [("0-2%3", []), ("0-5%4", [0])],
    ),
    "kinds side by side": (7, ["resnet50"], ["resnet50", "gelu"], [("0-2%3", []), ("0-2%3", [])]),
    "the lanes that were left, and those of the first": (
        4,
        ["resnet50", "gelu"],
        ["resnet50", "gelu"],
        [("0-2%3", []), ("0-2%3", [0])],
    ),
    "each waits for one": (
        1,
        ["resnet50", "gelu"],
        ["resnet50", "gelu", "kernel_7"],
        [("0-2%1", []), ("0-2%1", [0]), ("0-2%1", [1])],
    ),
    "no limit": (None, ["resnet50"], ["resnet50", "gelu"], [("0-2%3", []), ("0-2%3", [])]),
}


@pytest.mark.parametrize(("parallel", "kinds", "steps", "wanted"), PLANS.values(), ids=PLANS)
def test_a_limit_of_runs_at_a_time_holds_for_all_kinds_of_jobs_together(
    parallel: int | None, kinds: list[str], steps: list[str], wanted: list[tuple[str, list[int]]], site: Path
) -> None:
    own = {step: {"cpus_per_task": number} for number, step in enumerate(kinds, 2)}
    assert arrays_and_waits(site, steps, parallel=parallel, steps=own) == wanted


def test_a_limit_of_runs_at_a_time_holds_where_runs_share_a_gpu(site: Path) -> None:
    """Of five at a time, two jobs train two each; the others fill what is left, and then the first job's."""
    own = {"gelu": {"runs_per_gpu": 1}}
    wanted: list[tuple[str, list[int]]] = [("0-1%2", []), ("0-2%3", [0])]
    found = arrays_and_waits(
        site, ["resnet50", "gelu"], parallel=5, gpus_per_node=1, runs_per_gpu=2, steps=own
    )
    assert found == wanted


def arrays_and_waits(site: Path, names: list[str], **entry: Any) -> list[tuple[str, list[int]]]:
    """Each array that is submitted for three seeds, with the indices of those that it waits for."""
    text = json.dumps({"clusters": {"slurm": {"scheduler": "slurm", **entry}}})
    (site / "c.yaml").write_text(text, encoding="utf-8")
    done = submit(
        ROOT, site, "--profile", "digits", "--steps", *names, "--seeds", "3", "--cluster-file", "c.yaml"
    )
    jobs = re.findall(r"^job (\d+): \d+ job", done.stdout, re.MULTILINE)
    scripts = [
        next(site.glob(f"runs/*/*/jobs/*/{job}_submission.sh")).read_text(encoding="utf-8") for job in jobs
    ]
    arrays = [re.findall(r"--array=(\S+)", script) for script in scripts]
    after = [re.findall(r"--dependency=afterany:(\S+)", script) for script in scripts]
    return [
        (array, [jobs.index(job) for text in waits for job in text.split(":")])
        for (array,), waits in zip(arrays, after, strict=True)
    ]


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def commits_in_jobs(runs: Path) -> set[str]:
    """What a job of each snapshot below `runs` puts on record as its commit."""
    said = set()
    for snapshot in runs.glob("*/*/jobs/source-*"):
        command = [sys.executable, "-c", "from roadmap.provenance import commit; print(commit())"]
        environment = os.environ | {"PYTHONPATH": str(snapshot), "PYTHONSAFEPATH": "1"}
        said.add(
            subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, cwd=runs
            ).stdout.strip()
        )
    return said


@pytest.mark.parametrize("where", ["project/runs", "elsewhere"])
def test_a_job_knows_the_commit_that_it_was_submitted_from(where: str, project: Path, site: Path) -> None:
    runs = project.parent / where
    words = ["--profile", "digits", "--steps", "gelu", "--runs", str(runs)]
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "first")
    first = git(project, "rev-parse", "HEAD")
    submit(project, site, *words)
    (project / "note.txt").write_text("of no importance\n", encoding="utf-8")
    git(project, "add", "note.txt")
    git(project, "commit", "--quiet", "--message", "second")
    submit(project, site, *words)
    assert commits_in_jobs(runs) == {first}, "the code is the same"
    with (project / "roadmap/cli/collect.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    submit(project, site, *words)
    edited = f"{git(project, 'rev-parse', 'HEAD')}+changes"
    git(project, "commit", "--all", "--quiet", "--message", "third")
    assert commits_in_jobs(runs) == {first, edited}


def test_a_job_from_outside_of_git_takes_no_other_commit_for_its_own(project: Path, site: Path) -> None:
    """Such as that of the paper beside which the runs are."""
    git(site, "init", "--quiet")
    git(site, "commit", "--allow-empty", "--quiet", "--message", "a paper")
    submit(project, site, "--profile", "digits", "--steps", "gelu")
    assert commits_in_jobs(site / "runs") == {"None"}


def test_copies_beside_the_records_of_submissions_count_for_nothing(project: Path, site: Path) -> None:
    assert submit(project, site, "--steps", "gelu", "--profile", "digits").returncode == 0
    (jobs,) = site.glob("runs/*/*/jobs")
    known, at = submissions(jobs), job_of_each_run(jobs)
    assert len(known) == len(at) == 1
    (record,) = (path for path in jobs.glob("*.json"))
    shutil.copy(record, jobs / f"{record.stem} (copy).json")
    shutil.copy(record, jobs / f"backup-{record.name}")
    (job,) = (jobs / record.stem).glob("*_submitted.pkl")
    shutil.copy(job, job.with_name(f"0 backup of {job.name}"))
    assert (submissions(jobs), job_of_each_run(jobs)) == (known, at)
