"""What makes two configs the same experiment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from imgtool.config.schema import Experiment

SECTIONS = ("model", "data", "train", "loss", "output", "lsf")


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
    values: dict[str, Any] = {"family": experiment.family}
    for section in SECTIONS:
        part = getattr(experiment, section)
        for field in fields(part):
            if not field.metadata.get("run", False):
                values[f"{section}.{field.name}"] = _plain(getattr(part, field.name))
    return values


def identity(experiment: Experiment, data_fingerprint: str) -> str:
    """16 hex digits that name a trial: its identity fields and its data, nothing else."""
    content = {"config": identity_values(experiment), "data": data_fingerprint}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity_diff(a: Experiment, b: Experiment) -> list[tuple[str, object, object]]:
    """(key, value in a, value in b) of every identity field that differs; None where absent."""
    first, second = identity_values(a), identity_values(b)
    keys = [*first, *(key for key in second if key not in first)]
    return [
        (key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)
    ]
