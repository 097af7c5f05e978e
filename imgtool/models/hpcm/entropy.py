"""The entropy model: a generalised Gaussian of fixed shape, beta = 1.5.

    density  beta / (2 alpha Gamma(1/beta)) exp(-|v|^beta),  v = (y - mean) / alpha
    p(k)     the density's mass between k - 1/2 and k + 1/2

alpha is a scale: the standard deviation is 0.8594 alpha. Source: HPCM, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BETA = 1.5
MIN_SCALE = 0.12
MIN_LIKELIHOOD = 1e-9  # 29.9 bits a symbol at most
_NORM = BETA / (2 * math.gamma(1 / BETA))  # the density at v = 0, for alpha = 1

# Scales that have a probability table of their own: log-spaced from 0.12 to 64, in float64.
NUM_SCALES = 60
SCALE_TABLE: tuple[float, ...] = tuple(
    MIN_SCALE * (64 / MIN_SCALE) ** (i / (NUM_SCALES - 1)) for i in range(NUM_SCALES)
)

_ENTRIES_PER_LOG = (NUM_SCALES - 1) / math.log(64 / MIN_SCALE)


def full_precision(x: Tensor) -> Tensor:
    """x, as float32 if it is of half precision: rates and residuals are nothing for autocast."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _upper_tail(v: Tensor) -> Tensor:
    """The mass beyond v >= 0 on one side, accurate however small it is."""
    shape = torch.full((), 1 / BETA, dtype=v.dtype, device=v.device)
    return torch.special.gammaincc(shape, v * v.sqrt()).mul_(0.5)


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, alpha: Tensor) -> Tensor:
        distance = residual.abs()
        near, far = (distance - 0.5) / alpha, (distance + 0.5) / alpha
        ctx.save_for_backward(residual, alpha, near, far)
        # Both edges on one side of the mode, unless the bin holds it: no cancellation far out.
        near_tail, far_tail = _upper_tail(near.abs()), _upper_tail(far)
        return torch.where(near < 0, 1 - near_tail, near_tail) - far_tail

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        residual, alpha, near, far = ctx.saved_tensors
        near_abs = near.abs()
        near_density = torch.exp(-near_abs * near_abs.sqrt())
        far_density = torch.exp(-far * far.sqrt())
        common = grad * _NORM / alpha
        by_residual = by_alpha = None
        if ctx.needs_input_grad[0]:
            by_residual = common * (far_density - near_density) * residual.sign()
        if ctx.needs_input_grad[1]:
            by_alpha = common * (near * near_density - far * far_density)
            by_alpha = by_alpha.sum_to_size(alpha.shape)
        return by_residual, by_alpha


def likelihood(residual: Tensor, alpha: Tensor) -> Tensor:
    """The mass of the bin of width 1 around `residual`.

    Args:
        residual: (...), y - mean, rounded or with noise; float32 or float64.
        alpha: scales above 0, of a shape that broadcasts to residual's.

    Returns:
        p (...), 0..1, accurate in the tails. Differentiable in both; the derivatives are the
        exact ones, by the density at the bin's edges.
    """
    p: Tensor = _Likelihood.apply(residual, alpha)
    return p


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound); below the bound, only a gradient that pushes x up gets through."""
    bounded: Tensor = _LowerBound.apply(x, bound)
    return bounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def ste_round(x: Tensor) -> Tensor:
    """The nearest integer (ties to even); the gradient passes as if nothing had happened."""
    rounded: Tensor = _Round.apply(x)
    return rounded


class _Quantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, means: Tensor) -> Tensor:
        return (y - means).round_().add_(means)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def quantise(y: Tensor, means: Tensor) -> Tensor:
    """ste_round(y - means) + means, whose gradient in the means is 0: there it cancels."""
    quantised: Tensor = _Quantise.apply(y, means)
    return quantised


def table_index(alpha: Tensor) -> Tensor:
    """The smallest scale in SCALE_TABLE that is at least alpha, or the last: int32, 0..59.

    Exact, and so the same everywhere: the logarithm only says which entry to compare with.
    """
    table = torch.tensor(SCALE_TABLE[:-1], dtype=torch.float64).to(alpha.dtype).to(alpha.device)
    # Entries are 0.106 apart in log, a hundred times what float16 loses there.
    nearest = alpha.log().sub_(math.log(MIN_SCALE)).mul_(_ENTRIES_PER_LOG).round_()
    nearest = nearest.clamp_(0, NUM_SCALES - 2).nan_to_num_(0).to(torch.int32)
    entry = table.index_select(0, nearest.flatten()).view(alpha.shape)
    return alpha.gt(entry).add(nearest)
