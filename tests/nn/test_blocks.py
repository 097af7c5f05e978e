from __future__ import annotations

import pytest
import torch
from torch import nn

from imgtool.nn.blocks import ACTIVATIONS, conv_norm_act, he_init


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_block_is_the_convolution_normalised_and_bent(activation: str) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    block = nn.Sequential(*conv_norm_act(conv, 4, activation))
    x = torch.randn(2, 3, 5, 5)
    grouped = conv(x).view(2, 4, -1)
    normal = (grouped - grouped.mean(2, keepdim=True)) / (
        grouped.var(2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    by_hand = {
        "silu": lambda t: t * torch.sigmoid(t),
        "relu": lambda t: t.clamp(min=0),
        "gelu": lambda t: t * 0.5 * (1 + torch.erf(t / 2**0.5)),
        "leaky_relu": lambda t: torch.where(t > 0, t, 0.2 * t),
    }
    expected = by_hand[activation](normal.view(2, 8, 5, 5))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 64, 3, padding=1),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
    ],
    ids=["conv", "strided", "transposed"],
)
def test_signals_keep_their_size_where_no_norm_follows(
    conv: nn.Conv2d | nn.ConvTranspose2d,
) -> None:
    torch.manual_seed(0)
    bent, _ = block = conv_norm_act(conv, None, "relu")
    assert not any(isinstance(layer, nn.GroupNorm) for layer in block)
    x = torch.randn(2, conv.in_channels, 32, 32).relu()
    conv.apply(he_init)
    inside = bent(x)[..., 2:-2, 2:-2]
    # He et al. 2015, section 2.2: half of the inputs are 0, so twice their second moment comes out.
    assert inside.square().mean().item() == pytest.approx(2 * x.square().mean().item(), rel=0.15)
