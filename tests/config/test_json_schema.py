"""The JSON Schema: whatever loads is valid by it, and what an editor should mark is not."""

import json
import re

import pytest
from ruamel.yaml import YAML

from imgtool.config import presets
from imgtool.config.fields import keys_of
from imgtool.config.json_schema import json_schema
from imgtool.config.load import load, to_yaml
from imgtool.models.registry import FAMILIES, schema

KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}
HANDLED = {
    *(
        "$schema",
        "title",
        "description",
        "default",
        "definitions",
        "type",
        "enum",
        "const",
        "anyOf",
    ),
    *("allOf", "if", "then", "not", "required", "properties", "additionalProperties", "items"),
    *("minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "minLength", "$ref"),
}


def is_kind(value, kind):
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])


def is_valid(value, rule, root):
    """The part of JSON Schema that is used here; an unknown word fails."""
    assert set(rule) <= HANDLED, set(rule) - HANDLED
    if "$ref" in rule:
        return is_valid(value, root["definitions"][rule["$ref"].rpartition("/")[2]], root)
    kinds = rule.get("type", [])
    tests = [
        not kinds or any(is_kind(value, k) for k in ([kinds] if isinstance(kinds, str) else kinds))
    ]
    tests.append(
        "enum" not in rule or any(value == one and type(value) is type(one) for one in rule["enum"])
    )
    tests.append("const" not in rule or value == rule["const"])
    tests.append("anyOf" not in rule or any(is_valid(value, one, root) for one in rule["anyOf"]))
    tests += [is_valid(value, one, root) for one in rule.get("allOf", [])]
    tests.append("not" not in rule or not is_valid(value, rule["not"], root))
    if "if" in rule and is_valid(value, rule["if"], root):
        tests.append(is_valid(value, rule["then"], root))
    if isinstance(value, dict):
        known = rule.get("properties", {})
        tests += [is_valid(value[name], known[name], root) for name in value if name in known]
        tests += [name in value for name in rule.get("required", [])]
        tests.append(rule.get("additionalProperties", True) or set(value) <= set(known))
    if isinstance(value, list):
        rules = rule.get("items", {})
        rules = rules if isinstance(rules, list) else [rules] * len(value)
        tests += [is_valid(one, own, root) for one, own in zip(value, rules, strict=False)]
        tests.append(rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", 10**9))
    if is_kind(value, "number"):
        tests.append(rule.get("minimum", value) <= value <= rule.get("maximum", value))
        tests.append(not value <= rule.get("exclusiveMinimum", value - 1))
        tests.append(not value >= rule.get("exclusiveMaximum", value + 1))
    if isinstance(value, str):
        tests.append(len(value) >= rule.get("minLength", 0))
    return all(tests)


@pytest.fixture(scope="module")
def whole():
    return json.loads(json.dumps(json_schema({name: schema(name) for name in FAMILIES})))


def read(text):
    return YAML(typ="safe", pure=True).load(text)


def test_every_preset_is_valid(whole):
    for name in presets.names():
        assert is_valid(read(presets.text(name)), whole, whole), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resolved_config_is_valid_and_every_key_is_described(family, whole):
    resolved = read(to_yaml(load(None, family=family, schema_of=schema)))
    one = json_schema({family: schema(family)})
    for rule in (one, whole):
        assert is_valid(resolved, rule, rule)
    for dotted, key in keys_of(schema(family)).items():
        section, _, name = dotted.partition(".")
        assert one["properties"][section]["properties"][name]["description"] == key.doc
        for wrong in ({"a": 1}, [[]]):
            assert not is_valid({"family": family, section: {name: wrong}}, one, one), dotted


@pytest.mark.parametrize(
    "wrong",
    [
        "train: {lr: -1}",
        "train: {lr: fast}",
        "train: {learning: 1}",
        "trian: {lr: 1}",
        "family: autoencodr",
        "family: hpcm\nmodel: {heads: [rgb]}",
        "family: autoencoder\nmodel: {heads: [rgv]}",
        "train: {betas: [0.9]}",
        "name: 3",
    ],
)
def test_what_does_not_load_is_marked(wrong, whole):
    assert not is_valid(read(wrong), whole, whole)


def test_numbers_that_are_choices_are_valid(whole):
    numbers = [
        (dotted, int(choice), name)
        for name in FAMILIES
        for dotted, key in keys_of(schema(name)).items()
        for choice in key.kind.choices
        if re.fullmatch(r"\d+", choice)
    ]
    assert numbers
    for dotted, number, family in numbers:
        section, _, name = dotted.partition(".")
        assert is_valid({"family": family, section: {name: number}}, whole, whole)
