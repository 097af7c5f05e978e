"""Averaged weights: the equation, the warm-up, buffers, and masked steps."""

import pytest
import torch
from torch import nn

from imgtool.models.base import Update
from imgtool.training.averages import Averages


class Net(Update):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, batch):
        return {}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def averages_of(net, decay):
    return Averages(nn.ModuleDict({"net": net}), [net], decay)


def move(net):
    with torch.no_grad():
        net.layer.weight.add_(1.0)
        net.mean.add_(1.0)
        net.count.add_(1)


def test_averages_follow_the_equation_and_swap_exactly(net):
    averages = averages_of(net, 0.9)
    start = net.layer.weight.detach().clone()
    move(net)
    averages.update(1000, {"net": torch.tensor(True)})
    held = net.layer.weight.detach().clone()
    averages.swap()
    torch.testing.assert_close(net.layer.weight.detach(), 0.9 * start + 0.1 * held)
    torch.testing.assert_close(net.mean, torch.full((2,), 0.1))
    assert int(net.count) == 1  # whole numbers are not averaged
    averages.swap()
    assert torch.equal(net.layer.weight, held)


def test_the_decay_warms_up(net):
    averages = averages_of(net, 0.999)
    assert [averages.decay_at(n) for n in (1, 10, 90)] == [2 / 11, 11 / 20, 0.91]
    assert averages.decay_at(10**6) == 0.999


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
def test_a_masked_step_moves_no_average(net, good, on_host, monkeypatch):
    monkeypatch.setattr("imgtool.training.optim.on_host", lambda flag: on_host)
    averages = averages_of(net, 0.9)
    before = [average.clone() for average in averages.averages]
    move(net)
    averages.update(5, {"net": torch.tensor(good)})
    pairs = zip(averages.names, before, averages.averages, strict=True)
    moved = {name for name, old, new in pairs if not torch.equal(old, new)}
    assert moved == ({"net.layer.weight", "net.mean", "net.count"} if good else set())
