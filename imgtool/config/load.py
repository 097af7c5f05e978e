"""A config file, a preset, overrides and options into one checked Experiment.

Later wins: base < file < --tiny < --set < options. Every value remembers where it came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imgtool.config.chain import RESOLVED, Source, find, in_memory, read_chain
from imgtool.config.fields import TOP_KEYS, keys_of, suggest, today
from imgtool.config.flags import fields_of, parse_flag
from imgtool.config.identity import identity, identity_diff, to_dict
from imgtool.config.schema import TINY_FOLDER, Experiment, FamilySchema
from imgtool.config.validate import Problem, build_sections, contradiction, refuse, shown
from imgtool.config.yaml_io import Entry, format_value, parse_value
from imgtool.errors import CheckpointError, ConfigError

__all__ = [
    "Loaded",
    "Override",
    "identity",
    "identity_diff",
    "load",
    "parse_set",
    "read_resolved",
    "read_stored",
    "to_dict",
    "to_yaml",
]

SchemaOf = Callable[[str], FamilySchema]
DEFAULT = "default"
BEFORE = "as before there was a choice"
COMMAND_LINE = "command line"
TINY, SET = "--tiny", "--set"
SHARED_DIR = "output.shared_dir"


@dataclass(frozen=True)
class Loaded:
    """An experiment, and where each of its values came from.

    Attributes:
        experiment: complete and checked.
        origins: `train.lr` -> `default`, `preset phase1_1/base:14`, `experiments/x.yaml:7`,
            `--tiny`, `--set` or the option. A resolved config hands on what it says itself.
    """

    experiment: Experiment
    origins: dict[str, str]


@dataclass(frozen=True)
class Override:
    """A word such as `--set` takes.

    Attributes:
        text: `section.key=value`.
        origin: who says so.
    """

    text: str
    origin: str = SET


def load(
    source: str | Source | None,
    *,
    family: str | None,
    schema_of: SchemaOf,
    sets: Sequence[str | Override] = (),
    flags: Mapping[str, object] | None = None,
    tiny: bool = False,
) -> Loaded:
    """Read, merge and check a config.

    Args:
        source: a file or a preset's name, or what `find` gives; None for the family's defaults.
        family: the family, where the command line names it; the file's own otherwise.
        schema_of: the registry's `schema`.
        sets: `--set` overrides, each `section.key=value` with a YAML value; an Override where
            somebody else says so.
        flags: dotted key -> what the option was given: its text, or True/False. `name` and
            `phase` are keys as well.
        tiny: apply the family's `--tiny` values after the file.

    Raises:
        ConfigError: anything that is wrong in what was given, and where.
    """
    found = find(source) if isinstance(source, str) else source
    chain = [] if found is None else read_chain(found)
    documents = [document.entries for document in chain]
    _refuse_sweep(documents, found)
    chosen = _family(documents, family, found)
    schema = _schema(chosen, schema_of)
    problems: list[Problem] = []
    entries: dict[str, Entry] = {}
    for document in chain:
        entries.pop("name", None)  # what is based on an experiment is another one
        layer = _today(document.entries, schema, problems)
        if document.is_resolved:
            entries.update({**_before(schema), **layer})
        else:
            _lay(layer, entries, schema, problems)
    if tiny:
        _lay(_tiny(schema, entries), entries, schema, problems)
    overrides = [one if isinstance(one, Override) else Override(one) for one in sets]
    for layer in (*map(parse_set, overrides), _parse_flags(flags or {}, schema)):
        _lay(_today(layer, schema, problems), entries, schema, problems)
    refuse(problems)
    stem = schema.name if found is None else found.stem
    label = COMMAND_LINE if found is None else found.label
    entries = {"name": Entry(stem, DEFAULT), **entries, "family": chosen}
    told = {
        origin: text
        for document in chain
        for origin, text in document.told.items()
        if text in (TINY, SET) or not text.startswith("-")  # an option of an earlier command
    }
    loaded = _build(schema, entries, label)
    origins = {key: told.get(origin, origin) for key, origin in loaded.origins.items()}
    return replace(loaded, origins=origins)


def _tiny(schema: FamilySchema, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """What `--tiny` changes; its tables lie in a folder of their own, not over those of others."""
    values = dict(schema.tiny)
    shared = entries.get(SHARED_DIR)
    if shared is not None and isinstance(shared.value, str) and shared.value.strip():
        values[SHARED_DIR] = str(Path(shared.value) / TINY_FOLDER)
    return {key: Entry(value, TINY) for key, value in values.items()}


def _lay(
    layer: Mapping[str, Entry],
    entries: dict[str, Entry],
    schema: FamilySchema,
    problems: list[Problem],
) -> None:
    """Put a layer over those before it; a value of it clears the earlier ones of its rivals."""
    given = [k for k in schema.rivals if k in layer and schema.is_given(k, layer[k].value)]
    for place, key in enumerate(given):
        origin = layer[key].origin
        for rival, none in schema.rivals[key].items():
            if rival in given[:place]:
                continue  # told already
            if rival in layer and schema.is_given(rival, layer[rival].value):
                text = f"{key} and {rival} exclude each other"
                problems.append(Problem(origin, text, "keep one of them"))
            elif rival in entries or keys_of(schema)[rival].default != none:
                entries[rival] = Entry(list(none) if isinstance(none, tuple) else none, origin)
    entries.update(layer)


def _before(schema: FamilySchema) -> dict[str, Entry]:
    """What a config means by keys that are younger than it, where that is not their default."""
    return {
        dotted: Entry(list(key.before) if isinstance(key.before, tuple) else key.before, BEFORE)
        for dotted, key in keys_of(schema).items()
        if key.before != key.default
    }


def _family(
    documents: Sequence[Mapping[str, Entry]], asked: str | None, found: Source | None
) -> Entry:
    named = [document["family"] for document in documents if "family" in document]
    if not named:
        if asked is None:
            where = "" if found is None else f"{found.label}: "
            raise ConfigError(
                f"{where}no model family",
                hint="add a line such as `family: autoencoder`, or give --family",
            )
        return Entry(asked, COMMAND_LINE)
    last = named[-1]
    if not isinstance(last.value, str):
        raise ConfigError(
            f"{last.origin}: family is {shown(last.value)}, expected text",
            hint="such as `family: autoencoder`",
        )
    if asked is not None and asked != last.value:
        raise ConfigError(
            f"{last.origin}: family is {last.value}, but {asked} was asked for",
            hint=f"ask for {last.value}, or choose another config",
        )
    return last


def _schema(chosen: Entry, schema_of: SchemaOf) -> FamilySchema:
    try:
        return schema_of(chosen.value)
    except ConfigError as error:
        if chosen.origin == COMMAND_LINE:
            raise
        raise ConfigError(f"{chosen.origin}: {error}", hint=error.hint) from error


def parse_set(override: Override) -> dict[str, Entry]:
    """`train.lr=1e-4`, or a whole section: `train={lr: 1e-4}`.

    Raises:
        ConfigError: neither, or a key that only a file may have.
    """
    text, origin = override.text, override.origin
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(
            f"{origin}: {text!r} is not key=value", hint="such as --set train.lr=1e-4"
        )
    if key in ("base", "family"):
        raise ConfigError(
            f"{origin}: {key} can only be chosen in a file",
            hint=f"write `{key}: ...` in the config",
        )
    parsed = parse_value(value, f"{origin} {key}")
    if isinstance(parsed, dict) and "." not in key:
        return {f"{key}.{inner}": Entry(item, origin) for inner, item in parsed.items()}
    return {key: Entry(parsed, origin)}


def _refuse_sweep(documents: Sequence[Mapping[str, Entry]], found: Source | None) -> None:
    """A sweep's file is no experiment's; its own keys would all be unknown."""
    last = documents[-1] if documents else {}
    signs = {key.partition(".")[0] for key in last} & {"sweep", "experiments", "matrix"}
    if found is not None and signs:
        word = found.preset or found.label
        raise ConfigError(
            f"{found.label} is a sweep, not an experiment",
            hint=f"`imgtool sweep {word} --dry-run` shows its experiments",
        )


def _parse_flags(flags: Mapping[str, object], schema: FamilySchema) -> dict[str, Entry]:
    known = {flag.key: flag for flag in fields_of(schema)} if flags else {}
    entries = {}
    for key, value in flags.items():
        flag = known[key]
        parsed = value
        if isinstance(value, str):
            try:
                parsed = parse_flag(flag.kind, value)
            except ValueError as error:
                raise ConfigError(
                    f"{flag.names[0]}: {error}", hint="give a finite number"
                ) from error
        origin = f"--no-{flag.names[0][2:]}" if value is False else flag.names[0]
        entries[key] = Entry(parsed, origin)
    return entries


def _today(
    document: Mapping[str, Entry], schema: FamilySchema, problems: list[Problem]
) -> dict[str, Entry]:
    """One document's entries in today's spelling; keys that do not exist become problems."""
    sections = schema.section_types()
    known = keys_of(schema)
    entries: dict[str, Entry] = {}
    for written, entry in document.items():
        key = today(written)
        if key != written and key in document and key not in sections:
            text = f"{written} and {key} are one"
            problems.append(Problem(entry.origin, text, f"keep {key}"))
            continue
        if key in sections and entry.value is None:
            continue  # a heading with nothing below it
        if key in sections:
            problems.append(
                Problem(
                    entry.origin,
                    f"{key} is {shown(entry.value)}, expected keys below it",
                    suggest(f"{key}.", schema),
                )
            )
        else:
            entries[key] = entry
    for section, cls in sections.items():
        if hasattr(cls, "rewrite"):
            entries = _rewritten(section, cls.rewrite, entries, problems)
    for key, entry in list(entries.items()):
        if key not in known and key not in TOP_KEYS:
            problems.append(Problem(entry.origin, f"unknown key {key}", suggest(key, schema)))
            del entries[key]
    return entries


def _rewritten(
    section: str,
    rewrite: Callable[[dict[str, Any]], dict[str, Any]],
    entries: dict[str, Entry],
    problems: list[Problem],
) -> dict[str, Entry]:
    """Older spellings turned into today's; a new key comes from the line of the old one."""
    prefix = f"{section}."
    own = {
        key.removeprefix(prefix): entry for key, entry in entries.items() if key.startswith(prefix)
    }
    if not own:
        return entries
    try:
        new = rewrite({name: entry.value for name, entry in own.items()})
    except ValueError as error:
        given = {prefix + name: entry for name, entry in own.items()}
        first = next(iter(own.values())).origin
        problems.append(contradiction(str(error), given, first, section))
        return {key: entry for key, entry in entries.items() if not key.startswith(prefix)}
    gone = [entry.origin for name, entry in own.items() if name not in new]
    rest = {key: entry for key, entry in entries.items() if not key.startswith(prefix)}
    for name, value in new.items():
        is_old = name in own and (own[name].value == value or not gone)
        origin = own[name].origin if is_old else gone[0]
        rest[prefix + name] = Entry(value, origin)
    return rest


def _build(schema: FamilySchema, entries: Mapping[str, Entry], label: str) -> Loaded:
    name, phase = _text(entries["name"], "name"), _text(entries.get("phase"), "phase")
    sections = build_sections(schema, entries, label)
    experiment = Experiment(name=name or "", phase=phase, family=schema.name, **sections)
    try:
        schema.check(experiment)
    except ValueError as error:
        refuse([contradiction(str(error), entries, label)])
    origins = {
        key: entries[key].origin if key in entries else DEFAULT
        for key in ("name", "phase", "family", *keys_of(schema))
    }
    return Loaded(experiment, origins)


def _text(entry: Entry | None, key: str) -> str | None:
    value = None if entry is None else entry.value
    if entry is None or (value is None and key == "phase"):
        return None
    text = value if isinstance(value, str) else ""
    # Both become parts of file names.
    if not text.strip() or text in (".", "..") or re.search(r"[/\x00-\x1f\x7f\ud800-\udfff]", text):
        is_number = isinstance(value, int | float)
        raise ConfigError(
            f"{entry.origin}: {key} is {shown(value)}, expected text without slashes",
            hint=f'put it in quotes: "{value}"' if is_number else "it becomes part of file names",
        )
    return text


def to_yaml(loaded: Loaded) -> str:
    """The resolved config, with the origin of every value as a comment; itself a config."""
    rows: list[tuple[str, str]] = []
    for key, value in to_dict(loaded.experiment).items():
        if not isinstance(value, dict):
            rows.append((f"{key}: {format_value(value)}", loaded.origins[key]))
            continue
        rows.append(("", ""))
        rows.append((f"{key}:", ""))
        rows += [
            (f"  {name}: {format_value(item)}", loaded.origins[f"{key}.{name}"])
            for name, item in value.items()
        ]
    width = min(max(len(text) for text, _ in rows), 44)
    lines = [f"{text:{width}}  # {_printable(origin)}" if origin else text for text, origin in rows]
    return "\n".join([RESOLVED, *lines]) + "\n"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def read_resolved(path: object, schema_of: SchemaOf) -> Loaded:
    """The config that `to_yaml` wrote to a file; origins are its lines.

    Raises:
        ConfigError: missing, or not such a file.
    """
    return load(str(path), family=None, schema_of=schema_of)


def read_stored(config: object, path: Path, schema_of: SchemaOf) -> Loaded:
    """The config that a checkpoint has, as `to_dict` gave it; `path` is for messages.

    Raises:
        CheckpointError: there is none.
        ConfigError: it has keys that this version does not know.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} has no config", hint="give a checkpoint of imgtool train")
    text = f"{RESOLVED}\n{json.dumps(config)}"
    return load(in_memory(path, text.encode()), family=None, schema_of=schema_of)
