"""The wheel is the whole product: installed far from the checkout, its command plans, trains, submits and
collects.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from roadmap import ROOT

TINY = [
    "--profile",
    "digits",
    "--set",
    "recipe.epochs=1",
    "--set",
    "model.depths=[1,1]",
    "--set",
    "recipe.warmup_epochs=0",
]
OUTSIDE = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        timeout=120,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console command of an environment that holds the wheel; what it depends on is borrowed from this
    one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    git = ["git", "-C", str(folder), "-c", "user.name=user", "-c", "user.email=user@example.com"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "the user's"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        str(folder / "bin/python"),
    ]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    packages = next((folder / "lib").glob("python*/site-packages"))
    # whose own .pth files are not read
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    return folder / "bin/convnext-roadmap"


def call(command: Path, *words: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [command, *map(str, words)],
        cwd=cwd,
        env=OUTSIDE | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_is_read_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "roadmap/steps.yaml",
        "slurm/cluster.yaml",
        "roadmap/steps.schema.json",
        "roadmap/report/page/page.html.j2",
    } <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "blocks",
        "roadmap",
        "slurm",
        "convnext_roadmap",
    }
    kept = {
        str(path.relative_to(ROOT))
        for part in ("blocks", "roadmap", "slurm")
        for path in (ROOT / part).rglob("*")
        if path.is_file()
    }
    kept = {name for name in kept if "__pycache__" not in name}
    assert kept <= names


def test_it_plans_trains_submits_and_collects(command: Path, tmp_path: Path) -> None:
    assert "resnet50" in call(command, "steps", cwd=tmp_path)
    assert "match" in call(command, "verify", cwd=tmp_path)
    call(command, "run", "gelu", *TINY, cwd=tmp_path)
    said = call(
        command,
        "submit",
        "--cluster",
        "local",
        "--steps",
        "gelu",
        "layer_norm",
        "--seeds",
        "1",
        "--workers",
        "1",
        *TINY,
        cwd=tmp_path,
    )
    assert "2 runs" in said
    assert "2 done" in call(command, "status", cwd=tmp_path)
    call(command, "collect", "runs", "--out", "table", "--tables-only", *TINY[2:], cwd=tmp_path)
    assert "layer_norm" in (tmp_path / "table/ablation.md").read_text(encoding="utf-8")
    result = json.loads(next(tmp_path.glob("runs/*/*/gelu/*/result.json")).read_text(encoding="utf-8"))
    assert result["commit"] is None, "of whatever repository the environment lies in"


def test_its_jobs_run_a_snapshot_of_it(command: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from slurm.jobs import keep_steps, take_snapshot
from roadmap import ROOT, STEPS_YAML
snapshot = take_snapshot(Path.cwd())
print(ROOT, snapshot, keep_steps(STEPS_YAML, Path.cwd(), snapshot), sep="\\n")
"""
    python = command.with_name("python")
    root, snapshot, steps = call(python, "-c", script, cwd=tmp_path).splitlines()
    assert ROOT not in (Path(root), *Path(root).parents)
    assert Path(steps).is_file()
    job = "from pathlib import Path; from slurm.jobs import verify_snapshot; import roadmap.steps; "
    job += f"verify_snapshot(Path({snapshot!r})); print(len(roadmap.steps.load_roadmap().steps))"
    assert int(call(python, "-c", job, cwd=tmp_path, PYTHONPATH=snapshot, PYTHONSAFEPATH="1")) > 10
