"""Whatever kernels a convolution takes, it is torch's own, but for rounding."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from imgtool.nn.convolution import (
    POINTWISE,
    POINTWISE_GRADIENT,
    WEIGHT_GRADIENT,
    Conv2d,
    ConvTranspose2d,
    Pointwise,
    conv2d,
)
from imgtool.nn.kernels import KERNELS

CPU = torch.device("cpu")
KINDS = {
    "halving": Conv2d(12, 16, 4, stride=2, padding=1, bias=False),
    "same size": Conv2d(12, 16, 3, padding=1, bias=False),
    "to rgb": Conv2d(12, 3, 3, padding=1, bias=False),
    "of rgb": Conv2d(3, 16, 4, stride=2, padding=1, bias=False),
    "doubling": ConvTranspose2d(12, 16, 4, stride=2, padding=1, bias=False),
    "odd": Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
    "wide": Conv2d(12, 16, 5, padding=0, bias=False),
}


@pytest.fixture
def by_products():
    with WEIGHT_GRADIENT.using("product", CPU):
        yield


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("height", [8, 9])
def test_outputs_and_gradients_are_torchs(name, height):
    mine = KINDS[name].to(memory_format=torch.channels_last)
    plain = F.conv_transpose2d if isinstance(mine, ConvTranspose2d) else F.conv2d
    x = torch.randn(3, mine.in_channels, height, 10).contiguous(memory_format=torch.channels_last)
    found = []
    for convolve in (mine, lambda x: plain(x, mine.weight, None, mine.stride, mine.padding)):
        mine.zero_grad()
        leaf = x.clone().requires_grad_()
        out = convolve(leaf)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), leaf.grad, mine.weight.grad.clone()])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert got.stride() == expected.stride()


@pytest.mark.usefixtures("by_products")
def test_the_gradient_is_ours_where_it_is_quicker():
    mine, x = KINDS["doubling"], torch.randn(1, 12, 8, 8).to(memory_format=torch.channels_last)
    assert mine(x).grad_fn.name() == "_ConvolutionBackward"
    with torch.autocast("cpu", torch.bfloat16):  # its kernels were not measured
        assert mine(x).grad_fn.name() == "ConvolutionBackward0"
    frozen = KINDS["same size"].weight.detach()
    assert conv2d(x.requires_grad_(), frozen, 1, 1).grad_fn.name() == "ConvolutionBackward0"
    with WEIGHT_GRADIENT.using("convolution", CPU):
        assert mine(x).grad_fn.name() == "ConvolutionBackward0"


@pytest.mark.usefixtures("by_products")
def test_it_is_one_graph():
    mine = KINDS["doubling"]
    x = torch.randn(1, 12, 8, 8).to(memory_format=torch.channels_last)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(mine(x).square().sum(), mine.weight)
    got = torch.autograd.grad(compiled(x).square().sum(), mine.weight)
    torch.testing.assert_close(got, expected)


@pytest.fixture(params=itertools.product(KERNELS, KERNELS), ids=str)
def pointwise_kernels(request):
    forward, backward = request.param
    with POINTWISE.using(forward, CPU), POINTWISE_GRADIENT.using(backward, CPU):
        yield


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", [(2, 4, 4), (1, 4, 8), (1, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_a_pointwise_convolution_is_a_sum_over_channels(pointwise_kernels, layout, size, leaky):
    torch.manual_seed(0)
    batch, height, width = size
    layer = Pointwise(5, 7, leaky=leaky)
    x = torch.randn(batch, 5, height, width).to(memory_format=layout)

    def gradients(out, *wanted):
        asked = [*wanted, *layer.parameters()]
        return torch.autograd.grad(out.square().sum(), asked, retain_graph=True)

    x.requires_grad_()
    expected = torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x)
    expected = expected + layer.bias[:, None, None]
    if leaky:
        expected = F.leaky_relu(expected, 0.01)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(gradients(found, x), gradients(expected, x))
    torch.testing.assert_close(gradients(layer(x.detach())), gradients(expected))


def test_pointwise_in_half_precision(pointwise_kernels):
    layer, x = Pointwise(5, 7), torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
