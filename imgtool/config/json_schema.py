"""The JSON Schema of a config, for editors: names, types, bounds, choices, defaults, one line each.

Draft 7, which every YAML language server knows. What contradicts itself across keys is told by `imgtool config check` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtool.config.fields import keys_of
from imgtool.config.schema import FamilySchema

DIALECT = "http://json-schema.org/draft-07/schema#"
_WORD = {"type": "string", "minLength": 1}


def json_schema(families: Mapping[str, FamilySchema]) -> dict[str, Any]:
    """What a config may say: one family's keys, or those of whichever its `family:` names.

    Args:
        families: name -> schema. A config of several that leaves `family:` to its base may have
            any family's keys.
    """
    documents = {name: _document(name, schema) for name, schema in families.items()}
    head = {"$schema": DIALECT, "title": "A config of imgtool"}
    if len(documents) == 1:
        return {**head, **next(iter(documents.values()))}
    chosen = [
        {
            "if": {"properties": {"family": {"const": name}}, "required": ["family"]},
            "then": {"$ref": f"#/definitions/{name}"},
        }
        for name in documents
    ]
    otherwise = {
        "if": {"not": {"required": ["family"]}},
        "then": {"anyOf": [{"$ref": f"#/definitions/{name}"} for name in documents]},
    }
    family = {"enum": list(documents), "description": "The model family."}
    return {
        **head,
        "type": "object",
        "properties": {"family": family},
        "allOf": [*chosen, otherwise],
        "definitions": documents,
    }


def _document(name: str, schema: FamilySchema) -> dict[str, Any]:
    sections = {
        section: _section(section, cls, schema) for section, cls in schema.section_types().items()
    }
    bases = {"anyOf": [_WORD, {"type": "array", "items": _WORD}, {"type": "null"}]}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {**_WORD, "description": "The experiment's name; the file's when unset."},
            "phase": {"type": ["string", "null"], "description": "Stage of the study."},
            "base": {**bases, "description": "Configs or presets that this one changes."},
            "family": {"const": name, "description": "The model family."},
            **sections,
        },
    }


def _section(section: str, cls: type, schema: FamilySchema) -> dict[str, Any]:
    from pydantic import TypeAdapter

    found = TypeAdapter(cls).json_schema()
    keys = {key.name: key for key in keys_of(schema).values() if key.section == section}
    found.pop("title", None)
    for name, value in found["properties"].items():
        value.pop("title", None)
        value["description"] = keys[name].doc
        for part in (value, *value.get("anyOf", ())):
            _as_written(part)
    return {**found, "type": ["object", "null"]}


def _as_written(part: dict[str, Any]) -> None:
    """In the words of draft 7; and `precision: 32` means "32", of which there is no doubt."""
    if "prefixItems" in part:
        part["items"] = part.pop("prefixItems")
    numbers = [int(word) for word in part.get("enum", ()) if word.isdecimal()]
    if numbers:
        part["enum"] = [*part["enum"], *numbers]
        part.pop("type", None)
