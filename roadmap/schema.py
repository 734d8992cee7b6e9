"""The JSON Schema of steps files, with which editors complete keys and mark what does not belong."""

from __future__ import annotations

from roadmap.config import RunConfig
from roadmap.keys import Schema, property_at
from roadmap.settings import Settings
from roadmap.steps_file import StepsFile


def steps_schema(base: Settings) -> Schema:
    """The schema of a steps file whose configurations have the keys of `base`.

    It knows keys, types and ranges; that a delta changes something and that parents exist, only loading the
    file can tell.
    """
    schema, config = StepsFile.model_json_schema(), RunConfig.model_json_schema()
    definitions: Schema = schema.pop("$defs") | config["$defs"]
    sections = {path.partition(".")[0]: config["properties"][path.partition(".")[0]] for path in base}
    for entry in ("StepEntry", "ProfileEntry"):
        definitions[entry]["properties"]["set"] = {"$ref": "#/$defs/Change"}
    for mapping in ("profiles", "roadmaps"):
        schema["properties"][mapping]["additionalProperties"] = False
    definitions["RoadmapEntry"]["properties"]["steps"]["minItems"] = 1
    # a roadmap of the extended file has its title already
    definitions["RoadmapEntry"]["required"] = ["steps"]
    schema["properties"]["base"] = {
        "type": "object",
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
