"""Layers of the GeneGAN: one normalisation a size, convolution by blocks, resampling."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.models.genegan.schema import Model
from imgtool.nn.blocks import without_autocast
from imgtool.nn.convolution import WEIGHT_GRADIENT, conv_transpose2d
from imgtool.nn.global_batch import is_cut, sum_over_ranks
from imgtool.nn.kernels import Choice

MOMENTUM, EPS = 0.01, 1e-3


@dataclass(frozen=True)
class At:
    """How a network is called.

    Attributes:
        size: pixels of the side of the images that this call is about.
        groups: batches that lie behind one another in the tensors; batch norm takes the
            statistics of each by itself, as separate calls would.
        track: whether batch norms in training update their running statistics.
    """

    size: int
    groups: int = 1
    track: bool = True


class BatchNorm(nn.Module):
    """A batch norm's parameters and running statistics (eps 1e-3, momentum 0.01).

    Its statistics are those of the global batch, whatever process has which part of it.
    No count of batches: with a momentum nothing reads it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, track: bool, groups: int = 1) -> Tensor:
        """x (G * B, C, H, W); in training the statistics of each of the G groups are its own, and
        `track` updates the running ones, group by group.
        """
        if not self.training:
            return self._normalise(x, self.running_mean, self.running_var)
        if is_cut():
            return self._of_global_batch(x, track, groups)
        mean, var = (self.running_mean, self.running_var) if track else (None, None)
        if groups == 1:
            return self._normalise(x, mean, var)
        return torch.cat([self._normalise(group, mean, var) for group in x.chunk(groups)])

    def _normalise(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, MOMENTUM, EPS)

    def _of_global_batch(self, x: Tensor, track: bool, groups: int) -> Tensor:
        parts = x.unflatten(0, (groups, -1))
        if x.dtype in (torch.float16, torch.bfloat16):
            parts = parts.float()
        count = x.numel() // (groups * x.shape[1])
        own_var, own_mean = torch.var_mean(parts, dim=(1, 3, 4), correction=0)  # (G, C)
        totals = torch.cat([own_mean * count, torch.full_like(own_mean[:, :1], count)], dim=1)
        totals, counts = sum_over_ranks(totals).split([x.shape[1], 1], dim=1)
        mean = totals / counts
        # About the mean of all: a mean of squares less a squared mean would cancel.
        var = sum_over_ranks((own_var + (own_mean - mean).square()) * count) / counts
        if track:
            self._track(mean.detach(), (var * (counts / (counts - 1))).detach())
        scale = self.weight * torch.rsqrt(var + EPS)
        shifted = parts - mean[:, None, :, None, None]
        out = shifted * scale[:, None, :, None, None] + self.bias[:, None, None]
        return out.flatten(0, 1).to(x.dtype)

    @torch.no_grad()
    def _track(self, means: Tensor, unbiased_vars: Tensor) -> None:
        for mean, var in zip(means.unbind(), unbiased_vars.unbind(), strict=True):
            self.running_mean.mul_(1 - MOMENTUM).add_(mean, alpha=MOMENTUM)
            self.running_var.mul_(1 - MOMENTUM).add_(var, alpha=MOMENTUM)


class SwitchableNorm(nn.Module):
    """A batch norm for each size, with statistics and affine parameters of its own.

    Args:
        channels: of the features.
        sizes: of the images.
        used: sizes whose features come this way; the parameters of the others are kept as the
            reference has them, and not trained.
    """

    def __init__(self, channels: int, sizes: Collection[int], used: Collection[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict()
        for size in sizes:
            norm = BatchNorm(channels)
            self.norms[str(size)] = norm.requires_grad_(size in used)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """x (G * B, C, H, W); the statistics of each of the G groups are its own."""
        out: Tensor = self.norms[str(at.size)](x, at.track, at.groups)
        return out


class GroupNorm(nn.GroupNorm):
    """Group norm; it needs no statistics, so that size and groups do not matter to it."""

    def forward(self, x: Tensor, at: At) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def make_norm(
    channels: int, model: Model, sizes: Collection[int], used: Collection[int] | None = None
) -> SwitchableNorm | GroupNorm:
    """The normalisation that the config asks for."""
    if model.norm == "group_norm":
        return GroupNorm(model.norm_groups, channels)
    return SwitchableNorm(channels, sizes, sizes if used is None else used)


class ResizedConv2d(nn.Conv2d):
    """A 3x3 convolution, without bias, of features that were enlarged to twice their side.

    Enlarged by repetition (nearest). Odena et al. 2016 (Deconvolution and Checkerboard Artifacts)
    have it so, since in a transposed convolution neighbouring pixels come of different weights.
    Repeating and convolving is one linear map, which is done as a transposed convolution of 4x4
    whose taps are sums of these: 16 products a feature and not 36.
    """

    choices: ClassVar[tuple[Choice, ...]] = (WEIGHT_GRADIENT,)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(x, self.spread(), 2, 1)

    def spread(self) -> Tensor:
        """The weights of the transposed convolution, (in, out, 4, 4).

        An output pixel o takes the pixels p = o - 1, o, o + 1 of what was enlarged, which are
        those of its input at p // 2: two neighbouring taps may meet the same one.
        """
        x = self.weight.flip(2, 3)
        for axis in (2, 3):
            nothing = torch.zeros_like(x.narrow(axis, 0, 1))
            x = torch.cat([x, nothing], axis) + torch.cat([nothing, x], axis)
        return x.transpose(0, 1)


Convolution = nn.Conv2d | nn.ConvTranspose2d


class Layer(nn.Module):
    """Convolution without bias, normalisation, activation (in place: nobody needs its input).

    Args:
        conv: Conv2d, ConvTranspose2d or ResizedConv2d.
        norm: after it, or None.
        slope: of the leaky ReLU; 0 is a plain one.
        shifts: whether a number is added to each channel, where no norm does that.
    """

    def __init__(
        self,
        conv: Convolution,
        norm: SwitchableNorm | GroupNorm | None,
        slope: float,
        *,
        shifts: bool = False,
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.slope = conv, norm, slope
        self.shift = nn.Parameter(torch.zeros(conv.out_channels)) if shifts else None

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.finish(self.conv(x), at)

    def finish(self, x: Tensor, at: At) -> Tensor:
        """What follows the convolution."""
        if self.norm is not None:
            x = self.norm(x, at)
        if self.shift is not None:
            x = x + self.shift.view(-1, 1, 1)
        return F.leaky_relu(x, self.slope, inplace=True)


class BlockConv(nn.Module):
    """Residual 3x3 convolution with weights of its own for each block of the features.

    The features (B, C, H, W) are cut into blocks of block x block; each is padded with zeros and
    convolved by itself, and the results are put back in place. All blocks are one grouped
    convolution. Sizes with equally many blocks share them.

    Args:
        channels: C.
        block: side of a block.
        sides: H = W of each size's features.
    """

    def __init__(
        self, channels: int, block: int, sides: dict[int, int], norm: SwitchableNorm | GroupNorm
    ) -> None:
        super().__init__()
        self.block, self.slope = block, 0.2
        grids = sorted({side // block for side in sides.values()})
        self.weights = nn.ParameterDict(
            {
                f"grid{grid}": nn.Parameter(torch.empty(grid * grid * channels, channels, 3, 3))
                for grid in grids
            }
        )
        self.norm = norm

    def forward(self, x: Tensor, at: At) -> Tensor:
        return x + F.leaky_relu(self.norm(self.by_blocks(x), at), self.slope, inplace=True)

    def by_block(self) -> Iterator[Tensor]:
        """The weights (C, C, 3, 3) of every block, row by row, of the smaller grid first."""
        for weight in self.weights.values():
            yield from weight.split(weight.shape[1])

    def by_blocks(self, x: Tensor) -> Tensor:
        """The convolution alone, (B, C, H, W)."""
        batch, channels, height, width = x.shape
        block, down, across = self.block, height // self.block, width // self.block
        cut = x.reshape(batch, channels, down, block, across, block)
        cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, block, block)
        done = F.conv2d(cut, self.weights[f"grid{down}"], padding=1, groups=down * across)
        done = done.view(batch, down, across, channels, block, block)
        return done.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class Resample(nn.Module):
    """Square images (B, C, S, S) to (B, C, s, s), float32: a linear map of rows and of columns.

    As matrix products, since `torch.nn.functional` has no deterministic gradient on CUDA.

    Args:
        weights: (s, S); constant, and in no checkpoint.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return self.weights @ x.to(self.weights.dtype) @ self.weights.T


def average_pool(side: int, width: int) -> Resample:
    """What `F.adaptive_avg_pool2d` does: means of width x width windows."""
    return Resample(F.adaptive_avg_pool2d(torch.eye(side)[None], (width, side))[0])


def bilinear(side: int, width: int) -> Resample:
    """What `F.interpolate` does with `bilinear` and `antialias`."""
    resized = F.interpolate(
        torch.eye(side)[None, None], (width, side), mode="bilinear", antialias=True
    )
    return Resample(resized[0, 0])


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0; normalisations begin as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(part.weight, 0, 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, BlockConv):
            for weight in part.weights.values():
                nn.init.normal_(weight, 0, 0.02)
