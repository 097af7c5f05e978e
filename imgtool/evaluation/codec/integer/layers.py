"""The entropy path's layers on integers (B, h, w, C) in float64: each is made of its float layer.

A layer's own factors are multiplied by powers of two beforehand, so that its product comes out in
units of the output and only has to be rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.evaluation.codec.integer.arithmetic import (
    ACTIVATION_MAX,
    SLOPE,
    SLOPE_BITS,
    Bound,
    enter,
    leave,
    power,
    settle,
    whole_weights,
)
from imgtool.evaluation.codec.integer.products import Matrix
from imgtool.models.hpcm.layers import PartialConv, ResidualBlock
from imgtool.nn.convolution import Pointwise

Exponents = Mapping[str, Tensor]  # of each site's channels, int64


class Product(nn.Module):
    """x W + b, rounded and saturated; a residual and LeakyReLU come before the rounding.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,).
        source, target: exponents of inputs and outputs.
        residual: exponents of what is added, of as many channels as the outputs.
        leaky: whether LeakyReLU follows the sum.
    """

    bias: Tensor
    rescale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        source: Tensor,
        target: Tensor,
        bound: Bound,
        *,
        residual: Tensor | None = None,
        leaky: bool = False,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        of_integers = weight.detach().double() * power(-source)
        whole, whole_bias, g = whole_weights(of_integers, bias.detach().double(), target)
        shift = target - g
        self.matrix = Matrix(whole, power(shift))
        self.register_buffer("bias", whole_bias * power(shift))
        largest = (whole.abs().sum(dim=1) * ACTIVATION_MAX + whole_bias.abs()) * power(shift)
        finest = shift
        if residual is not None:
            self.register_buffer("rescale", power(target - residual))
            largest = largest + ACTIVATION_MAX * power(target - residual)
            finest = torch.minimum(shift, target - residual)
        bound.see(largest, finest, spare_bits=SLOPE_BITS if leaky else 0)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        out = self.matrix(x.reshape(-1, x.shape[-1]), self.bias).view(*x.shape[:-1], -1)
        if residual is not None:
            out.addcmul_(residual, self.rescale)
        if self.leaky:
            F.leaky_relu_(out, SLOPE)
        return settle(out)


def pointwise(
    layer: Pointwise,
    source: Tensor,
    target: Tensor,
    bound: Bound,
    *,
    residual: Tensor | None = None,
) -> Product:
    """A 1x1 convolution."""
    assert layer.bias is not None
    weight = layer.weight.flatten(1)
    return Product(weight, layer.bias, source, target, bound, residual=residual, leaky=layer.leaky)


def _neighbours(x: Tensor) -> list[Tensor]:
    """Nine views of (B, h, w, C), one for each tap of a 3x3 kernel; zeros beyond the edges."""
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


class Partial(nn.Module):
    """The 3x3 convolution of the first channels, the others pass.

    Attributes:
        exponents: of the output.
    """

    def __init__(self, layer: PartialConv, source: Tensor, target: Tensor, bound: Bound) -> None:
        super().__init__()
        self.active = layer.active
        assert layer.conv.bias is not None
        weight = layer.conv.weight.permute(0, 2, 3, 1).flatten(1)
        taps = source[: self.active].repeat(9)
        self.product = Product(weight, layer.conv.bias, taps, target, bound)
        self.exponents = torch.cat([target, source[self.active :]])

    def forward(self, x: Tensor) -> Tensor:
        active = torch.cat(_neighbours(x[..., : self.active]), dim=-1)
        return torch.cat([self.product(active), x[..., self.active :]], dim=-1)


class Depthwise(nn.Module):
    """A 3x3 convolution of each channel by itself.

    Attributes:
        exponents: of the output.
    """

    taps: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d, source: Tensor, target: Tensor, bound: Bound) -> None:
        super().__init__()
        assert layer.bias is not None
        weight = layer.weight.detach().double().flatten(1) * power(-source)[:, None]
        whole, bias, g = whole_weights(weight, layer.bias.detach().double(), target)
        shift = power(target - g)
        self.register_buffer("taps", (whole * shift[:, None]).t().contiguous())
        self.register_buffer("bias", bias * shift)
        largest = (whole.abs().sum(dim=1) * ACTIVATION_MAX + bias.abs()) * shift
        bound.see(largest, target - g)
        self.exponents = target

    def forward(self, x: Tensor) -> Tensor:
        out = self.bias.expand(x.shape).clone()
        for neighbour, tap in zip(_neighbours(x), self.taps, strict=True):
            out.addcmul_(neighbour, tap)
        return settle(out)


class Up(nn.Module):
    """A transposed 2x2 convolution of stride 2: four products side by side."""

    def __init__(
        self, layer: nn.ConvTranspose2d, source: Tensor, target: Tensor, bound: Bound
    ) -> None:
        super().__init__()
        assert layer.bias is not None
        weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
        self.product = Product(weight, layer.bias.repeat(4), source, target.repeat(4), bound)

    def forward(self, x: Tensor) -> Tensor:
        out = self.product(x).unflatten(-1, (2, 2, -1))  # (B, h, w, row, column, C)
        return out.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


class Block(nn.Module):
    """x + MLP(spatial(x)).

    Args:
        name: of the float block; its sites are below that.
    """

    def __init__(
        self, name: str, block: ResidualBlock, source: Tensor, exponents: Exponents, bound: Bound
    ) -> None:
        super().__init__()
        spatial, inner = exponents[f"{name}.spatial"], exponents[f"{name}.expand"]
        self.spatial: Partial | Depthwise
        if isinstance(block.spatial, PartialConv):
            self.spatial = Partial(block.spatial, source, spatial, bound)
        else:
            assert isinstance(block.spatial, nn.Conv2d)
            self.spatial = Depthwise(block.spatial, source, spatial, bound)
        self.expand = pointwise(block.expand, self.spatial.exponents, inner, bound)
        self.exponents = exponents[name]
        self.reduce = pointwise(block.reduce, inner, self.exponents, bound, residual=source)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduce(self.expand(self.spatial(x)), x)
        return out


class Factor(nn.Module):
    """x times a factor for each channel."""

    factor: Tensor

    def __init__(self, factor: Tensor, source: Tensor, target: Tensor, bound: Bound) -> None:
        super().__init__()
        weight = factor.detach().double().flatten() * power(-source)
        whole, _, g = whole_weights(weight[:, None], torch.zeros_like(weight), target)
        self.register_buffer("factor", whole.flatten() * power(target - g))
        bound.see(self.factor.abs() * ACTIVATION_MAX, target - g)

    def forward(self, x: Tensor) -> Tensor:
        return settle(x * self.factor)


class Enter(nn.Module):
    """Values (B, C, h, w) to integers."""

    scale: Tensor

    def __init__(self, exponents: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", power(exponents))

    def forward(self, x: Tensor) -> Tensor:
        return enter(x, self.scale)


class Leave(nn.Module):
    """Integers to values (B, C, h, w)."""

    unit: Tensor

    def __init__(self, exponents: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", power(-exponents))

    def forward(self, x: Tensor) -> Tensor:
        return leave(x, self.unit)
