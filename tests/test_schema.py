"""The JSON Schema of steps files accepts what loads, and refuses what does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from roadmap import ROOT, STEPS_YAML
from roadmap.schema import steps_schema
from roadmap.steps import load_roadmap
from roadmap.strict_yaml import parse_yaml
from tests.helpers import commands

SHIPPED = ROOT / "roadmap" / "steps.schema.json"
SCHEMA = json.loads(SHIPPED.read_text(encoding="utf-8"))
MINE = """
extends: steps.yaml
profiles:
  mine: {title: mine, parent: imagenet, set: {recipe: {epochs: 30}, system.data_dir: /data}}
roadmaps:
  convnext_t:
    steps:
      - {name: hard_swish, title: hard swish, set: {model.block.act.kind: hard_swish}}
  other:
    title: another
    base: convnext_t/gelu
    steps:
      - {name: one, title: one}
      - {name: two, title: two, set: {model: {block.spatial: {kernel: 3, kind: conv}, depths: [1, 1]}}, \
counted: {params: 1.5, gmacs: 1}}
"""


def plain(text: str) -> Any:
    """A document as JSON has it."""
    return json.loads(json.dumps(parse_yaml(text, "steps.yaml").plain()))


def errors(text: str) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(plain(text))]


def test_the_shipped_schema_is_the_one_that_is_written(tmp_path: Path) -> None:
    out = tmp_path / "steps.schema.json"
    commands.run([sys.executable, "-m", "roadmap", "schema", "--out", str(out)], cwd=ROOT, check=True)
    printed = commands.run([sys.executable, "-m", "roadmap", "schema"], cwd=ROOT, check=True)
    assert out.read_text(encoding="utf-8") == printed.stdout == SHIPPED.read_text(encoding="utf-8")
    assert steps_schema(load_roadmap().base) == SCHEMA


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_key_has_a_description_wherever_it_may_be_written() -> None:
    base = load_roadmap().base
    changes = {name: schema for name, schema in SCHEMA["$defs"].items() if name.startswith("Change")}
    assert set(base) <= changes["Change"]["properties"].keys()
    silent = [
        f"{name}: {key}"
        for name, schema in changes.items()
        for key, leaf in schema["properties"].items()
        if not leaf.get("description")
    ]
    assert silent == []
    said = changes["Change"]["properties"]["model.block.spatial.kernel"]["description"]
    assert said.startswith("Side k of the kernel")
    assert changes["Change.model.block"]["properties"]["spatial.kernel"]["description"] == said


def test_the_shipped_file_points_editors_to_it() -> None:
    first = STEPS_YAML.read_text(encoding="utf-8").splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (STEPS_YAML.parent / name).samefile(SHIPPED)


def test_what_loads_is_valid(tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text(MINE, encoding="utf-8")
    assert load_roadmap(mine, "other").steps == ("one", "two")
    assert errors(MINE) == []
    assert errors(STEPS_YAML.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("act.kind: hard_swish", "act.kind: hard_swich", "'hard_swich' is not one of"),
        ("act.kind: hard_swish", "act.knd: hard_swish", "'model.block.act.knd' was unexpected"),
        ("kernel: 3", "kernel: 4", "4 should not be valid under"),
        ("kernel: 3", 'kernel: "3"', "'3' is not of type 'integer'"),
        ("epochs: 30", "epochs: 0", "0 is less than the minimum of 1"),
        ("epochs: 30", "epoch: 30", "'epoch' was unexpected"),
        ("depths: [1, 1]", "depths: []", "[] should be non-empty"),
        ("title: mine, ", "", "'title' is a required property"),
        ("  mine:", "  My-own:", "'My-own' do"),
        ("name: one", "name: One", "'One' does not match"),
        ("base: convnext_t/gelu", "base: gelu", "'gelu' is not valid under any"),
        ("params: 1.5, ", "", "is not valid under any"),
        ("extends: steps.yaml\n", "", "is not valid under any"),
    ],
)
def test_what_does_not_load_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert MINE.count(old) == 1
    text = MINE.replace(old, new)
    assert any(said in message for message in errors(text)), errors(text)
    mine = tmp_path / "my.yaml"
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="yaml"):
        load_roadmap(mine, "other")
