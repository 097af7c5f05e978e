"""The four transforms between image, latent and hyper-latent (HPCM, section 3.3).

x (B, 3, H, W) -> g_a -> y (B, M, H/16, W/16) -> h_a -> z (B, N, H/64, W/64)
x_hat          <- g_s <- y_hat        scales, means (B, 2 M, H/16, W/16) <- h_s <- z_hat
"""

from __future__ import annotations

from torch import nn

from imgtool.models.hpcm.layers import down, partial_block, up
from imgtool.models.hpcm.variants import Variant


def _blocks(channels: int, depth: int) -> list[nn.Module]:
    return [partial_block(channels) for _ in range(depth)]


def make_g_a(variant: Variant) -> nn.Sequential:
    """x to y."""
    layers: list[nn.Module] = []
    channels, kernel = 3, 4
    for width, depth in zip(variant.widths, variant.depths, strict=True):
        layers += [down(channels, width, kernel), *_blocks(width, depth)]
        channels, kernel = width, 2
    return nn.Sequential(*layers, down(channels, variant.M))


def make_g_s(variant: Variant) -> nn.Sequential:
    """y_hat to x_hat, not clamped."""
    layers: list[nn.Module] = []
    channels = variant.M
    for width, depth in zip(reversed(variant.widths), reversed(variant.depths), strict=True):
        layers += [up(channels, width), *_blocks(width, depth)]
        channels = width
    return nn.Sequential(*layers, up(channels, 3, kernel=4))


def make_h_a(variant: Variant) -> nn.Sequential:
    """y to z."""
    return nn.Sequential(
        partial_block(variant.M),
        down(variant.M, variant.N),
        *_blocks(variant.N, variant.hyper_depth),
        down(variant.N, variant.N),
    )


def make_h_s(variant: Variant) -> nn.Sequential:
    """z_hat to scales and means, in this order."""
    return nn.Sequential(
        up(variant.N, variant.N),
        *_blocks(variant.N, variant.hyper_depth),
        up(variant.N, 2 * variant.M),
        partial_block(2 * variant.M),
    )
