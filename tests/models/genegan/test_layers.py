"""Matrix products against the operators whose gradients are not deterministic on CUDA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imgtool.models.genegan.layers import average_pool, bilinear


def both_ways(function, x, towards):
    x = x.clone().requires_grad_()
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, towards)
    return out, grad


@pytest.mark.parametrize("side", [1, 3, 4, 5, 6, 8, 10])
def test_pooling_is_adaptive_avg_pool2d(side):
    x, towards = torch.randn(2, 3, side, side), torch.randn(2, 3, 4, 4)
    x = x.contiguous(memory_format=torch.channels_last)
    mine = both_ways(average_pool(side, 4), x, towards)
    theirs = both_ways(lambda x: F.adaptive_avg_pool2d(x, 4), x, towards)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("side", "width"), [(128, 96), (128, 64), (96, 40), (64, 63)])
def test_resizing_is_antialiased_interpolation(side, width):
    x, towards = torch.randn(2, 3, side, side), torch.randn(2, 3, width, width)
    mine = both_ways(bilinear(side, width), x, towards)
    theirs = both_ways(
        lambda x: F.interpolate(x, (width, width), mode="bilinear", antialias=True), x, towards
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def test_it_stays_float32_and_out_of_checkpoints():
    resize = bilinear(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert resize(torch.rand(1, 3, 16, 16, dtype=torch.bfloat16)).dtype == torch.float32
    assert not resize.state_dict()
