"""Convolutions that take the kernels which this processor is quicker with.

`Pointwise` is a matrix product by nature, and torch offers two. `Conv2d` and `ConvTranspose2d`
leave all but the weights' gradient to torch: in float32 on a CPU that may be a few large products.
oneDNN's kernels of that gradient for channels_last tensors reach a third of a product's rate on
processors without AVX-512 (AMD EPYC, Zen 3: 37 to 100 GFLOP/s where products have 130 to 140),
and it is a third of a training's arithmetic.

The gradient is a sum over positions p of small[p] x large[s * p + k - padding]; `small` is the
output of a convolution, the input of a transposed one. `large`, padded, is cut into its s * s
phases, which become channels, and `small` is padded to the same grid. With the grid laid out as
rows, a tap is an offset in rows: the operands of each product are views.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from imgtool.nn.kernels import Calls, Choice

BATCH = 16
FEW_CHANNELS = 8  # of which a product would have too few columns


# 1x1 convolutions ------------------------------------------------------------------------------


def _nhwc(*sizes: int, device: torch.device) -> Tensor:
    return torch.ones(sizes, device=device).to(memory_format=torch.channels_last)


def _pointwise_calls(device: torch.device) -> Calls:
    x, weight = _nhwc(1, 640, 32, 32, device=device), _nhwc(640, 640, 1, 1, device=device)
    bias = torch.ones(640, device=device)

    @torch.no_grad()
    def convolution() -> Tensor:
        return _convolved(x, weight, bias)

    @torch.no_grad()
    def product() -> Tensor:
        return _product(x, weight, bias)

    return {"convolution": convolution, "product": product}


def _pointwise_gradient_calls(device: torch.device) -> Calls:
    x, weight = _nhwc(1, 640, 32, 32, device=device), _nhwc(640, 640, 1, 1, device=device)
    return {
        "convolution": lambda: _gradients_by_convolution(x, weight, x, of_x=True),
        "product": lambda: _gradients_by_products(x, weight, x, of_x=True),
    }


# On an AMD EPYC of Zen 5 convolution was more than twice as quick, on an Intel Cascade Lake
# products were the quicker ones; on an EPYC of Zen 3 they are equal.
POINTWISE = Choice("pointwise", preferred="convolution", before="product", make=_pointwise_calls)
# On Zen 3 products are a sixth quicker.
POINTWISE_GRADIENT = Choice(
    "pointwise_gradient", preferred="product", before="product", make=_pointwise_gradient_calls
)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with bias.

    Args:
        leaky: whether a LeakyReLU of slope 0.01 follows.
    """

    choices: ClassVar[tuple[Choice, ...]] = (POINTWISE, POINTWISE_GRADIENT)

    def __init__(self, channels: int, width: int, *, leaky: bool = False) -> None:
        super().__init__(channels, width, 1)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        if not x.is_contiguous(memory_format=torch.channels_last):
            return self._act(F.conv2d(x, self.weight, self.bias))
        kernel = POINTWISE.of(x.device)
        if _asks_for_gradients(x) and POINTWISE_GRADIENT.of(x.device) != kernel:
            out: Tensor = _MixedPointwise.apply(x, self.weight, self.bias)
            return self._act(out)
        if kernel == "convolution":
            return self._act(_convolved(x, self.weight, self.bias))
        # The activation before the permutation: in place on a view it would cost copies.
        return self._act(_product(x, self.weight, self.bias)).permute(0, 3, 1, 2)

    def _act(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x) if self.leaky else x


class _MixedPointwise(torch.autograd.Function):
    """One kernel forwards, the other one backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.by_convolution = POINTWISE.of(x.device) == "convolution"
        if ctx.by_convolution:
            return _convolved(x, weight, bias).detach()
        return _product(x, weight, bias).permute(0, 3, 1, 2).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients = _gradients_by_products if ctx.by_convolution else _gradients_by_convolution
        return gradients(x, weight, grad, of_x=ctx.needs_input_grad[0])


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d; with one thread torch leaves fewer images than BATCH to a product and a copy."""
    size = x.permute(0, 2, 3, 1).shape
    fits = size[:3].numel() % BATCH == 0
    left_to_torch = torch.compiler.is_compiling() or x.device.type != "cpu" or not fits
    if left_to_torch or torch.get_num_threads() > 1:
        return F.conv2d(x, weight, bias)
    cut = x.permute(0, 2, 3, 1).view(BATCH, -1, 1, size[3]).permute(0, 3, 1, 2)
    out = F.conv2d(cut, weight, bias).permute(0, 2, 3, 1)
    # Without oneDNN it comes in the order of NCHW.
    return out.reshape(*size[:3], -1).permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, H, W, out)."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _gradients_by_products(
    x: Tensor, weight: Tensor, grad: Tensor, *, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    rows = _rows(grad)
    of_weight = (rows.T @ _rows(x)).view(weight.shape)
    if not of_x:
        return None, of_weight, rows.sum(dim=0)
    found = (rows @ weight.flatten(1)).view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return found, of_weight, rows.sum(dim=0)


def _gradients_by_convolution(
    x: Tensor, weight: Tensor, grad: Tensor, *, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    found = conv2d_input(x.shape, weight, grad) if of_x else None
    return found, conv2d_weight(x, weight.shape, grad), _rows(grad).sum(dim=0)


def _asks_for_gradients(x: Tensor) -> bool:
    """In float32 throughout: half precision is left to torch."""
    if not torch.is_grad_enabled() or x.is_meta or x.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled(x.device.type)


# The weights' gradient of others ---------------------------------------------------------------


def _weight_gradient_calls(device: torch.device) -> Calls:
    large, small = _nhwc(2, 128, 32, 32, device=device), _nhwc(2, 256, 16, 16, device=device)
    size = (256, 128, 4, 4)
    return {
        "convolution": lambda: conv2d_weight(large, size, small, stride=2, padding=1),
        "product": lambda: weight_gradient(large, small, 4, 2, 1),
    }


WEIGHT_GRADIENT = Choice(
    "weight_gradient", preferred="convolution", before="convolution", make=_weight_gradient_calls
)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` without bias, of one group and square kernels."""

    choices: ClassVar[tuple[Choice, ...]] = (WEIGHT_GRADIENT,)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.stride[0], int(self.padding[0]))


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` without bias, of one group and square kernels."""

    choices: ClassVar[tuple[Choice, ...]] = (WEIGHT_GRADIENT,)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return conv_transpose2d(x, self.weight, self.stride[0], int(self.padding[0]))


def conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv2d` of x (B, C, H, W) and weight (D, C, k, k)."""
    if _by_products(x, weight, stride):
        out: Tensor = _Convolution.apply(x, weight, stride, padding, False)
        return out
    return F.conv2d(x, weight, stride=stride, padding=padding)


def conv_transpose2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv_transpose2d` of x (B, C, H, W) and weight (C, D, k, k)."""
    if _by_products(x, weight, stride):
        out: Tensor = _Convolution.apply(x, weight, stride, padding, True)
        return out
    return F.conv_transpose2d(x, weight, stride=stride, padding=padding)


def _by_products(x: Tensor, weight: Tensor, stride: int) -> bool:
    return (
        x.device.type == "cpu"
        and _asks_for_gradients(x)
        and weight.requires_grad
        and weight.shape[-1] % stride == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        # Of a few channels on the side of the many positions torch's kernels do as well.
        and weight.shape[1] > FEW_CHANNELS
        and WEIGHT_GRADIENT.of(x.device) == "product"
    )


class _Convolution(torch.autograd.Function):
    """Forward and the input's gradient are torch's; the weight's is `weight_gradient`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.transposed = stride, padding, transposed
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(x, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
            of_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, [1, 1], ctx.transposed, [0, 0], 1,
                [True, False, False],
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            large, small = (gradient, x) if ctx.transposed else (x, gradient)
            of_weight = weight_gradient(large, small, weight.shape[-1], ctx.stride, ctx.padding)
        return of_x, of_weight, None, None, None


def weight_gradient(large: Tensor, small: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Sum over positions p of small[p] x large[stride * p + k - padding], for each tap k.

    Args:
        large: (B, C, H, W); outside it there are zeros.
        small: (B, D, h, w).
        kernel: taps of each axis, a multiple of `stride`.

    Returns:
        (D, C, kernel, kernel), channels_last.
    """
    if small.shape[1] <= FEW_CHANNELS and stride == 1:
        return _of_few(large, small, kernel, padding)
    shifts = kernel // stride
    large, small = large.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1)
    high, wide = small.shape[1] + shifts - 1, small.shape[2] + shifts - 1
    below = high * stride - large.shape[1] - padding
    right = wide * stride - large.shape[2] - padding
    channels, width = large.shape[3], small.shape[3]
    total = large.new_zeros(shifts, shifts, width, stride * stride * channels)
    rows = high * wide - (shifts - 1) * (wide + 1)  # the last ones are zeros of small's
    for of_large, of_small in zip(large, small, strict=True):  # an image's copies are not large
        phases = F.pad(of_large, (0, 0, padding, right, padding, below))
        phases = phases.reshape(high, stride, wide, stride, channels).transpose(1, 2)
        phases = phases.reshape(high * wide, -1)
        columns = F.pad(of_small, (0, 0, 0, shifts - 1, 0, shifts - 1)).reshape(-1, width)
        columns = columns[:rows].t()
        for i in range(shifts):
            for j in range(shifts):
                begin = i * wide + j
                total[i, j].addmm_(columns, phases[begin : begin + rows])
    taps = total.view(shifts, shifts, width, stride, stride, channels)
    taps = taps.permute(2, 0, 3, 1, 4, 5).reshape(width, kernel, kernel, channels)
    return taps.permute(0, 3, 1, 2)


def _of_few(large: Tensor, small: Tensor, kernel: int, padding: int) -> Tensor:
    """The same where `small` has few channels: all taps of them are the rows of one product."""
    width, channels = small.shape[1], large.shape[1]
    total = large.new_zeros(width * kernel * kernel, channels)
    taps = F.unfold(small, kernel, padding=kernel - 1 - padding)  # tap k is number kernel - 1 - k
    for of_large, of_small in zip(large.permute(0, 2, 3, 1), taps, strict=True):
        total.addmm_(of_small, of_large.reshape(-1, channels))
    return total.view(width, kernel, kernel, channels).flip(1, 2).permute(0, 3, 1, 2)
