"""Every key of a configuration is described where it is defined, and docs/config.md shows it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import blocks.spec
import roadmap.config
from blocks.spec import Spec
from roadmap import ROOT
from roadmap.config import RunConfig, TimmSpec
from roadmap.schema import config_markdown, describe_keys
from roadmap.steps import load_roadmap
from slurm.cluster import Cluster
from tests.helpers import commands

COMMITTED = ROOT / "docs" / "config.md"
BASE = load_roadmap().base
SECTIONS = sorted(
    {
        value
        for module in (blocks.spec, roadmap.config)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Spec) and value is not Spec
    },
    key=lambda section: section.__name__,
)


@pytest.mark.parametrize("section", [*SECTIONS, Cluster], ids=lambda section: section.__name__)
def test_every_key_has_a_description(section: type[Spec]) -> None:
    assert [
        name for name, field in section.model_fields.items() if not (field.description or "").strip()
    ] == []


def test_all_sections_of_a_configuration_are_among_them() -> None:
    inside = RunConfig.model_json_schema()["$defs"].keys() | {"RunConfig"}
    assert inside == {section.__name__ for section in SECTIONS}


@pytest.mark.parametrize(
    "key", describe_keys([*BASE, "roadmap", "step", "profile", "seed"]), ids=lambda key: key.name
)
def test_a_description_is_short_sentences(key: Any) -> None:
    assert re.fullmatch(r"([A-Z`]|timm).*\.", key.description), key.description
    assert "  " not in key.description
    assert key.description.count("`") % 2 == 0
    assert len(key.description) <= 280


def test_the_committed_page_is_the_one_that_is_written(tmp_path: Path) -> None:
    out = tmp_path / "config.md"
    commands.run(
        [sys.executable, "-m", "roadmap", "schema", "--markdown", "--out", str(out)], cwd=ROOT, check=True
    )
    text = COMMITTED.read_text(encoding="utf-8")
    assert out.read_text(encoding="utf-8") == text == config_markdown(BASE)


def test_the_page_has_a_row_for_every_key() -> None:
    page = COMMITTED.read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == sorted(
        [*BASE, *TimmSpec.model_fields, "roadmap", "step", "profile", "seed"]
    )
    columns = {len(re.split(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("| `model")}
    assert columns == {6}
    assert (
        "| `recipe.clip_grad` | number > 0, or null | `null` | Largest norm of the gradient over all"
        " parameters; null does not clip. |" in page
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.depths", "list of integers >= 1"),
        ("model.width_mult", "number in (0, 64]"),
        ("model.head_norm", "true or false"),
        ("model.stem.kind", "resnet, patchify or overlapping"),
        ("model.block.order", "list of 3 of pw1, spatial, pw2"),
        ("model.block.spatial.kernel", "odd integer >= 1"),
        ("recipe.betas", "list of 2 numbers in [0, 1)"),
        ("recipe.crop_scale", "list of 2 numbers in (0, 1], or null"),
        ("recipe.precision", "fp32, tf32, bf16 or fp16"),
        ("data.mean", "list of numbers"),
        ("data.classes", "list of 2 or more strings, or null"),
        ("system.compile", "off, default, max-autotune, reduce-overhead, try, true or false"),
        ("system.trackers", "list of tensorboard, wandb"),
        ("system.data_dir", "string, or null"),
        ("seed", "integer in [0, 4294967296)"),
    ],
)
def test_accepted_values_are_put_in_words(name: str, words: str) -> None:
    (key,) = describe_keys([name])
    assert key.values == words
