"""Files of version 2: the same latents on every machine, or an error that says where they part."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imgtool.errors import CheckpointError
from imgtool.evaluation.codec.codec import Codec
from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.evaluation.codec.export import METADATA_KEY, open_codec, read
from imgtool.models.hpcm.tables import Tables
from tests.evaluation.codec.elsewhere import latents_crc
from tests.evaluation.codec.making import make_image, make_model

ROOT = Path(__file__).parents[3]
SIZE = (70, 200)
# What processors without the newer instructions would do, as far as each library can be told.
OLD = {
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
}


def elsewhere(codec, data, tmp_path, *threads, **environment):
    file = tmp_path / "a.hpcm"
    file.write_bytes(data)
    words = [sys.executable, "-m", "tests.evaluation.codec.elsewhere", codec, file, *threads]
    done = subprocess.run(
        [*map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_another_processor_decodes_the_same_latents(files, portable, tmp_path):
    """By other instructions, with and without oneDNN; with two threads here."""
    encoded = portable.encode(make_image(*SIZE))
    here = latents_crc(portable, encoded.data)
    assert here[1]
    torch.set_num_threads(2)
    two = open_codec(str(files / "portable.safetensors"), device="cpu", threads=2)
    assert latents_crc(two, encoded.data)[0] == here[0]
    found = elsewhere(files / "portable.safetensors", encoded.data, tmp_path, 1, **OLD)
    assert [row["crc"] for row in found] == here[0] * 2


def test_another_processor_computes_otherwise_in_floating_point(files, codec, tmp_path):
    """What version 2 is for: one of these ways gives other latents than the encoder's."""
    encoded = codec.encode(make_image(*SIZE))
    here = latents_crc(codec, encoded.data)[0]
    found = elsewhere(files / "codec.safetensors", encoded.data, tmp_path, 1, **OLD)
    assert any([row.get("crc")] != here for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OLD))
@pytest.mark.parametrize("threads", [1, 2])
def test_each_library_may_do_as_it_likes(files, portable, tmp_path, name, threads):
    encoded = portable.encode(make_image(130, 300))
    here = latents_crc(portable, encoded.data)[0]
    path = files / "portable.safetensors"
    found = elsewhere(path, encoded.data, tmp_path, threads, **{name: OLD[name]})
    assert [row["crc"] for row in found] == here * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_decodes_the_same_latents(files, portable):
    encoded = portable.encode(make_image(*SIZE))
    there = open_codec(str(files / "portable.safetensors"), device="cuda")
    found = there.decode_checked(encoded.data)
    assert (found.pixels.int() - encoded.reconstruction.int()).abs().max() <= 1
    back = there.encode(make_image(*SIZE))
    assert portable.decode_checked(back.data).pixels.shape == encoded.reconstruction.shape


def test_another_picture_of_the_same_latents_is_no_error(portable, codec):
    """The synthesis is in floating point: weights that differ in it stand for another machine."""
    encoded = portable.encode(make_image(*SIZE))
    model = make_model()
    with torch.no_grad():
        for parameter in model.g_s.parameters():
            parameter.mul_(1.0001)
    other = Codec(model, Tables.of(model), portable.facts, portable.device, integers=portable._path)
    found = other.decode_checked(encoded.data)
    assert not found.is_exact
    assert 0 < (found.pixels.int() - encoded.reconstruction.int()).abs().max() <= 2
    assert portable.decode_checked(encoded.data).is_exact


@pytest.mark.parametrize(
    ("part", "said"),
    [("h_s", "hyperprior"), ("context.coarse", "scale 1"), ("context.finer.1", "scale 3")],
)
def test_a_difference_is_named_by_where_it_begins(files, portable, part, said):
    """A machine whose products were not exact would not be the first to be believed."""
    encoded = portable.encode(make_image(40, 70))
    wrong = open_codec(str(files / "portable.safetensors"), device="cpu")
    for module in wrong._path.get_submodule(part).modules():
        if hasattr(module, "matrix"):
            module.matrix.weight.mul_(2)
    with pytest.raises(StreamError, match=f"not what the encoder computed, from .*{said} on"):
        wrong.decode(encoded.data)


def test_a_symbol_that_was_changed_is_noticed(portable):
    """Though every checksum that can be made to fit was."""
    container = Container.unpack(portable.encode(make_image(40, 70)).data)
    for changed in (
        replace(container, y=container.y[:-8] + bytes(4) + container.y[-4:]),
        replace(container, grey=True),
        replace(container, threads=container.threads + 1),
        replace(container, pixels_crc=container.pixels_crc ^ 1),
        replace(container, checks=(*container.checks[:3], container.checks[3] ^ 1)),
        replace(container, checks=(container.checks[0] ^ 1, *container.checks[1:])),
    ):
        with pytest.raises(StreamError):
            portable.decode(changed.pack())


def test_version_1_of_the_same_model_is_read(codec, portable):
    encoded = codec.encode(make_image(20, 33))
    assert portable.facts.plain_hash == codec.model_hash != portable.model_hash
    found = portable.decode_checked(encoded.data)
    assert found.is_exact
    assert torch.equal(found.pixels, encoded.reconstruction)
    new = portable.encode(make_image(20, 33)).data
    with pytest.raises(StreamError, match=portable.model_hash):
        codec.decode(new)
    forged = replace(Container.unpack(new), model_hash=bytes.fromhex(codec.model_hash)).pack()
    for model in (codec, portable):
        with pytest.raises(StreamError, match="version 2"):
            model.decode(forged)


def test_the_rate_is_that_of_the_float_path(codec, portable):
    image = make_image(128, 192)
    bits = [model.encode(image).estimate_bits for model in (codec, portable)]
    assert bits[1] == pytest.approx(bits[0], rel=0.005)


def test_a_portable_export_holds_what_makes_integers(files, portable):
    plain, more = (load_file(files / f"{name}.safetensors") for name in ("codec", "portable"))
    added = {name: more[name] for name in more.keys() - plain.keys()}
    assert all(name.startswith("integer.") for name in added)
    assert {value.dtype for value in added.values()} == {torch.int32}
    assert all(torch.equal(more[name], value) for name, value in plain.items())
    with safe_open(files / "portable.safetensors", framework="pt") as handle:
        facts = json.loads(handle.metadata()[METADATA_KEY])
    assert facts["calibration"]["images"] == "two"
    assert 30 < facts["calibration"]["largest_sum_bits"] < 53
    assert facts["model_hash"] == portable.model_hash


@pytest.mark.parametrize(
    "tensors",
    [
        {"integer.other": torch.zeros(3, dtype=torch.int32)},
        {"integer.z_hat": torch.zeros(33, dtype=torch.int32)},
        {"integer.z_hat": torch.zeros(32)},
    ],
)
def test_integers_of_another_network_are_refused(files, tmp_path, tensors):
    found = {**load_file(files / "portable.safetensors"), **tensors}
    with safe_open(files / "portable.safetensors", framework="pt") as handle:
        metadata = handle.metadata()
    save_file(found, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"\(integer\."):
        read(str(tmp_path / "c.safetensors"))


def test_changed_exponents_are_noticed(files, tmp_path):
    found = load_file(files / "portable.safetensors")
    found["integer.z_hat"] = found["integer.z_hat"] - 1
    with safe_open(files / "portable.safetensors", framework="pt") as handle:
        metadata = handle.metadata()
    save_file(found, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="not those that it was written with"):
        read(str(tmp_path / "c.safetensors"))


def test_the_last_word_is_32_bits_of_what_was_decoded(portable):
    data = portable.encode(make_image(9, 9)).data
    words = struct.unpack("<HHHI", data[-14:-4])
    assert words == Container.unpack(data).checks
    assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)
