"""The options of `imgtool train FAMILY`, derived from the schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from imgtool.config.fields import Key, Kind, keys_of
from imgtool.config.schema import FamilySchema
from imgtool.config.yaml_io import parse_plain

_NAME = Kind(words="text", scalars=frozenset({"text"}))
_PHASE = Kind(words="text or null", scalars=frozenset({"text"}), is_optional=True)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option.

    Attributes:
        key: the dotted key that it sets, `train.lr`; `name` and `phase` have no dot.
        names: its spellings, `("--lr", "--learning-rate")`.
        metavar: INT, FLOAT, TEXT or the choices; empty for a bool.
        default: the default as a text; empty where nothing is set.
        doc: one line.
        kind: what its value may be.
    """

    key: str
    names: tuple[str, ...]
    metavar: str
    default: str
    doc: str
    kind: Kind

    @property
    def is_bool(self) -> bool:
        """Whether it is `--x/--no-x` and takes no value."""
        return self.kind.scalars == {"bool"}

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return self.kind.is_list

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may take, when only some are allowed."""
        return self.kind.choices


def fields_of(schema: FamilySchema) -> list[Flag]:
    """Every option of a family: name, phase, then each section's keys.

    Raises:
        AssertionError: two keys of the schema claim one option.
    """
    flags = [
        _flag("name", _NAME, "", "The experiment's name; the config's own when unset.", ("name",)),
        _flag("phase", _PHASE, "", "Stage of the study that it belongs to.", ("phase",)),
        *map(_of_key, keys_of(schema).values()),
    ]
    owners: dict[str, str] = {}
    for flag in flags:
        for name in _claimed(flag):
            assert name not in owners, f"{name} is claimed by {owners[name]} and {flag.key}"
            owners[name] = flag.key
    return flags


def _claimed(flag: Flag) -> Iterable[str]:
    yield from flag.names
    if flag.is_bool:
        yield from (f"--no-{name[2:]}" for name in flag.names)


def _of_key(key: Key) -> Flag:
    names = (key.flag or key.name, *key.aliases)
    return _flag(key.dotted, key.kind, _text(key.default), key.doc, names)


def _flag(key: str, kind: Kind, default: str, doc: str, words: Iterable[str]) -> Flag:
    names = tuple("--" + word.replace("_", "-") for word in words)
    return Flag(key=key, names=names, metavar=_metavar(kind), default=default, doc=doc, kind=kind)


def _metavar(kind: Kind) -> str:
    if kind.choices:
        return "|".join(kind.choices) + (",..." if kind.is_list else "")
    if kind.scalars == {"bool"}:
        return ""
    words = {"int": "INT", "float": "FLOAT", "text": "TEXT"}
    word = "|".join(word for scalar, word in words.items() if scalar in kind.scalars)
    return word + (",..." if kind.is_list else "")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value)


def parse_flag(kind: Kind, text: str) -> Any:
    """The value of an option. What cannot be a value of its type stays a text.

    A text is taken as it is, `123` and `true` too; `none` and `null` clear an optional value,
    unless `none` is one of its choices. A list is separated by commas.

    Raises:
        ValueError: a number that is not finite, or too long to read.
    """
    if kind.is_optional and text.lower() in ("none", "null") and text not in kind.choices:
        return None
    if kind.is_list:
        return [_parse_one(kind, part.strip()) for part in text.split(",") if part.strip()]
    return _parse_one(kind, text)


def _parse_one(kind: Kind, text: str) -> Any:
    if not kind.scalars & {"int", "float"}:
        return text
    value = parse_plain(text.strip())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else text
