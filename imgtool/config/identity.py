"""What makes two configs the same experiment.

The hash is a name that lasts: a key that is added or becomes a run field leaves it as it is
(`imgtool.config.schema.option`, `before`). Whether a directory holds this experiment is asked of
the configs (`identity_diff`), of which the hash is the short form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any

from imgtool.config.schema import Experiment

SECTIONS = ("model", "data", "train", "loss", "output", "cluster")


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain mappings, lists and scalars, in the order of its file."""
    top = {"name": experiment.name, "phase": experiment.phase, "family": experiment.family}
    return top | {section: _section(getattr(experiment, section)) for section in SECTIONS}


def _section(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def identity_values(experiment: Experiment) -> dict[str, Any]:
    """The values that matter, by dotted key: those of fields that are not `run`."""
    values = {
        key: _plain(value)
        for key, field, value in _fields(experiment)
        if not field.metadata.get("run", False)
    }
    return {"family": experiment.family, **values}


def _fields(experiment: Experiment) -> Iterator[tuple[str, Field[Any], Any]]:
    for section in SECTIONS:
        part = getattr(experiment, section)
        for field in fields(part):
            yield f"{section}.{field.name}", field, getattr(part, field.name)


def identity(experiment: Experiment, data_fingerprint: str) -> str:
    """16 hex digits that name a trial: its identity fields and its data, nothing else."""
    content = {"config": _named(experiment), "data": data_fingerprint}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(experiment: Experiment) -> dict[str, Any]:
    """What the hash covers: as if no key had been added or become a run field since."""
    values = identity_values(experiment)
    for key, field, _ in _fields(experiment):
        if "before" not in field.metadata:
            continue
        before = _plain(field.metadata["before"])
        if field.metadata.get("run", False):
            values[key] = before
        elif values[key] == before:
            del values[key]
    return values


def identity_diff(earlier: Experiment, now: Experiment) -> list[tuple[str, object, object]]:
    """(key, value in `earlier`, value in `now`) of every identity field that differs.

    Empty where both are the same experiment; None stands for a key that one family lacks. A
    stored config is read with `read_resolved` or `read_stored`, which know what it means by
    keys that are younger than it.
    """
    first, second = identity_values(earlier), identity_values(now)
    keys = [*first, *(key for key in second if key not in first)]
    return [
        (key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)
    ]
