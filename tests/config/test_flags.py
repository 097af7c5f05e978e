"""Options come from the schema, each key in one file."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from imgtool.config.fields import keys_of
from imgtool.config.flags import Flag, fields_of
from imgtool.config.schema import FamilySchema, option
from imgtool.models.registry import FAMILIES, schema


def flag(key: str, family: str = "autoencoder") -> Flag:
    (found,) = [one for one in fields_of(schema(family)) if one.key == key]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_has_one_option_and_no_option_two_keys(family: str) -> None:
    flags = fields_of(schema(family))
    assert [one.key for one in flags] == ["name", "phase", *keys_of(schema(family))]
    names = [name for one in flags for name in one.names]
    assert len(set(names)) == len(names)
    assert all(one.doc and "_" not in "".join(one.names) for one in flags)
    assert all(bool(one.metavar) is not one.is_bool for one in flags)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_sets_keys_that_exist(family: str) -> None:
    assert set(schema(family).tiny) <= set(keys_of(schema(family)))


def test_names_types_and_defaults() -> None:
    lr = flag("train.lr")
    assert (lr.names, lr.metavar, lr.default) == (("--lr", "--learning-rate"), "FLOAT", "0.0001")
    heads = flag("model.heads")
    assert heads.is_list
    assert heads.choices == ("rgb", "segmentation", "classification")
    assert heads.default == "rgb,segmentation,classification"
    assert flag("data.root").names == ("--data-root",)
    assert flag("data.root").default == ""
    assert flag("train.max_iter").metavar == "INT"
    assert flag("train.save_every").metavar == "INT|TEXT"
    assert flag("train.betas").metavar == "FLOAT,..."
    assert flag("data.flip").metavar == "auto|none|horizontal|both|dihedral"
    assert flag("train.compile").is_bool


def test_two_keys_with_one_option_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Model:
        depth: int = option(1, "depth", flag="lr")

    @dataclass(frozen=True, kw_only=True)
    class Loss:
        pass

    with pytest.raises(AssertionError, match=r"--lr is claimed by model.depth and train.lr"):
        fields_of(FamilySchema(name="x", sections={"model": Model, "loss": Loss}, tiny={}))
