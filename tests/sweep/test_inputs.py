"""What trials read is looked for once, over every key of every family that names a path."""

import re
from dataclasses import replace

import pytest

from imgtool.config.fields import keys_of
from imgtool.config.load import load
from imgtool.config.schema import Data
from imgtool.models.registry import FAMILIES, schema
from imgtool.sweep.inputs import Lack, lacking

OF_IMAGES = ("data.val_root", "data.manifest")  # refused with a data section of another kind
READ = [
    (family, dotted)
    for family in FAMILIES
    for dotted, key in keys_of(schema(family)).items()
    if key.reads is not None
    and not (dotted in OF_IMAGES and schema(family).section_types()["data"] is not Data)
]
BESIDE = {
    "data.manifest": ["data.dataset=layouts"],
    "model.init_vqvae_map": ["model.init_vqvae_ckpt=there"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_names_a_path_says_what_it_reads(family):
    a_path = re.compile(r"(^|_)(root|manifest|file|ckpt|checkpoint|map|weights|path)$")
    for dotted, key in keys_of(schema(family)).items():
        if key.section in ("data", "model", "train") and key.kind.scalars == {"text"}:
            assert bool(a_path.search(key.name)) == (key.reads is not None), dotted


@pytest.mark.parametrize(("family", "dotted"), READ)
def test_what_is_not_there_is_said_once(make_plan, tmp_path, family, dotted):
    def told(path):
        sets = [*BESIDE.get(dotted, []), f"{dotted}={path}"]
        experiment = load(None, family=family, schema_of=schema, sets=sets).experiment
        trials = [
            replace(trial, loaded=replace(trial.loaded, experiment=experiment))
            for trial in make_plan("a", "b", "c").trials
        ]
        return {lack: who for lack, who in lacking(trials).items() if lack.key == dotted}

    ((lack, who),) = told(tmp_path / "nowhere").items()
    assert str(tmp_path / "nowhere") in lack.text
    assert (lack.is_unset, who) == (False, "3 trials")
    there = tmp_path / "there.safetensors"
    there.touch()
    assert told(there) == {}


def test_what_a_training_began_with_is_not_needed_again(make_plan):
    sets = ["model.init_vqvae_ckpt=nowhere", "data.root=nowhere"]
    found = load(None, family="genegan", schema_of=schema, sets=sets)
    (one,) = make_plan("a").trials
    trial = replace(one, loaded=replace(one.loaded, experiment=found.experiment))
    assert {lack.key for lack in lacking([trial])} == {"data.root", "model.init_vqvae_ckpt"}
    trial.directory.create()
    trial.directory.checkpoint_path(5).touch()
    assert {lack.key for lack in lacking([trial])} == {"data.root"}


def test_data_that_nobody_named(make_plan):
    plan = make_plan("a", "b")  # of layouts, whose manifest is not set
    assert lacking(plan.trials) == {
        Lack("data.manifest", "data.manifest is not set", True): "2 trials"
    }
