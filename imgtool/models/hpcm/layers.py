"""Residual blocks and resampling convolutions, without any normalisation (HPCM, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgtool.nn.convolution import Pointwise


def down(channels: int, width: int, kernel: int = 2) -> nn.Conv2d:
    """Halves both sides: kernel 2 merges 2x2 cells, kernel 4 overlaps."""
    return nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2 - 1)


def up(channels: int, width: int, kernel: int = 2) -> nn.ConvTranspose2d:
    """Doubles both sides, the counterpart of `down`."""
    return nn.ConvTranspose2d(channels, width, kernel, stride=2, padding=kernel // 2 - 1)


class PartialConv(nn.Module):
    """A 3x3 convolution of the first quarter of the channels; the others pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.active = channels // 4
        self.conv = nn.Conv2d(self.active, self.active, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        active, rest = x.split([self.active, x.shape[1] - self.active], dim=1)
        return torch.cat([self.conv(active), rest], dim=1)


class ResidualBlock(nn.Module):
    """x + MLP(spatial(x)), the MLP of 1x1 convolutions with `ratio` times as many channels.

    Args:
        channels: of x (B, C, H, W), in and out.
        spatial: what mixes neighbours, (B, C, H, W) to the same size.
    """

    def __init__(self, channels: int, spatial: nn.Module, ratio: int) -> None:
        super().__init__()
        self.spatial = spatial
        self.expand = Pointwise(channels, ratio * channels, leaky=True)
        self.reduce = Pointwise(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduce(self.expand(self.spatial(x)))
        return x + out


def partial_block(channels: int) -> ResidualBlock:
    """The block of the transforms."""
    return ResidualBlock(channels, PartialConv(channels), ratio=4)


def depthwise_block(channels: int) -> ResidualBlock:
    """The block of the context model."""
    spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return ResidualBlock(channels, spatial, ratio=2)
