"""What names a trial: identity fields and data, in a form that never changes by itself."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from imgtool.config.identity import SECTIONS, identity, identity_diff, to_dict
from imgtool.config.load import load
from imgtool.config.schema import Experiment
from imgtool.models.registry import FAMILIES, schema


def make(family: str = "autoencoder", **rest: Any) -> Experiment:
    return load(None, family=family, schema_of=schema, **rest).experiment


def test_it_is_sixteen_hex_digits() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", identity(make(), "data"))


def test_run_fields_name_and_phase_do_not_count() -> None:
    a = make()
    b = make(
        sets=["name=b", "phase=p", "train.device=cpu", "output.exp_dir=x", "lsf.queue=q"],
        flags={"data.root": "r", "train.max_iter": "3", "train.save_every": "2ep"},
    )
    assert identity(a, "d") == identity(b, "d")
    assert identity_diff(a, b) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_counts_unless_it_is_run(family: str) -> None:
    experiment = make(family)
    plain = identity(experiment, "d")
    for section in SECTIONS:
        part = getattr(experiment, section)
        for field in fields(part):
            changed = object.__new__(type(part))
            for other in fields(part):
                object.__setattr__(changed, other.name, getattr(part, other.name))
            object.__setattr__(changed, field.name, "something else")
            other_experiment = replace(experiment, **{section: changed})
            is_same = identity(other_experiment, "d") == plain
            assert is_same is bool(field.metadata.get("run")), f"{section}.{field.name}"


def test_the_data_counts() -> None:
    assert identity(make(), "one") != identity(make(), "two")


def test_whole_numbers_are_the_same_in_either_spelling() -> None:
    assert identity(make(sets=["train.lr=1"]), "d") == identity(make(sets=["train.lr=1.0"]), "d")


def test_a_diff_names_keys_and_both_values() -> None:
    a = make()
    b = make(sets=["model.latent_channels=8", "train.betas=[0.5, 0.9]", "train.device=cpu"])
    assert identity_diff(a, b) == [
        ("model.latent_channels", 16, 8),
        ("train.betas", [0.9, 0.999], [0.5, 0.9]),
    ]


def test_to_dict_is_plain() -> None:
    content = to_dict(make())
    assert list(content) == ["name", "phase", "family", *SECTIONS]
    assert content["train"]["betas"] == [0.9, 0.999]
    assert content["model"]["heads"] == ["rgb", "segmentation", "classification"]
