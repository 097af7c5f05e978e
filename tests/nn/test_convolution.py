"""Convolutions whose weights' gradient is made of matrix products: torch's own, but for rounding."""

import pytest
import torch
import torch.nn.functional as F

from imgtool.nn.convolution import Conv2d, ConvTranspose2d, conv2d

KINDS = {
    "halving": Conv2d(12, 16, 4, stride=2, padding=1, bias=False),
    "same size": Conv2d(12, 16, 3, padding=1, bias=False),
    "to rgb": Conv2d(12, 3, 3, padding=1, bias=False),
    "of rgb": Conv2d(3, 16, 4, stride=2, padding=1, bias=False),
    "doubling": ConvTranspose2d(12, 16, 4, stride=2, padding=1, bias=False),
    "odd": Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
    "wide": Conv2d(12, 16, 5, padding=0, bias=False),
}


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


def test_the_gradient_is_ours_where_it_is_quicker():
    mine, x = KINDS["doubling"], torch.randn(1, 12, 8, 8).to(memory_format=torch.channels_last)
    assert mine(x).grad_fn.name() == "_ConvolutionBackward"
    with torch.autocast("cpu", torch.bfloat16):  # its kernels were not measured
        assert mine(x).grad_fn.name() == "ConvolutionBackward0"
    frozen = KINDS["same size"].weight.detach()
    assert conv2d(x.requires_grad_(), frozen, 1, 1).grad_fn.name() == "ConvolutionBackward0"


def test_it_is_one_graph():
    mine = KINDS["doubling"]
    x = torch.randn(1, 12, 8, 8).to(memory_format=torch.channels_last)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(mine(x).square().sum(), mine.weight)
    got = torch.autograd.grad(compiled(x).square().sum(), mine.weight)
    torch.testing.assert_close(got, expected)
