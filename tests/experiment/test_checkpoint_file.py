"""The format: what a header keeps, which tensors are read, and what is noticed of damage."""

import json
import zlib
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from imgtool.errors import CheckpointError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import (
    CheckpointHeader,
    read,
    read_header,
    read_intact,
    write,
)
from imgtool.experiment.checksums import Checksums, raw
from imgtool.experiment.whole import DamagedCheckpoint

HEADER = CheckpointHeader(
    iteration=7,
    epoch=1.5,
    name="S5",
    family="autoencoder",
    identity="abc",
    data_fingerprint="def",
    metrics={"loss": 0.5, "val_mse": None},
    elapsed_sec=3.25,
    horizon={"at": [7, 100]},
    config={"model": {"width": 3}},
    parts={"position": {"iteration": 7, "update": 2, "world_size": 4}, "bad_total": 1},
)
TENSORS = {
    "model.weight": torch.arange(12.0).reshape(3, 4),
    "model.count": torch.tensor(3),
    "model.half": torch.ones(5, dtype=torch.bfloat16),
    "model.flags": torch.tensor([True, False]),
    "model.empty": torch.zeros(0),
    "optimizer.net.main.weight.exp_avg": torch.ones(3, 4),
    "ema.weight": torch.full((3, 4), 2.0),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "iter_000007.safetensors"
    write(path, TENSORS, HEADER)
    return path


def document(path):
    with safe_open(path, framework="pt") as handle:
        return json.loads(handle.metadata()["imgtool"])


def rewrite(path, *, tensors=None, **changes):
    """As versions of before wrote it, with a CRC-32 of each tensor that there was."""
    before = read(path).tensors
    sums = {name: zlib.crc32(raw(tensor)) for name, tensor in before.items()}
    text = json.dumps({**of_before(path), "checksums": sums, **changes})
    save_file(before if tensors is None else tensors, path, metadata={"imgtool": text})


def of_before(path):
    return {key: value for key, value in document(path).items() if key != "hashed"}


def flip(path, name):
    """One bit of one tensor on the disk."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    data[8 + length + begin] ^= 1
    path.write_bytes(data)


def test_every_field_of_a_header_comes_back(path):
    header = read_header(path)
    of_the_file = {"path": path, "num_bytes": path.stat().st_size}
    assert header.checksums.values.keys() == TENSORS.keys()
    assert replace(header, checksums=Checksums()) == replace(HEADER, **of_the_file)
    given = [field.name for field in fields(HEADER) if field.name not in ("path", "num_bytes")]
    plain = CheckpointHeader(iteration=7)
    unlike = [name for name in given if getattr(HEADER, name) == getattr(plain, name)]
    assert unlike == ["iteration", "finite", "aliases", "checksums"]  # the rest says something
    assert (header.world_size, header.reached) == (4, (7, 2))


def test_keys_of_a_later_version_do_no_harm_and_missing_ones_have_defaults(path):
    rewrite(path, horizon=12, later={"a": 1})
    assert read_header(path).horizon == 12
    lean = {key: document(path)[key] for key in ("format", "iteration", "epoch", "metrics")}
    text = json.dumps({**lean, "finite": True, "identity": "x"})
    save_file(dict(TENSORS), path, metadata={"imgtool": text})
    header = read(path).header
    assert (header.elapsed_sec, header.horizon, header.config) == (0.0, None, None)
    assert (header.world_size, header.reached, header.parts) == (None, (7, 0), {})


def test_a_part_may_not_take_the_name_of_a_field(tmp_path):
    with pytest.raises(AssertionError, match="metrics"):
        write(tmp_path / "a", {}, replace(HEADER, parts={"metrics": 1}))


@pytest.mark.parametrize("name", [name for name in TENSORS if TENSORS[name].numel()])
def test_a_flipped_bit_is_named_with_its_tensor(path, name):
    flip(path, name)
    assert read_header(path).iteration == 7  # headers are judged by themselves
    with pytest.raises(DamagedCheckpoint, match=f"{name} is not what was written"):
        read(path)


def test_a_flipped_bit_of_the_header_is_noticed_wherever_it_is(path):
    data = path.read_bytes()
    for at in range(8 + int.from_bytes(data[:8], "little")):
        bit = 1 << at % 8
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            read_header(path)


@pytest.mark.parametrize("of_before", [False, True])
def test_a_flipped_bit_is_found_without_torch(path, of_before):
    if of_before:
        rewrite(path)
    assert read_intact(path) == read_header(path)
    flip(path, "model.half")
    with pytest.raises(DamagedCheckpoint, match=r"model\.half is not what was written"):
        read_intact(path)


def test_checksums_of_files_of_before_are_held(path):
    rewrite(path)
    assert read(path).tensors.keys() == TENSORS.keys()
    flip(path, "model.half")
    with pytest.raises(DamagedCheckpoint, match=r"model\.half is not what was written"):
        read(path)


def test_a_lost_or_a_renamed_tensor_is_named(path):
    left = {name: tensor for name, tensor in TENSORS.items() if name != "model.weight"}
    rewrite(path, tensors=left)
    with pytest.raises(DamagedCheckpoint, match=r"it lacks model\.weight"):
        read(path)
    write(path, TENSORS, HEADER)
    rewrite(path, tensors={**TENSORS, "model.other": torch.ones(1)})
    with pytest.raises(DamagedCheckpoint, match=r"written without model\.other"):
        read(path)


def test_files_of_before_there_were_checksums_are_read(path):
    save_file(dict(TENSORS), path, metadata={"imgtool": json.dumps(of_before(path))})
    loaded = read(path, must_be_finite=True)
    assert loaded.tensors.keys() == TENSORS.keys()
    assert not loaded.header.checksums.values
    assert read_intact(path) == loaded.header


def test_only_the_parts_asked_for_are_read(path):
    flip(path, "optimizer.net.main.weight.exp_avg")
    loaded = read(path, ("model", "ema"))
    assert {name.partition(".")[0] for name in loaded.tensors} == {"model", "ema"}
    assert torch.equal(loaded.part("ema")["weight"], TENSORS["ema.weight"])
    with pytest.raises(DamagedCheckpoint):
        read(path)


def test_a_part_whose_tensors_are_stored_with_another_has_them(tmp_path):
    shared = torch.randn(50, 50)
    path = tmp_path / "iter_000007.safetensors"
    write(path, {"model.a": shared, "ema.a": shared}, HEADER)
    assert path.stat().st_size < 1.5 * shared.nbytes
    assert torch.equal(read(path, ("ema",)).tensors["ema.a"], shared)
    assert read(path, ("ema",)).tensors.keys() == {"ema.a"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_no_start_and_is_named(path, value):
    spoilt = TENSORS["model.weight"].clone()
    spoilt[1, 2] = value
    write(path, {**TENSORS, "model.weight": spoilt}, HEADER)
    assert read(path).tensors.keys() == TENSORS.keys()
    with pytest.raises(CheckpointError, match=r"model\.weight is not finite"):
        read(path, must_be_finite=True)
    write(path, TENSORS, replace(HEADER, finite=False))
    with pytest.raises(CheckpointError, match="when it was written"):
        read(path, must_be_finite=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_values_are_finite_though_their_sum_is_not(dtype):
    large = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert checkpoint_file.all_finite({"a": large, "b": torch.tensor([1])})
    large[3] = float("nan")
    assert not checkpoint_file.all_finite({"a": large})
    assert checkpoint_file.all_finite({})


def test_metrics_that_are_not_finite_are_unknown(tmp_path):
    path = tmp_path / "iter_000007.safetensors"
    write(path, {}, replace(HEADER, metrics={"loss": float("nan"), "val_mse": 1.0}))
    assert read_header(path).metrics == {"loss": None, "val_mse": 1.0}
