"""Raw values into the schema's dataclasses, and what is wrong with them in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from imgtool.config.fields import Key, Kind, keys_of
from imgtool.config.schema import FamilySchema
from imgtool.config.yaml_io import Entry, format_value, parse_plain
from imgtool.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Of a name or phase in UTF-8: a sweep adds a hash, and samples `_iter_000100_comparison.png`.
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where it was written."""

    origin: str
    text: str
    hint: str | None = None


def refuse(problems: list[Problem]) -> None:
    """Raise the first problem, with the number of the others.

    Raises:
        ConfigError: there is a problem.
    """
    if problems:
        first, more = problems[0], len(problems) - 1
        count = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        raise ConfigError(f"{first.origin}: {first.text}{count}", hint=first.hint)


def build_sections(
    schema: FamilySchema, entries: Mapping[str, Entry], label: str
) -> dict[str, Any]:
    """Every section as its dataclass; keys without an entry keep their defaults.

    Args:
        schema: the family's.
        entries: dotted key -> what was given.
        label: the config, for messages that know no better source.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    keys = keys_of(schema)
    problems: list[Problem] = []
    sections: dict[str, Any] = {}
    for section, cls in schema.section_types().items():
        given = {d: e for d, e in entries.items() if d in keys and keys[d].section == section}
        unreadable = [dotted for dotted, entry in given.items() if _has_surrogate(entry.value)]
        problems += [
            Problem(given[dotted].origin, f"{dotted} is not UTF-8", "retype it")
            for dotted in unreadable
        ]
        if not unreadable:
            sections[section] = _build(cls, given, problems, keys, section, label)
    refuse(problems)
    return sections


def _has_surrogate(value: Any) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in str(value))


def _build(
    cls: type,
    given: Mapping[str, Entry],
    problems: list[Problem],
    keys: Mapping[str, Key],
    section: str,
    label: str,
) -> Any:
    from pydantic import ValidationError

    raw = {keys[d].name: _spelled(entry.value, keys[d].kind) for d, entry in given.items()}
    try:
        # JSON, because strict Python input would want tuples and instances.
        return _adapter(cls).validate_json(json.dumps(raw))
    except ValidationError as error:
        details = error.errors(include_url=False)
    for name in dict.fromkeys(str(detail["loc"][0]) for detail in details if detail["loc"]):
        key = keys[f"{section}.{name}"]
        problems.append(_wrong_value(key, given[key.dotted]))
    for detail in details:
        if not detail["loc"]:  # the dataclass's own check, reached when every value is fine
            text = str(detail["ctx"]["error"])
            problems.append(contradiction(text, given, label, section))
    return None


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _spelled(value: Any, kind: Kind) -> Any:
    """`precision: 32` means "32": where only certain texts are allowed, there is no doubt."""
    if type(value) is int and str(value) in kind.choices:
        return str(value)
    return value


def contradiction(
    text: str, given: Mapping[str, Entry], otherwise: str, section: str = ""
) -> Problem:
    """What a check of the schema says, at the first key that it names.

    Args:
        text: the message; of a section's own check, with the section's keys as plain words.
        given: the entries that were written somewhere.
        otherwise: where, when none of them is named.
        section: the section whose check speaks; empty for the family's.
    """
    words = re.findall(r"[\w.]*\w", text)
    if section:
        named = [f"{section}.{word}" for word in words]
        text = f"{section}.{text}" if named and named[0] in given else f"{section}: {text}"
    else:
        named = [*words, *(key for word in words for key in given if key.endswith(f".{word}"))]
    origins = [given[key].origin for key in named if key in given]
    hint = "change it, or leave it out: `imgtool config show` prints the defaults"
    return Problem(origins[0] if origins else otherwise, text, hint)


def title(entry: Entry | None, key: str) -> str | None:
    """A name or phase, which become parts of file names; None where no phase is given.

    Raises:
        ConfigError: no text, or none that a file can be named after.
    """
    value = None if entry is None else entry.value
    if entry is None or (value is None and key == "phase"):
        return None
    text = value if isinstance(value, str) else ""
    if not text.strip() or text in (".", "..") or re.search(r"[/\x00-\x1f\x7f\ud800-\udfff]", text):
        is_number = isinstance(value, int | float)
        raise ConfigError(
            f"{entry.origin}: {key} is {shown(value)}, expected text without slashes",
            hint=f'put it in quotes: "{value}"' if is_number else "it becomes part of file names",
        )
    size = len(text.encode())
    if size > MAX_NAME_BYTES:
        raise ConfigError(
            f"{entry.origin}: {key} has {size} bytes, and may have {MAX_NAME_BYTES}",
            hint="shorten it: files are named after it, and a file's name has at most 255 bytes",
        )
    return text


def _wrong_value(key: Key, entry: Entry) -> Problem:
    text = f"{key.dotted} is {shown(entry.value)}, expected {key.kind.words}"
    return Problem(entry.origin, text, _hint(key.kind, entry.value) or _default_hint(key))


def _default_hint(key: Key) -> str:
    if key.default is None:
        return f"leave {key.name} out to have none"
    return f"the default is {format_value(key.default)}"


def shown(value: Any) -> str:
    """A value in an error message: short, and texts told from numbers."""
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else format_value(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(kind: Kind, value: Any) -> str | None:
    if kind.is_list and not isinstance(value, list | dict):
        return f"write [{format_value(value)}]"
    if kind.choices:
        wrong = value if isinstance(value, list) else [value]
        return _choice_hint([str(one) for one in wrong if one not in kind.choices], kind.choices)
    if isinstance(value, str):
        return _number_hint(kind, value)
    if isinstance(value, float) and "int" in kind.scalars and value.is_integer():
        return f"write {int(value)}"
    if kind.scalars == {"text"} and isinstance(value, bool | int | float):
        return f'put it in quotes: "{format_value(value)}"'
    return None


def _choice_hint(wrong: list[str], choices: tuple[str, ...]) -> str | None:
    if not wrong or not wrong[0]:
        return None
    longer = [choice for choice in choices if choice.startswith(wrong[0].lower())]
    guess = did_you_mean(longer[0] if longer else wrong[0], list(choices))
    return guess if guess and guess.startswith("did") else None


def _number_hint(kind: Kind, value: str) -> str | None:
    if "bool" in kind.scalars:
        return "write true or false, without quotes"
    if not kind.scalars & {"int", "float"}:
        return None
    try:
        number = parse_plain(value.strip().replace("_", ""))
    except ValueError:
        return None
    if isinstance(number, int | float) and not isinstance(number, bool):
        return f"write the number without quotes: {format_value(number)}"
    return None
