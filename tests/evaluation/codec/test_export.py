"""Exports: the codec and its tables, nothing else, and nothing that was changed."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imgtool.errors import CheckpointError, UsageError
from imgtool.evaluation.codec import export
from imgtool.evaluation.codec.export import METADATA_KEY, open_codec, read, write
from tests.evaluation.codec.making import make_image, make_model, write_checkpoint


def metadata(path):
    with safe_open(path, framework="pt") as handle:
        return json.loads(handle.metadata()[METADATA_KEY])


def test_an_export_has_the_codec_and_its_tables_alone(files):
    path = files / "codec.safetensors"
    names = set(load_file(path))
    model = make_model()
    assert names == {f"codec.{name}" for name in model.state_dict()} | {
        "tables.lengths",
        "tables.counts",
    }
    facts = metadata(path)
    assert facts["model"] == {"model_name": "HPCM_Tiny", "legacy_s2_hyper": False}
    assert (facts["lmbda"], facts["distortion"], facts["iteration"]) == (0.013, "mse", 7)
    assert len(facts["model_hash"]) == 16


def test_a_checkpoint_and_its_export_are_one_codec(files, codec):
    fresh = open_codec(str(files / "iter_000007.safetensors"), device="cpu")
    assert fresh.model_hash == codec.model_hash
    assert (fresh.facts.is_export, codec.facts.is_export) == (False, True)
    image = make_image(20, 33)
    encoded = fresh.encode(image)
    assert codec.encode(image).data == encoded.data
    assert torch.equal(codec.decode(encoded.data), encoded.reconstruction)


def test_averaged_weights_are_taken(tmp_path):
    model = make_model()
    averages = {name: value + 1 for name, value in model.named_parameters()}
    path = write_checkpoint(tmp_path / "iter_000001.safetensors", model, ema=averages)
    tensors = read(str(path)).tensors
    for name, value in averages.items():
        assert torch.equal(tensors[f"codec.{name}"], value)


def test_the_hash_is_of_everything_that_decoding_depends_on(tmp_path, codec):
    model = make_model()
    with torch.no_grad():
        model.g_s[0].bias[0] += 1e-3
    changed = read(str(write_checkpoint(tmp_path / "iter_000001.safetensors", model)))
    assert changed.model_hash != codec.model_hash
    config = {"model": {"model_name": "HPCM_Tiny", "legacy_s2_hyper": True}}
    legacy = read(str(write_checkpoint(tmp_path / "iter_000002.safetensors", **config)))
    assert legacy.model_hash != codec.model_hash
    config = {"loss": {"lmbda": 0.5, "distortion": "ms-ssim"}}
    same = read(str(write_checkpoint(tmp_path / "iter_000003.safetensors", **config)))
    assert same.model_hash == codec.model_hash


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"family": "genegan"}, UsageError, "of the family genegan"),
        ({"model": {"model_name": "HPCM_Nano", "legacy_s2_hyper": False}}, CheckpointError, "Nano"),
        ({"model": {"model_name": ["x"], "legacy_s2_hyper": False}}, CheckpointError, "header"),
        ({"model": {}}, CheckpointError, "header"),
        ({"loss": {"lmbda": -1, "distortion": "mse"}}, CheckpointError, "lambda is -1"),
        (
            {"model": {"model_name": "HPCM_Small", "legacy_s2_hyper": False}},
            CheckpointError,
            "lacks|is \\(",
        ),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, config, error, said):
    path = write_checkpoint(tmp_path / "iter_000001.safetensors", **config)
    with pytest.raises(error, match=said):
        open_codec(str(path), device="cpu")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.g_a[0].bias[0] = float("inf")
    path = write_checkpoint(tmp_path / "iter_000001.safetensors", model)
    with pytest.raises(CheckpointError, match="not finite"):
        read(str(path))


def rewrite(source, target, *, tensors=(), **facts):
    found = {**load_file(source), **dict(tensors)}
    text = json.dumps({**metadata(source), **facts})
    save_file(found, target, metadata={METADATA_KEY: text})
    return str(target)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"format": 3}, "format 3"),
        ({"model": {"model_name": "HPCM_Nano", "legacy_s2_hyper": False}}, "no network"),
        ({"model": 3}, "metadata"),
        ({"lmbda": None}, "lambda is None"),
        ({"iteration": "x"}, "metadata"),
        ({"model_hash": "0"}, "tensors are not those"),
        ({"model": {"model_name": "HPCM_Small", "legacy_s2_hyper": False}}, "tensors are not"),
    ],
)
def test_an_export_whose_metadata_are_spoiled(files, tmp_path, facts, said):
    path = rewrite(files / "codec.safetensors", tmp_path / "c.safetensors", **facts)
    with pytest.raises(CheckpointError, match=said):
        open_codec(path, device="cpu")


def test_an_export_whose_tensors_were_changed(files, tmp_path):
    changed = {"codec.means_hyper": torch.zeros(1, 32, 1, 1)}
    path = rewrite(files / "codec.safetensors", tmp_path / "c.safetensors", tensors=changed)
    with pytest.raises(CheckpointError, match="tensors are not those"):
        open_codec(path, device="cpu")


@pytest.mark.parametrize(
    "tensors",
    [
        {"codec.other": torch.zeros(3)},
        {"codec.means_hyper": torch.zeros(1, 33, 1, 1)},
        {"codec.means_hyper": torch.zeros(1, 32, 1, 1, dtype=torch.float64)},
        {"tables.counts": torch.zeros(9)},
        {"tables.more": torch.zeros(5_000_000, dtype=torch.int32)},
    ],
)
def test_what_is_no_codecs_is_refused_by_its_header(files, tmp_path, monkeypatch, tensors):
    path = rewrite(files / "codec.safetensors", tmp_path / "c.safetensors", tensors=tensors)
    monkeypatch.delattr(export, "safe_open")  # nothing is read
    with pytest.raises(CheckpointError, match=r"not those of HPCM_Tiny \((codec|tables)\."):
        read(path)


def test_damaged_exports(files, tmp_path):
    whole = (files / "codec.safetensors").read_bytes()
    path = tmp_path / "c.safetensors"
    source = random.Random(0)
    for kind in range(24):
        data = bytearray(whole)
        if kind % 3 == 0:
            del data[source.randrange(len(data)) :]
        else:
            limit = 2000 if kind % 3 == 1 else len(data)
            data[source.randrange(limit)] ^= source.randrange(1, 256)
        path.write_bytes(data)
        with pytest.raises((CheckpointError, UsageError)):
            open_codec(str(path), device="cpu")


def test_nothing_is_left_where_an_export_cannot_be_written(files, tmp_path):
    (tmp_path / "in_the_way").write_text("x")
    export = read(str(files / "iter_000007.safetensors"))
    with pytest.raises(CheckpointError, match="cannot write"):
        write([export], tmp_path / "in_the_way/codec.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in_the_way"]
