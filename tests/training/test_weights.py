"""Weights and optimizer state that come back from a file, in the strides of the model."""

import pytest
import torch
from torch import nn

from imgtool.config.schema import Train
from imgtool.errors import CheckpointError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.training.optim import build_optimizer
from imgtool.training.optimizer_state import load_optimizer, optimizer_tensors
from imgtool.training.weights import load_module

HEADER = CheckpointHeader(iteration=7, epoch=1.0, metrics={"loss": 0.5}, identity="x")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "iter_000007.safetensors"


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
