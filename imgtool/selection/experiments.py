"""What one experiment is: runs whose configs differ in the seed alone."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from imgtool.models.registry import FAMILIES, schema
from imgtool.selection.candidates import natural
from imgtool.selection.records import Evidence
from imgtool.selection.sources import CSV_END, Source

SEED_KEY = "train.seed"
_SEED = re.compile(r"[-_.]?seed[-_=]?(\d+)$", re.IGNORECASE)
_HASH = re.compile(r"-[0-9a-f]{8}$")


def grouped(
    found: Sequence[Evidence], sources: Sequence[Source], *, apart: tuple[str, ...] = ()
) -> list[Evidence]:
    """Give runs that differ in their seed alone one group, and every group a name of its own.

    Of a run with a config that is its identity (and the data's fingerprint) less the seed; of a
    run that a sweep has only planned, what the sweep overrides; of a bare table a `seedN` at the
    end of its name, or its column `seed`. Whatever else has the same name is told apart by its
    path, and so is a run whose seed a sibling has already.

    Args:
        found: evidence; `sources` says of each where it was read.
        apart: further keys of the config that runs of one experiment may differ in.
    """
    apart = (SEED_KEY, *apart)
    keys = _keys(found, sources, apart)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    seeds = [_seed_of(one) for one in found]
    points = [
        (seed, *((one.config or {}).get(key) for key in apart[1:]))
        for seed, one in zip(seeds, found, strict=True)
    ]
    for index in sorted(range(len(found)), key=lambda i: (natural(_path(found[i])), str(seeds[i]))):
        key, layer = keys[index], 0
        if key is None:
            groups["alone", str(index)].append(index)
            continue
        # The same seed twice is no repeat.
        while any(points[other] == points[index] for other in groups[*key, str(layer)]):
            layer += 1
        groups[*key, str(layer)].append(index)
    members = [group for group in groups.values() if group]
    result = list(found)
    for group, name in zip(members, _names([[found[i] for i in g] for g in members]), strict=True):
        for index in group:
            result[index] = replace(found[index], group=name, seed=seeds[index])
    return result


def _keys(
    found: Sequence[Evidence], sources: Sequence[Source], apart: tuple[str, ...]
) -> list[tuple[str, ...] | None]:
    """What runs of one experiment have in common; None for a run that has no siblings."""
    configs: dict[str, set[str]] = defaultdict(set)  # config -> fingerprints of data
    for one in found:
        if one.config is not None and "data_fingerprint" in one.facts:
            configs[_config_key(one, apart)].add(one.facts["data_fingerprint"])
    keys: list[tuple[str, ...] | None] = []
    for one, source in zip(found, sources, strict=True):
        planned = _sweep_key(source, apart)
        if one.config is not None:
            own = _config_key(one, apart)
            data = one.facts.get("data_fingerprint", "") if len(configs[own]) > 1 else ""
            keys.append(("config", own, data))
        elif planned is not None:
            keys.append(planned)
        else:
            keys.append(_table_key(one))
    # A trial that has not begun has no config yet: it belongs to those of its sweep that do.
    begun: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for key, source in zip(keys, sources, strict=True):
        planned = _sweep_key(source, apart)
        if planned is not None and key is not None and key[0] == "config":
            begun[planned].add(key)
    known = {planned: next(iter(own)) for planned, own in begun.items() if len(own) == 1}
    return [key if key is None else known.get(key, key) for key in keys]


def _config_key(one: Evidence, apart: tuple[str, ...]) -> str:
    rest = {key: value for key, value in (one.config or {}).items() if key not in apart}
    for key in _ladder_keys() & rest.keys():
        if isinstance(rest[key], str):
            # Trials of a ladder begin with those of their own seed, whose names have hashes.
            rest[key] = [_HASH.sub("", part) for part in Path(rest[key]).parts]
    return json.dumps(rest, sort_keys=True)


@cache
def _ladder_keys() -> frozenset[str]:
    """Keys that name the trial with whose weights another one begins, of all families."""
    found = [schema(family).ladder for family in FAMILIES]
    return frozenset(keys.begins_with for keys in found if keys is not None)


def _sweep_key(source: Source, apart: tuple[str, ...]) -> tuple[str, ...] | None:
    if SEED_KEY not in source.overrides and source.origin is None:
        return None
    rest = {key: value for key, value in source.overrides.items() if key not in apart}
    return ("sweep", source.origin or "", json.dumps(rest, sort_keys=True))


def _table_key(one: Evidence) -> tuple[str, ...] | None:
    path = one.table_path if one.exp_dir is None else one.exp_dir
    if path is None:
        return None
    if _SEED.sub("", one.name) not in ("", one.name):
        return ("name", str(path.parent), _SEED.sub("", one.name))
    if one.seed is not None:  # of its column
        return ("table", str(path))
    folder = _SEED.sub("", path.parent.name)
    if one.exp_dir is None and folder not in ("", path.parent.name):
        return ("folder", str(path.parent.parent), folder, path.name)
    return None


def _seed_of(one: Evidence) -> int | None:
    if one.seed is not None:
        return one.seed
    table = one.table_path if one.exp_dir is None else None
    for name in (one.name, table.parent.name if table else ""):
        match = _SEED.search(name)
        if match:
            return int(match[1])
    return None


def _path(one: Evidence) -> str:
    return str(one.exp_dir or one.table_path or one.name)


def _names(groups: Sequence[Sequence[Evidence]]) -> list[str]:
    """A name for every group that no other has: short, else in full, else with its path."""
    firsts = [min(group, key=lambda one: natural(one.name)) for group in groups]
    shorts = [_short(group) for group in groups]
    names = list(shorts)
    for choose in (lambda i: _own_or_full(groups[i], shorts[i]), lambda i: firsts[i].name):
        names = _resolved(names, choose)
    taken: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        taken[name].append(index)
    for name, indices in taken.items():
        if len(indices) > 1:
            told = _told_apart([Path(_path(firsts[i])) for i in indices], name)
            for index, word in zip(indices, told, strict=True):
                names[index] = word
    return names


def _short(group: Sequence[Evidence]) -> str:
    """The name without hash and seed, for several runs; a run that is alone keeps its own."""
    name = min((one.name for one in group), key=natural)
    if len(group) == 1:
        return name
    table = group[0].table_path if group[0].exp_dir is None else None
    if table is not None and not _SEED.search(name):
        name = _SEED.sub("", table.parent.name) if _SEED.search(table.parent.name) else name
    return _SEED.sub("", _HASH.sub("", name)) or name


def _own_or_full(group: Sequence[Evidence], short: str) -> str:
    """The short name where a run bears it, else a run's name in full."""
    names = sorted((one.name for one in group), key=natural)
    return short if short in names else names[0]


def _resolved(names: Sequence[str], choose: Callable[[int], str]) -> list[str]:
    """The names, and `choose(index)` for those that occur twice."""
    counts = Counter(names)
    return [choose(i) if counts[name] > 1 else name for i, name in enumerate(names)]


def _told_apart(paths: Sequence[Path], name: str) -> list[str]:
    """The name with as much of each path as no other has."""
    parts = []
    for path in paths:
        stem = path.name.removesuffix(CSV_END).removesuffix(".csv")
        parts.append((*path.parts[:-1], stem))
    told = []
    for own in parts:
        length = 1
        while length < len(own) and sum(p[-length:] == own[-length:] for p in parts) > 1:
            length += 1
        word = "/".join(own[-length:]).lstrip("/")
        told.append(word if own[-1] == name else f"{name} ({word})")
    return told
