"""Which kernels a 1x1 convolution takes changes its last bits and nothing else."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from imgtool.errors import UsageError
from imgtool.nn import kernels
from imgtool.nn.kernels import KERNELS, VARIABLE, Kernels, Pointwise, chosen_kernels, use_kernels

CPU = torch.device("cpu")
PAIRS = [Kernels(*pair) for pair in itertools.product(KERNELS, KERNELS)]


@pytest.fixture
def unchosen(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", {})
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_kernels_compute_the_same(unchosen, layout, pair, leaky):
    torch.manual_seed(0)
    layer, x = Pointwise(5, 7, leaky=leaky), torch.randn(2, 5, 4, 3).to(memory_format=layout)

    def gradients(out, *wanted):
        asked = [*wanted, *layer.parameters()]
        return torch.autograd.grad(out.square().sum(), asked, retain_graph=True)

    x.requires_grad_()
    expected = torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x)
    expected = expected + layer.bias[:, None, None]
    if leaky:
        expected = F.leaky_relu(expected, 0.01)
    use_kernels(pair, CPU)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(gradients(found, x), gradients(expected, x))
    torch.testing.assert_close(gradients(layer(x.detach())), gradients(expected))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_half_precision_takes_any(unchosen, pair):
    use_kernels(pair, CPU)
    layer, x = Pointwise(5, 7), torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32


def test_they_are_timed_once(unchosen, monkeypatch):
    found = chosen_kernels(CPU)
    assert found in PAIRS
    monkeypatch.setattr(kernels, "_quicker", None)  # no function any more
    assert chosen_kernels(CPU) == found


@pytest.mark.parametrize(
    ("seconds", "expected"), [((2, 1), "linear"), ((1, 2), "conv2d"), ((1, 0.95), "conv2d")]
)
def test_the_quicker_one_is_taken_and_the_first_of_equals(monkeypatch, seconds, expected):
    clock = [0.0]

    def spend(duration):
        clock[0] += duration

    monkeypatch.setattr(kernels, "_now", lambda device: clock[0])
    calls = {"conv2d": lambda: spend(seconds[0]), "linear": lambda: spend(seconds[1])}
    assert kernels._first_unless_slower(calls, ("conv2d", "linear"), CPU) == expected


def test_the_user_may_choose(unchosen, monkeypatch):
    monkeypatch.setenv(VARIABLE, "linear")
    assert chosen_kernels(CPU) == Kernels("linear", "linear")


def test_a_mistyped_choice_is_named(unchosen, monkeypatch):
    monkeypatch.setenv(VARIABLE, "lin")
    with pytest.raises(UsageError, match="no kernel 'lin'") as caught:
        chosen_kernels(CPU)
    assert VARIABLE in caught.value.hint
