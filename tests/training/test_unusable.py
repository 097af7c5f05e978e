"""A checkpoint that cannot be gone on from: the one before is taken, or it is refused by name."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoint_file import read, write
from imgtool.experiment.layout import find_checkpoint


def not_a_number(path):
    """As a bug would leave it: finite, says the header, and the checksums agree."""
    loaded = read(path)
    name = next(name for name in loaded.tensors if name.startswith("model."))
    loaded.tensors[name] = torch.full_like(loaded.tensors[name], float("nan"))
    write(path, loaded.tensors, loaded.header)
    return f"{name} is not finite"


def bit_rot(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return "is not what was written"


def lost_tensor(path):
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = read(path).tensors
    name = next(name for name in tensors if name.endswith("exp_avg_sq"))
    save_file({k: v for k, v in tensors.items() if k != name}, path, metadata=metadata)
    return "its header is not what was written"


DAMAGES = (not_a_number, bit_rot, lost_tensor)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_start_takes_the_one_before_and_says_why(run, tmp_path, damage):
    straight = run(tmp_path / "a", "train.max_iter=10")
    expected = {name: tensor.clone() for name, tensor in straight.tensors().items()}
    newest = straight.directory.checkpoint_path(10)
    why = damage(newest)
    found = read(find_checkpoint(straight.directory.path)).header.iteration
    assert found == (10 if damage is not_a_number else 5)
    again = run(tmp_path / "a", "train.max_iter=10")
    warned = [text for text in again.messages if "trying the one before" in text]
    assert len(warned) == 1
    assert why in warned[0]
    assert "iter_000010" in warned[0]
    assert any("resuming at iteration 5" in text for text in again.messages)
    found = again.tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run(tmp_path / "b", "train.max_iter=10", resume=str(newest)).outcome.iteration == 10
    why = damage(newest)
    with pytest.raises(CheckpointError, match="iter_000010") as caught:
        run(tmp_path / "c", "train.max_iter=10", resume=str(newest))
    assert why in str(caught.value)


def test_where_all_are_unusable_nothing_starts_afresh(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=6")
    for path in first.directory.checkpoints_dir.glob("iter_*"):
        not_a_number(path)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint .* is not finite") as caught:
        run(tmp_path / "a", "train.max_iter=8")
    assert caught.value.exit_code == 4


def without_checksums(path, tensors):
    """As versions of before there were any wrote it."""
    with safe_open(path, framework="pt") as handle:
        document = json.loads(handle.metadata()["imgtool"])
    del document["hashed"]
    save_file(tensors, path, metadata={"imgtool": json.dumps(document)})


@pytest.mark.parametrize("spoil", ["missing", "renamed", "misshapen"])
def test_an_optimizer_that_does_not_fit_is_refused_by_name(run, tmp_path, spoil):
    first = run(tmp_path / "a", "train.max_iter=2")
    path = first.directory.checkpoint_path(2)
    tensors = read(path).tensors
    name = next(name for name in tensors if name.endswith("exp_avg"))
    value = tensors.pop(name)
    if spoil == "renamed":
        tensors[name + "erage"] = value
    if spoil == "misshapen":
        tensors[name] = torch.zeros(value.numel() + 1)
    without_checksums(path, tensors)
    parameter = name.split(".", 3)[3].rpartition(".")[0]
    with pytest.raises(CheckpointError, match=f"exp_avg of {parameter}") as caught:
        run(tmp_path / "a", "train.max_iter=4")
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
