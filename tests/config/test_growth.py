"""Keys are added and become run fields; what was stored before stays the same experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from imgtool.config import fields as fields_module
from imgtool.config.identity import SECTIONS, identity, identity_diff, to_dict
from imgtool.config.load import Loaded, load, read_resolved, read_stored, to_yaml
from imgtool.config.schema import STRICT, Experiment, FamilySchema, PositiveInt, option
from imgtool.models.registry import FAMILIES, schema

HERE = Path("x.safetensors")


@cache
def grown(name: str) -> FamilySchema:
    """A family of a later version: two keys more, and one that has become a run field."""
    found = schema(name)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Grown(found.section_types()["train"]):  # type: ignore[misc]
        __pydantic_config__ = STRICT

        shake: float = option(0.5, "Something new that is better than nothing.", before=0.0)
        moods: tuple[int, ...] = option((), "Something new and off.", before=())
        accumulate: PositiveInt = option(1, "Batches that make one update.", run=True, before=1)

    return dataclasses.replace(found, sections={**found.sections, "train": Grown})


def make(*sets: str, later: bool = False) -> Experiment:
    schema_of = grown if later else schema
    return load(None, family="autoencoder", schema_of=schema_of, sets=sets).experiment


def stored(experiment: Experiment, tmp_path: Path, schema_of: Any) -> list[Experiment]:
    """What a later version reads in a checkpoint, and in a directory."""
    origins = load(None, family="autoencoder", schema_of=schema).origins
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(Loaded(experiment, origins)))
    of_checkpoint = read_stored(to_dict(experiment), HERE, schema_of).experiment
    of_directory = read_resolved(path, schema_of).experiment
    return [of_checkpoint, of_directory]


def test_a_key_that_is_added_counts_as_before(tmp_path: Path) -> None:
    old = make("train.lr=1e-3")
    for read in stored(old, tmp_path, grown):
        assert read.train.shake == 0.0
        assert identity(read, "d") == identity(old, "d")
        assert identity_diff(read, make("train.lr=1e-3", "train.shake=0", later=True)) == []
        now = make("train.lr=1e-3", later=True)
        assert identity_diff(read, now) == [("train.shake", 0.0, 0.5)]
        assert identity(now, "d") != identity(old, "d")


def test_a_config_that_people_write_takes_todays_default(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("family: autoencoder\n")
    assert load(str(path), family=None, schema_of=grown).experiment.train.shake == 0.5


def test_a_key_that_becomes_a_run_field_is_ignored_on_both_sides(tmp_path: Path) -> None:
    for value in (1, 4):
        old = make(f"train.accumulate={value}")
        for read in stored(old, tmp_path, grown):
            now = make("train.shake=0", "train.accumulate=2", later=True)
            assert identity_diff(read, now) == []
            assert identity(read, "d") == identity(now, "d")
    # The name of those who had never chosen it is what it was.
    assert identity(now, "d") == identity(make(), "d")


@contextmanager
def marked(field: dataclasses.Field[Any], **marks: Any) -> Iterator[None]:
    """Another version's mark on a field."""
    kept = field.metadata
    try:
        field.metadata = MappingProxyType({**kept, **marks})  # type: ignore[misc]
        fields_module._keys.cache_clear()
        yield
    finally:
        field.metadata = kept  # type: ignore[misc]
        fields_module._keys.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_may_be_young_or_become_a_run_field(family: str) -> None:
    experiment = load(None, family=family, schema_of=schema).experiment
    name = identity(experiment, "d")
    for section in SECTIONS:
        part = getattr(experiment, section)
        for field in dataclasses.fields(part):
            if field.metadata.get("run"):
                continue
            content = to_dict(experiment)
            del content[section][field.name]
            other = dataclasses.replace(experiment, **{section: _with(part, field.name)})
            with marked(field, before=field.default):
                read = read_stored(content, HERE, schema).experiment
                assert identity_diff(read, experiment) == []
                assert identity(read, "d") == identity(experiment, "d")
                assert len(identity_diff(read, other)) == 1
                assert identity(other, "d") != identity(read, "d")
            # One that was added since has no position in hashes to hold.
            is_young = "before" in field.metadata
            with marked(field, run=True, **({} if is_young else {"before": field.default})):
                if is_young:
                    field.metadata = MappingProxyType(  # type: ignore[misc]
                        {k: v for k, v in field.metadata.items() if k != "before"}
                    )
                assert identity_diff(experiment, other) == []
                assert identity(experiment, "d") == identity(other, "d") == name


def _with(part: Any, name: str) -> Any:
    changed = object.__new__(type(part))
    for other in dataclasses.fields(part):
        object.__setattr__(changed, other.name, getattr(part, other.name))
    object.__setattr__(changed, name, "something else")
    return changed
