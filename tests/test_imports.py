"""A module imports only from its own floor and those below, and only training needs torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The floor of each module; `*` stands for all modules of a package that are not named.
FLOORS = {
    "blocks.*": 0,
    "roadmap": 1,
    "roadmap.errors": 1,
    "roadmap.strict_yaml": 1,
    "roadmap.disk": 1,
    "roadmap.config": 1,
    "roadmap.steps": 1,
    "roadmap.steps_file": 1,
    "roadmap.ablations": 1,
    "roadmap.screening": 1,
    "roadmap.schema": 1,
    "roadmap.deltas": 1,
    "roadmap.batches": 1,
    "roadmap.files": 2,
    "roadmap.lease": 2,
    "roadmap.records": 2,
    "roadmap.provenance": 2,
    "roadmap.rng": 2,
    "roadmap.weight_files": 2,
    "roadmap.terminal": 2,
    "roadmap.data.*": 2,
    "roadmap.training": 2,
    "roadmap.training.device": 2,
    "roadmap.training.distributed": 2,
    "roadmap.training.launch": 2,
    "roadmap.training.optim": 2,
    "roadmap.training.profiler": 2,
    "roadmap.training.callbacks": 2,
    "roadmap.training.metrics": 2,
    "roadmap.signals": 2,
    "roadmap.training.checkpoint": 3,
    "roadmap.training.clock": 2,
    "roadmap.training.compiled": 2,
    "roadmap.training.engine": 3,
    "roadmap.training.initial_weights": 3,
    "roadmap.training.device_transforms": 3,
    "roadmap.training.trainer": 4,
    "roadmap.training.evaluate": 4,
    "roadmap.train": 4,
    "roadmap.downstream": 4,
    "roadmap.downstream_options": 4,
    "roadmap.weights": 3,
    "roadmap.export": 3,
    "roadmap.networks": 3,
    "roadmap.references": 2,
    "roadmap.timm_models": 3,
    "roadmap.report": 3,
    "roadmap.report.stats": 3,
    "roadmap.report.precision": 3,
    "roadmap.report.*": 4,
    "roadmap.bench": 1,
    "roadmap.bench.options": 1,
    "roadmap.bench.*": 4,
    "roadmap.doctor": 1,
    "roadmap.doctor.options": 1,
    "roadmap.doctor.*": 5,
    "roadmap.cli": 1,
    "roadmap.cli.*": 4,
    "roadmap.cli.arguments": 4,
    "roadmap.cli.inspect": 4,
    "roadmap.cli.options": 1,
    "roadmap.estimate": 4,
    "roadmap.run": 4,
    "roadmap.verify": 4,
    "roadmap.__main__": 5,
    "run_step": 5,
    "collect": 5,
    "slurm.*": 5,
    "examples.*": 5,
}
NEEDS_TORCH = {
    "blocks.model",
    "blocks.depthwise",
    "blocks.modules",
    "blocks.residual",
    "roadmap.rng",
    "roadmap.data.augmentation",
    "roadmap.data.cache",
    "roadmap.data.crops",
    "roadmap.data.loader",
    "roadmap.data.datasets",
    "roadmap.data.map_style",
    "roadmap.data.synthetic",
    "roadmap.data.iterable_style",
    "roadmap.data.tensor_decoder",
    "roadmap.training.optim",
    "roadmap.training.checkpoint",
    "roadmap.training.clock",
    "roadmap.training.compiled",
    "roadmap.training.engine",
    "roadmap.training.metrics",
    "roadmap.training.device_transforms",
    "roadmap.training.distributed",
    "roadmap.training.device",
    "roadmap.training.trainer",
    "roadmap.train",
    "roadmap.training.evaluate",
    "roadmap.weights",
    "roadmap.export",
    "roadmap.networks",
    "roadmap.timm_models",
    "roadmap.training.profiler",
    "roadmap.bench.bench",
    "roadmap.bench.interleave",
    "roadmap.bench.memory",
    "roadmap.bench.workloads",
    "roadmap.doctor.correctness",
    "roadmap.doctor.device",
    "roadmap.doctor.speed",
    "roadmap.doctor.training_runs",
    "roadmap.downstream",
    "examples.mask_rcnn",
    "examples.upernet",
}
HEAVY = ("torch", "timm", "sklearn")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATTERNS = ("*.py", "blocks/**/*.py", "roadmap/**/*.py", "slurm/**/*.py", "examples/*.py")
MODULES = {name_of(path): path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))}
PACKAGES = {name.partition(".")[0] for name in MODULES}


def floor_of(module: str) -> int:
    packages = [module, *(f"{module.rsplit('.', depth)[0]}.*" for depth in range(module.count(".") + 1))]
    floor = next((FLOORS[name] for name in packages if name in FLOORS), None)
    assert floor is not None, f"{module} has no floor: decide what it may import and give it one in FLOORS"
    return floor


def imports(source: str) -> Iterator[str]:
    """The project's modules that `source` imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"line {node.lineno}: write `from package.module import name`, not a relative import"
            )
            package = node.module or ""
            members = [f"{package}.{alias.name}" for alias in node.names]
            found = [member if member in MODULES else package for member in members]
        else:
            continue
        yield from (name for name in dict.fromkeys(found) if name.partition(".")[0] in PACKAGES)


def upward(module: str, source: str) -> list[str]:
    return [f"{module} imports {name}" for name in imports(source) if floor_of(name) > floor_of(module)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_above(module: str) -> None:
    assert upward(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] == "blocks"])
def test_blocks_know_nothing_of_the_experiment(module: str) -> None:
    assert {name.partition(".")[0] for name in imports(MODULES[module].read_text(encoding="utf-8"))} <= {
        "blocks"
    }


@pytest.mark.parametrize(
    "line",
    [
        "import roadmap.train",
        "from roadmap.train import train",
        "from roadmap import train",
        "def later():\n    from roadmap.train import train",
        "if TYPE_CHECKING:\n    import roadmap.train as t",
    ],
)
def test_an_import_from_above_is_seen_wherever_it_stands(line: str) -> None:
    assert upward("roadmap.training.engine", line) == ["roadmap.training.engine imports roadmap.train"]


def test_a_module_without_a_floor_is_named() -> None:
    with pytest.raises(AssertionError, match=r"roadmap\.novel has no floor"):
        upward("roadmap.novel", "import roadmap.train")


PROBE = f"""
import importlib, json, sys
guilty = {{}}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY} if heavy in sys.modules and heavy not in guilty]
    guilty.update(dict.fromkeys(loaded, name))
print(json.dumps(guilty))
"""


def first_importers(modules: list[str]) -> dict[str, str]:
    """Each heavy package that a fresh interpreter has loaded after importing `modules`, with the one that
    loaded it.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, str] = json.loads(done.stdout)
    return loaded


def test_only_training_needs_torch() -> None:
    light = sorted(MODULES.keys() - NEEDS_TORCH)
    assert {"blocks.plan", "roadmap.run", "run_step", "slurm.submit"} <= set(light)
    assert first_importers(light) == {}


def test_a_heavy_import_is_seen() -> None:
    assert first_importers(["blocks.plan", "blocks.depthwise"]) == {"torch": "blocks.depthwise"}


HELP = [
    "run_step.py",
    "collect.py",
    "roadmap/__main__.py",
    "slurm/submit.py",
    "slurm/status.py",
    "slurm/cancel.py",
    "slurm/logs.py",
]


@pytest.mark.parametrize("script", HELP)
def test_help_needs_nothing_but_the_standard_library(script: str) -> None:
    words = ["-m", "roadmap"] if script.startswith("roadmap/") else [str(ROOT / script)]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "argparse" in imported
    assert imported & {"pydantic", "yaml", "rich", "numpy", "pandas", "submitit", "torch", "timm"} == set()
