import os
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from imgtool.config.schema import Train
from imgtool.errors import CheckpointError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.experiment.checkpoints import remove_temporaries
from imgtool.training.optim import build_optimizer
from imgtool.training.optimizer_state import load_optimizer, optimizer_tensors
from imgtool.training.weights import load_module

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


def test_strided_weights_keep_their_values_and_strides(path):
    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    checkpoint_file.write(path, dict(layer.state_dict()), HEADER)
    twin = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    load_module(twin, checkpoint_file.read(path).tensors, path)
    assert torch.equal(twin.weight, layer.weight)
    assert twin.weight.stride() == layer.weight.stride()


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "rmsprop"])
def test_a_restored_optimizer_steps_as_if_never_stopped(path, kind):
    """Contiguous state under channels_last weights makes fused optimizers go silently wrong."""

    def step(layer, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        layer(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def make():
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        train = Train(optimizer=kind, lr=0.1, momentum=0.9)
        return layer, build_optimizer(train, list(layer.parameters()))

    layer, optimizer = make()
    step(layer, optimizer, 1)
    step(layer, optimizer, 2)
    names = {id(p): n for n, p in layer.named_parameters()}
    state = optimizer_tensors(optimizer, names)
    checkpoint_file.write(
        path, {**layer.state_dict(), **{f"optimizer.{k}": v for k, v in state.items()}}, HEADER
    )

    other, resumed = make()
    loaded = checkpoint_file.read(path)
    model = {k: v for k, v in loaded.tensors.items() if not k.startswith("optimizer.")}
    load_module(other, model, path)
    load_optimizer(
        resumed, {id(p): n for n, p in other.named_parameters()}, loaded.part("optimizer")
    )
    step(layer, optimizer, 3)
    step(other, resumed, 3)
    assert torch.equal(layer.weight, other.weight)
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[a].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed.state[b][key])
                assert value.stride() == resumed.state[b][key].stride()


def test_another_models_checkpoint_is_refused(path):
    checkpoint_file.write(path, {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, HEADER)
    with pytest.raises(CheckpointError, match="lacks 1 .*bias"):
        load_module(nn.Linear(3, 3), checkpoint_file.read(path).tensors, path)
    with pytest.raises(CheckpointError, match=r"weight is \(3, 3\), the model has \(3, 2\)"):
        load_module(nn.Linear(2, 3, bias=False), {"weight": torch.zeros(3, 3)}, path)


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
