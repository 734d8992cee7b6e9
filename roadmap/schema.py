"""The keys of a configuration: `explain --keys`, docs/config.md, and the JSON Schema that editors read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from roadmap.config import RunConfig, TimmSpec
from roadmap.deltas import Setting, Settings, unknown_keys
from roadmap.errors import ConfigError
from roadmap.steps_file import StepsFile
from roadmap.strict_yaml import show

Schema = dict[str, Any]
TITLE = """\
# Configuration keys

Every key of a run's configuration, with its allowed values and its default."""
INTRODUCTION = """\
A steps file sets these keys in the `set` of a step or a profile, and a command line with `--set KEY=VALUE`.
The defaults are those of `base` in [`steps.yaml`](../steps.yaml). Values are YAML.

`python -m roadmap schema --markdown --out docs/config.md` generates this file.
`python -m roadmap explain --keys` prints the same, and `explain STEP` prints the values of a step."""
OF_A_REFERENCE = "model of a reference step"
ABOUT_REFERENCES = """\
The `config.yaml` of a step with a model of timm has these keys in `model`; `--set` and the `set` of a profile
or step reach the last three of them. See [reference models](models.md#reference-models).
"""
ONLY_IN_A_RUN = "in config.yaml only"
OF_A_RUN = """\
A run's `config.yaml` has all of the above, and these keys, which `--set` does not accept.
"""


@dataclass(frozen=True)
class Key:
    """A key by its dotted name; `values` describes what it accepts."""

    name: str
    values: str
    description: str


def property_at(path: str, schema: Schema, definitions: Schema) -> Schema:
    """The JSON Schema of a key or a section, as in the section around it."""
    for part in path.split("."):
        schema = _dereferenced(schema, definitions)["properties"][part]
    return schema


def _dereferenced(schema: Schema, definitions: Schema) -> Schema:
    return definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _schema_of_runs() -> Schema:
    """The schema of a run's configuration, whose model is one of ours."""
    schema = RunConfig.model_json_schema()
    ours, _ = schema["properties"]["model"].pop("oneOf")
    schema["properties"]["model"] |= ours
    del schema["$defs"][TimmSpec.__name__]
    return schema


def describe_keys(names: Iterable[str]) -> list[Key]:
    """The keys of a run's configuration that have these dotted names."""
    schema = _schema_of_runs()
    found = {name: property_at(name, schema, schema["$defs"]) for name in names}
    return [Key(name, accepted_values(each), each["description"]) for name, each in found.items()]


def keys_below(base: Settings, prefix: str) -> list[Key]:
    """The keys of a section, or the key of that name, or all for an empty prefix; ConfigError for no key."""
    names = [name for name in base if not prefix or f"{name}.".startswith(f"{prefix}.")]
    if not names:
        raise ConfigError(list(unknown_keys(base, {prefix: Setting(None, "", "--keys")})))
    return describe_keys(names)


def accepted_values(schema: Schema) -> str:
    """What a key's schema accepts: 'number > 0, or null', 'list of 2 integers >= 1'."""
    *others, last = _alternatives(schema)
    if not others:
        return last
    return f"{', '.join(others)}{',' if last == 'null' else ''} or {last}"


def _alternatives(schema: Schema) -> list[str]:
    if "anyOf" in schema:
        return [words for part in schema["anyOf"] for words in _alternatives(part)]
    if "enum" in schema or "const" in schema:
        return list(schema.get("enum") or [schema["const"]])
    if schema["type"] == "boolean":
        return ["true", "false"]
    if schema["type"] == "array":
        return [_list(schema)]
    odd = "odd " if schema.get("not") == {"multipleOf": 2} else ""
    return [f"{odd}{schema['type']}{_range(schema)}"]


def _list(schema: Schema) -> str:
    least = schema.get("minItems", 0)
    if "prefixItems" in schema:
        item, length = schema["prefixItems"][0], f"{least} "
    else:
        item, length = schema["items"], f"{least} or more " if least > 1 else ""
    if "enum" in item:
        return f"list of {length}{'of ' if length else ''}{', '.join(item['enum'])}"
    return f"list of {length}{item['type']}s{_range(item)}"


def _range(schema: Schema) -> str:
    """' >= 1', ' in [0, 1)', or nothing where there are no limits."""
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is None and above is None:
        return ""
    if most is None and below is None:
        return f" > {above:g}" if least is None else f" >= {least:g}"
    first = f"({above:g}" if least is None else f"[{least:g}"
    last = f"{below:.10g})" if most is None else f"{most:g}]"
    return f" in {first}, {last}"


def config_markdown(base: Settings) -> str:
    """All keys with their values in `base`, a table for each section."""
    schema = _schema_of_runs()
    sections: dict[str, list[str]] = {}
    for name in base:
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    links = [
        f"- [{title}](#{re.sub(r'[^a-z-]', '', title.replace(' ', '-'))})"
        for title in (*sections, OF_A_REFERENCE, ONLY_IN_A_RUN)
    ]
    lines = [TITLE, "", *links, "", INTRODUCTION]
    for section, names in sections.items():
        section_schema = _dereferenced(property_at(section, schema, schema["$defs"]), schema["$defs"])
        lines += ["", f"## {section}", "", " ".join(section_schema["description"].split()), ""]
        lines += _table(
            ["key", "values", "default", "description"],
            [
                [f"`{key.name}`", key.values, f"`{show(base[key.name].value)}`", key.description]
                for key in describe_keys(names)
            ],
        )
    timm = TimmSpec.model_json_schema()["properties"]
    lines += ["", f"## {OF_A_REFERENCE}", "", ABOUT_REFERENCES]
    lines += _table(
        ["key", "values", "description"],
        [[f"`{name}`", accepted_values(each), each["description"]] for name, each in timm.items()],
    )
    sections_of_base = {path.partition(".")[0] for path in base}
    of_a_run = [name for name in RunConfig.model_fields if name not in sections_of_base]
    lines += ["", f"## {ONLY_IN_A_RUN}", "", OF_A_RUN]
    lines += _table(
        ["key", "values", "description"],
        [[f"`{key.name}`", key.values, key.description] for key in describe_keys(of_a_run)],
    )
    return "\n".join(lines) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    for cells in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def steps_schema(base: Settings) -> Schema:
    """The schema of a steps file whose configurations have the keys of `base`.

    It has keys, types and ranges; only loading the file checks that deltas change something and parents
    exist.
    """
    schema, config = StepsFile.model_json_schema(), _schema_of_runs()
    definitions: Schema = schema.pop("$defs") | config["$defs"]
    sections = {path.partition(".")[0]: config["properties"][path.partition(".")[0]] for path in base}
    for entry in ("StepEntry", "ProfileEntry"):
        properties = definitions[entry]["properties"]
        properties["set"] = {"$ref": "#/$defs/Change", "description": properties["set"]["description"]}
    for mapping in ("profiles", "roadmaps"):
        schema["properties"][mapping]["additionalProperties"] = False
    # a roadmap of the extended file already has a title
    definitions["RoadmapEntry"]["required"] = ["steps"]
    schema["properties"]["base"] = {
        "type": "object",
        "description": schema["properties"]["base"]["description"],
        "properties": sections,
        "required": list(sections),
        "additionalProperties": False,
    }
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "The steps file that this one adds to.",
    }
    schema["oneOf"] = [
        {"required": schema.pop("required"), "not": {"required": ["extends"]}},
        {"required": ["extends"]},
    ]
    changes = _changes(base, {"properties": sections}, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "$defs": definitions | changes,
    }


def _changes(base: Settings, config: Schema, definitions: Schema) -> Schema:
    """For each section an object with any of its keys, which may be nested, dotted, or both."""
    sections = {"", *(path.rsplit(".", depth)[0] for path in base for depth in range(1, path.count(".") + 1))}
    changes = {}
    for section in sections:
        prefix = f"{section}." if section else ""
        below = [path.removeprefix(prefix) for path in base if path.startswith(prefix)]
        names = dict.fromkeys(
            ".".join(path.split(".")[:depth]) for path in below for depth in range(1, path.count(".") + 2)
        )
        properties = {
            name: _reference(prefix + name, config, definitions)
            if prefix + name in sections
            else property_at(prefix + name, config, definitions)
            for name in names
        }
        changes[_title(section)] = {"type": "object", "properties": properties, "additionalProperties": False}
    return dict(sorted(changes.items()))


def _title(section: str) -> str:
    return f"Change.{section}".removesuffix(".")


def _reference(section: str, config: Schema, definitions: Schema) -> Schema:
    """A section with any of its keys."""
    return {
        "$ref": f"#/$defs/{_title(section)}",
        "description": property_at(section, config, definitions)["description"],
    }
