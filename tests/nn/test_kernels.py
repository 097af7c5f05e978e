"""Which kernel a 1x1 convolution takes changes its last bits and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from imgtool.errors import UsageError
from imgtool.nn import kernels
from imgtool.nn.kernels import POINTWISE, VARIABLE, Pointwise, pointwise_kernel, pointwise_kernel_as

CPU = torch.device("cpu")


@pytest.fixture
def unchosen(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", {})
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("kernel", POINTWISE)
def test_kernels_compute_the_same(kernel, leaky):
    torch.manual_seed(0)
    layer, x = Pointwise(5, 7, leaky=leaky), torch.randn(2, 5, 4, 3)
    expected = torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x)
    expected = expected + layer.bias[:, None, None]
    if leaky:
        expected = F.leaky_relu(expected, 0.01)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    with pointwise_kernel_as(kernel, CPU):
        found = layer(x)
        (grad,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_it_is_timed_once(unchosen, monkeypatch):
    found = pointwise_kernel(CPU)
    assert found in POINTWISE
    monkeypatch.setattr(kernels, "_quicker", None)  # would be no function
    assert pointwise_kernel(CPU) == found


@pytest.mark.parametrize("kernel", POINTWISE)
@pytest.mark.parametrize("ratio, expected", [(0.5, "other"), (0.95, "conv2d"), (2.0, "kernel")])
def test_the_quicker_one_is_taken(unchosen, monkeypatch, kernel, ratio, expected):
    """`kernel` takes 1 / ratio of the other one's time, by a clock of our own."""
    other = next(name for name in POINTWISE if name != kernel)
    clock = [0.0]
    taken = {kernel: 1.0, other: ratio}

    def spend(name):
        def run(x, *_):
            clock[0] += taken[name]

        return run

    monkeypatch.setattr(kernels, "_now", lambda device: clock[0])
    monkeypatch.setattr(kernels.F, "conv2d", spend("conv2d"))
    monkeypatch.setattr(kernels.F, "linear", spend("linear"))
    wanted = {"other": other, "kernel": kernel, "conv2d": "conv2d"}[expected]
    assert pointwise_kernel(CPU) == wanted


def test_the_user_may_choose(unchosen, monkeypatch):
    monkeypatch.setenv(VARIABLE, "linear")
    assert pointwise_kernel(CPU) == "linear"


def test_a_mistyped_choice_is_named(unchosen, monkeypatch):
    monkeypatch.setenv(VARIABLE, "lin")
    with pytest.raises(UsageError, match="no kernel 'lin'") as caught:
        pointwise_kernel(CPU)
    assert VARIABLE in caught.value.hint
