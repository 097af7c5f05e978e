"""Directories, sweeps and files of ea18613 go on working: nobody's work is lost to a new version."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imgtool.config.identity import identity
from imgtool.config.load import read_resolved
from imgtool.evaluation.codec.container import Container
from imgtool.evaluation.codec.exact import environment
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.models.registry import schema

FAMILIES = ("autoencoder", "genegan", "hpcm")


# Defaults that have changed since; the refusal says them, as the last test shows.
SINCE = {"hpcm": ["--set", "data.flip=dihedral"]}


def command(directory: ExperimentDir) -> list[str]:
    """The words that trained it, as it recorded them."""
    starts = json.loads(directory.provenance_path.read_text())["starts"]
    return [*starts[-1]["argv"][1:], *SINCE.get(directory.path.name, [])]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_command_with_a_higher_limit_goes_on(family, made, imgtool):
    directory = ExperimentDir(made / family)
    before = read_status(directory)
    words = command(directory)
    words[words.index("--max-iter") + 1] = "6"
    code, records, said = imgtool(*words)
    assert code == 0, said
    assert "resuming at iteration 4" in said
    moved = "schedule ends at iteration 6 instead of 4" in said
    assert moved == (family in ("autoencoder", "hpcm"))  # a cosine; steps at parts of the run
    assert (records[-1]["state"], records[-1]["iteration"]) == ("completed", 6)
    status = read_status(directory)
    assert status["iteration"] == 6
    assert status["identity"] == before["identity"]
    rows = [json.loads(line) for line in directory.metrics_path.read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_command_finds_it_done(family, made, imgtool):
    directory = ExperimentDir(made / family)
    checkpoint = directory.latest_path.resolve()
    before = checkpoint.read_bytes()
    code, records, said = imgtool(*command(directory))
    assert code == 0, said
    assert (records[-1]["state"], records[-1]["iteration"]) == ("completed", 4)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_another_value_is_still_another_experiment(family, made, imgtool):
    code, _, said = imgtool(*command(ExperimentDir(made / family)), "--lr", "0.5")
    assert code == 2
    assert "belongs to another experiment" in said
    assert re.search(r"or go on with this one: --set train\.lr=\S+ instead of --lr", said)


@pytest.mark.parametrize("family", SINCE)
def test_another_default_is_said_with_the_words_that_go_on(family, made, imgtool):
    words = SINCE[family]
    code, _, said = imgtool(*command(ExperimentDir(made / family))[: -len(words)])
    assert code == 2
    assert f"or go on with this one: {' '.join(words)}" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_hashes_are_what_they_were(family, made):
    directory = ExperimentDir(made / family)
    start = json.loads(directory.provenance_path.read_text())["starts"][-1]
    stored = read_resolved(directory.config_path, schema).experiment
    assert identity(stored, start["data_fingerprint"]) == start["identity"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_been_added_since_says_what_it_was_before(family, made):
    """Else directories, hashes and sweeps of before would be another experiment's."""
    config = yaml.safe_load(ExperimentDir(made / family).config_path.read_text())
    for section, cls in schema(family).section_types().items():
        for field in fields(cls):
            is_old = field.name in config.get(section, {})
            assert is_old or field.metadata.get("run") or "before" in field.metadata, field.name


def test_a_sweeps_trials_are_found_as_done(made, imgtool):
    code, records, said = imgtool("sweep", "sweep.yaml", "--dry-run", "--json")
    assert code == 0, said
    assert [(record["next"], record["path"]) for record in records] == [
        ("completed", str(path)) for path in sorted((made / "sweep").glob("small*"))
    ]
    code, records, said = imgtool("status", "sweep", "--json")
    assert code == 0, said
    assert [record["state"] for record in records] == ["completed", "completed"]
    assert [record["overrides"] for record in records] == [{"train.lr": 1e-3}, {"train.lr": 2e-3}]


@pytest.mark.slow
def test_a_sweeps_trials_go_on_where_they_lie(made, imgtool):
    words = ("sweep", "sweep.yaml", "--set", "train.max_iter=3", "--json")
    code, records, said = imgtool(*words, "--dry-run")
    assert [record["next"] for record in records] == ["would run", "would run"], said
    (hashed,) = (made / "sweep").glob("small-*")
    code, records, said = imgtool(*words, "--slots", "1", "--only", hashed.name)
    assert code == 0, said
    assert [(record["path"], record["iteration"]) for record in records] == [(str(hashed), 3)]


@pytest.mark.parametrize("name", ["p00", "p01"])
def test_an_export_decodes_what_it_encoded(name, made, imgtool):
    out = made / "again.png"
    words = ("decompress", f"{name}.hpcm", "--ckpt", "codec.safetensors", "--out", out)
    code, _, said = imgtool(*words, "--device", "cpu")
    if code and not _made_here(made / f"{name}.hpcm"):
        assert code == 4
        assert not out.exists()
        assert "error:" in said
        return
    assert code == 0, said
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(f"{name}.png")))


def test_an_export_encodes_as_before(made, imgtool):
    torch.set_num_threads(1)
    code, records, said = imgtool(
        *("compress", "data/photos/p00.png", "--ckpt", "codec.safetensors", "--out", "x.hpcm"),
        *("--device", "cpu", "--verify"),
    )
    assert code == 0, said
    stream = (made / "p00.hpcm").read_bytes()
    assert records[-1]["file_bytes"] == pytest.approx(len(stream), abs=16)


@pytest.mark.parametrize("family", ["autoencoder", "hpcm"])
def test_a_checkpoint_is_measured(family, made, imgtool):
    code, records, said = imgtool(
        "eval", "latents", family, "--device", "cpu", "--num-images", "2", "--json"
    )
    assert code == 0, said
    assert records[-1]["iteration"] == 4


def _made_here(path):
    """Whether a stream names this machine's arithmetic; elsewhere it may be refused."""
    stream = Container.unpack(path.read_bytes())
    return stream.environment == environment(torch.device("cpu"), "product")
