"""Writing a checkpoint: shared tensors, full disks, kills, permissions."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from imgtool.errors import CheckpointError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.experiment.checkpoints import remove_temporaries

HEADER = CheckpointHeader(iteration=7, epoch=1.0, metrics={"loss": 0.5}, identity="x")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "iter_000007.safetensors"


def test_shared_tensors_are_stored_once_and_come_back_under_both_names(path):
    weight = torch.randn(64, 64)
    checkpoint_file.write(
        path, {"model.a": weight, "model.b": weight, "model.c": torch.ones(2)}, HEADER
    )
    assert path.stat().st_size < 1.5 * weight.numel() * 4
    loaded = checkpoint_file.read(path)
    assert torch.equal(loaded.tensors["model.a"], weight)
    assert torch.equal(loaded.tensors["model.b"], weight)
    assert loaded.part("model").keys() == {"a", "b", "c"}
    assert loaded.header.iteration == 7


def test_a_future_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "FORMAT", 99)
    checkpoint_file.write(path, {"a": torch.zeros(1)}, HEADER)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format"):
        checkpoint_file.read(path)


def test_finite_or_not():
    assert checkpoint_file.all_finite({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)})
    assert not checkpoint_file.all_finite({"a": torch.tensor([1.0, float("nan")])})
    assert not checkpoint_file.all_finite({"a": torch.tensor([float("inf")])})


FULL = """
import resource, sys, torch
from pathlib import Path
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoints import remove_temporaries
path = Path(sys.argv[1])
header = CheckpointHeader(iteration=1, epoch=1.0, metrics={"loss": 1.0}, identity="x")
checkpoint_file.write(path, {"a": torch.zeros(1000)}, header)
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    checkpoint_file.write(path, {"a": torch.zeros(1_000_000)}, header)
except CheckpointError as error:
    assert path.read_bytes() == before, "the old checkpoint changed"
    print("refused:", error)
"""


def test_a_disk_that_takes_no_more_keeps_the_previous_checkpoint(path):
    assert resource.RLIMIT_FSIZE is not None
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120
    )
    assert answer.stdout.startswith(f"refused: cannot write {path}"), answer.stderr
    assert os.listdir(path.parent) == [path.name]


def test_a_kill_in_the_middle_of_writing_leaves_what_the_next_start_removes(path, monkeypatch):
    """The library writes to a name of its own; a kill leaves it, inside our temporary folder."""

    def killed(tensors, temporary, metadata):
        (temporary.parent / ".tmpAbCdEf").write_bytes(b"half")
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr("safetensors.torch.save_file", killed)
        checkpoint_file.write(path, {"a": torch.zeros(2)}, HEADER)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(os.listdir(path.parent)) == 1
    assert len(remove_temporaries(path.parent)) == 1
    assert os.listdir(path.parent) == []


def test_a_checkpoint_is_as_readable_as_other_files(path):
    checkpoint_file.write(path, {"a": torch.zeros(2)}, HEADER)
    plain = path.with_name("plain")
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
