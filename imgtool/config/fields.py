"""What each key of a config takes, read off the annotations of the schema."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from imgtool.config.bounds import Bound
from imgtool.config.schema import FamilySchema

# What a text may be, by the mark on its annotation.
_TEXTS = {"interval": "epochs such as 5ep", "percent": "a percentage such as 1%"}

TOP_KEYS = ("name", "phase", "base", "family")
# A section's former name -> its name today.
FORMER_SECTIONS = {"lsf": "cluster"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The type of a field, as far as messages and options need it.

    Attributes:
        words: what is expected, such as `a whole number of at least 1`.
        scalars: `int`, `float`, `bool` and `text`: what one value may be.
        choices: the texts that are allowed, when only some are.
        is_optional: whether null is allowed.
        is_list: whether it holds several values.
    """

    words: str
    scalars: frozenset[str]
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_list: bool = False


@dataclass(frozen=True)
class Key:
    """One key of a section: `train.lr`."""

    section: str
    name: str
    kind: Kind
    default: Any
    doc: str
    run: bool
    before: Any
    flag: str | None
    aliases: tuple[str, ...]

    @property
    def dotted(self) -> str:
        """The key as it is written after --set."""
        return f"{self.section}.{self.name}"


def keys_of(schema: FamilySchema) -> dict[str, Key]:
    """Dotted key -> Key, in the order in which a config is written."""
    return {
        key.dotted: key for name, cls in schema.section_types().items() for key in _keys(name, cls)
    }


@cache
def _keys(section: str, cls: type) -> tuple[Key, ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        Key(
            section=section,
            name=field.name,
            kind=kind_of(hints[field.name]),
            default=field.default,
            doc=field.metadata.get("doc", ""),
            run=field.metadata.get("run", False),
            before=field.metadata.get("before", field.default),
            flag=field.metadata.get("flag"),
            aliases=tuple(field.metadata.get("aliases", ())),
        )
        for field in fields(cls)
    )


def kind_of(annotation: Any) -> Kind:
    """Read one annotation: scalars with bounds, Literal, tuple, Optional and unions of these."""
    members = list(_members(annotation, ()))
    words: list[str] = []
    scalars: set[str] = set()
    choices: tuple[str, ...] = ()
    is_optional = is_list = False
    for member, bounds in members:
        if member is type(None):
            is_optional = True
        elif get_origin(member) is Literal:
            choices = tuple(str(choice) for choice in get_args(member))
            scalars.add("text")
            words.append(_one_of(choices))
        elif get_origin(member) is tuple:
            inner = kind_of(get_args(member)[0])
            is_list, choices = True, inner.choices
            scalars |= inner.scalars
            words.append(_list_words(get_args(member), inner))
        else:
            scalar, text = _scalar(member, bounds)
            scalars.add(scalar)
            words.append(text)
    return Kind(
        words=" or ".join([*words, "null"] if is_optional else words),
        scalars=frozenset(scalars),
        choices=choices,
        is_optional=is_optional,
        is_list=is_list,
    )


def _members(annotation: Any, bounds: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The parts of a union, each with what Annotated says of it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        yield from _members(inner, (*bounds, *more))
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part, bounds)
    else:
        yield annotation, bounds


def _one_of(choices: tuple[str, ...]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _list_words(parts: tuple[Any, ...], inner: Kind) -> str:
    if inner.choices:
        return f"a list of {', '.join(inner.choices)}"
    count = "" if parts[-1] is Ellipsis else f"{len(parts)} values, each "
    return f"a list of {count}{inner.words}"


def _scalar(member: Any, bounds: tuple[Any, ...]) -> tuple[str, str]:
    if member is bool:
        return "bool", "true or false"
    if member is int:
        return "int", "a whole number" + _bounds_words(bounds)
    if member is float:
        return "float", "a number" + _bounds_words(bounds)
    if member is str:
        return "text", next((_TEXTS[b] for b in bounds if b in _TEXTS), "text")
    raise TypeError(f"no config field may have the type {member!r}")


def _bounds_words(bounds: tuple[Any, ...]) -> str:
    words = []
    for bound in bounds:
        if isinstance(bound, Bound):
            words.append(f"{bound.words} {bound.value}")
    return " " + " and ".join(words) if words else ""


def spellings(schema: FamilySchema) -> dict[str, str]:
    """What people may write for a key -> the dotted key: names, flags and aliases."""
    known: dict[str, str] = {}
    for dotted, key in keys_of(schema).items():
        for word in (key.name, key.flag, *key.aliases):
            if word:
                known.setdefault(word.replace("-", "_"), dotted)
                known.setdefault(f"{key.section}.{word.replace('-', '_')}", dotted)
    known.update({dotted: dotted for dotted in keys_of(schema)})
    known.update({word: word for word in (*TOP_KEYS, *schema.section_types())})
    return known


def today(key: str) -> str:
    """A dotted key, or a section, by the section's name of today: `lsf.queue` is `cluster.queue`."""
    section, dot, name = key.partition(".")
    return FORMER_SECTIONS.get(section, section) + dot + name


def suggest(word: str, schema: FamilySchema) -> str:
    """A hint for an unknown key: the closest known one, or those of its section."""
    known = spellings(schema)
    sections = schema.section_types()
    plain = word.lower().replace("-", "_")
    section, _, name = plain.rpartition(".")
    guess = _closest(plain, known) or _closest(name, known)
    if guess:
        return f"did you mean {known[guess]!r}?"
    if section in sections:
        return f"keys of {section}: " + ", ".join(
            key.name for key in keys_of(schema).values() if key.section == section
        )
    guess = _closest(section, sections)
    if guess:
        return f"did you mean {guess!r}?"
    return "known: " + ", ".join((*TOP_KEYS, *sections))


def _closest(word: str, known: Iterable[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return close[0] if close else None
