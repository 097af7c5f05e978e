"""Scalars of YAML 1.2, lines, and texts that every reader takes the same way."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imgtool.config.yaml_io import (
    MAX_BYTES,
    Entry,
    format_value,
    key_spans,
    parse_document,
    parse_plain,
    parse_value,
)
from imgtool.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3e-05", 3e-05),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("5ep", "5ep"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("None", "None"),
        ("null", None),
        ("~", None),
        ("", None),
        ("TRUE", True),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_plain(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.INF", "1e999", "9" * 5000])
def test_numbers_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a finite number|digits"):
        parse_plain(text)


@given(SCALARS | st.lists(SCALARS, max_size=4))
def test_written_values_are_read_back_by_us_and_by_pyyaml(value: object) -> None:
    text = f"key: {format_value(value)}  # a comment\n"
    mine = parse_document(text, "x.yaml")["key"].value
    theirs = yaml.safe_load(text)["key"]
    for parsed in (mine, theirs):
        assert parsed == value
        assert repr(parsed) == repr(value)  # 1 is not 1.0, 0.0 is not -0.0


@pytest.mark.parametrize("text", ["yes", "1e-4", "0755", "1_000", "12:30:00", "2024-01-01", "~"])
def test_texts_that_look_like_something_else_are_quoted(text: str) -> None:
    assert format_value(text).startswith('"')


def test_small_floats_have_a_dot() -> None:
    assert format_value(3e-05) == "3.0e-05"
    assert format_value(1e16) == "1.0e+16"
    assert math.isclose(yaml.safe_load(format_value(3e-05)), 3e-05)


@given(st.text())
def test_any_file_is_read_or_refused_in_one_line(text: str) -> None:
    problem = "x.yaml: "
    try:
        entries = parse_document(text, "x.yaml")
    except ConfigError as error:
        problem = str(error)
    else:
        assert all(entry.origin.startswith("x.yaml:") for entry in entries.values())
    assert problem.startswith("x.yaml:")
    assert "\n" not in problem


@given(st.text())
def test_any_override_is_read_or_refused_in_one_line(text: str) -> None:
    problem = "--set a.b: "
    try:
        parse_value(text, "--set a.b")
    except ConfigError as error:
        problem = str(error)
    assert problem.startswith("--set a.b: ")
    assert "\n" not in problem


def test_entries_know_their_lines() -> None:
    text = "# top\nname: a\ntrain:\n  # lr\n  lr: 1e-4\n  betas:\n    - 0.5\n    - 0.9\ndata:\n"
    assert parse_document(text, "x.yaml") == {
        "name": Entry("a", "x.yaml:2"),
        "train.lr": Entry(1e-4, "x.yaml:5"),
        "train.betas": Entry([0.5, 0.9], "x.yaml:6"),
        "data": Entry(None, "x.yaml:9"),
    }


def test_aliases_and_merge_keys_work() -> None:
    text = "a: &a {lr: 1, seed: 2}\nb: {lr: 3}\ntrain:\n  <<: *a\n  lr: 4\n"
    entries = parse_document(text, "x.yaml")
    assert entries["train.lr"] == Entry(4, "x.yaml:5")
    assert entries["train.seed"] == Entry(2, "x.yaml:1")


def test_of_several_merged_mappings_the_first_wins() -> None:
    text = "a: &a {lr: 1}\nb: &b {lr: 2, seed: 3}\ntrain: {<<: [*a, *b]}\n"
    entries = parse_document(text, "x.yaml")
    assert (entries["train.lr"].value, entries["train.seed"].value) == (1, 3)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("train:\n  lr: 1\n  lr: 2\n", 3, "lr stands here for the second time (first on line 2)"),
        ("train:\n\tlr: 1\n", 2, "cannot start any token"),
        ("- 1\n", 1, "a mapping of keys to values was expected"),
        ("just words\n", 1, "a mapping of keys to values was expected"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: [1\nb: 2\n", 2, "expected ',' or ']'"),
        ("a: b: c\n", 1, "mapping values are not allowed here"),
        ("x: 1\na: .nan\n", 2, ".nan is not a finite number"),
        ("a: *b\n", 1, "undefined alias"),
        ("a: &a [1, *a]\n", 1, "an alias that contains itself"),
        ("a: &a {<<: *a}\n", 1, "an alias that contains itself"),
        ("a: !!python/object:os.system x\n", 1, "tags such as !!str are not read"),
        ("x: 1\na: &b !!str 12\n", 2, "tags such as !!str are not read"),
        ("x: 1\ntrain.lr: 1\n", 2, "unknown key train.lr"),
        ("[a, b]: 1\n", 1, "a key is a single word"),
        ("x: 1\ny: \x07\n", 2, "a character that YAML does not allow"),
        (BOMB, 1, "counting what aliases repeat"),
        (MERGE_BOMB, 2, "counting what aliases repeat"),
    ],
)
def test_what_is_not_a_config_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "x.yaml")
    assert str(caught.value).startswith(f"x.yaml:{line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# only words\n", "empty"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "[" * 80 + "]" * 80, "nested too deeply"),
        ("#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_files_that_are_empty_or_too_large_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_document(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        (" 5ep ", "5ep"),
        ("cuda:1", "cuda:1"),
        ("*.png", "*.png"),
        ("#1", "#1"),
        ("a: b", "a: b"),
        ('"12"', "12"),
        ("[0.5, 0.9]", [0.5, 0.9]),
        ("{lr: 1}", {"lr": 1}),
        ("", None),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    assert parse_value(text, "--set a.b") == value


def test_key_spans_are_the_exact_places() -> None:
    text = "x: 1\nbase: ['a.yaml', b/c]  # two\n"
    assert [(word, text[start:end]) for word, start, end in key_spans(text, "x", "base")] == [
        ("a.yaml", "'a.yaml'"),
        ("b/c", "b/c"),
    ]
    assert key_spans("x: 1\n", "x", "base") == []
