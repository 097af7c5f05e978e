"""The context model: from the hyperprior and what is coded to the next step's scales and means.

At step i, psi = g_ep(adaptor_i([C, y_hat so far])) holds the scales and means of every position,
of which the step codes some; then C becomes attention(psi, C). Between scales, C and y_hat go to
the finer grid, whose other positions C takes from the hyperprior. Source: HPCM, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imgtool.models.hpcm.attention import CrossAttention
from imgtool.models.hpcm.entropy import MIN_SCALE, full_precision, lower_bound
from imgtool.models.hpcm.layers import depthwise_block
from imgtool.models.hpcm.misplacement import misplaced
from imgtool.models.hpcm.partition import add, coarser, gather, insert
from imgtool.models.hpcm.steps import Step, steps
from imgtool.models.hpcm.variants import Variant
from imgtool.nn.convolution import Pointwise

# (number, step, scales, means) -> the step's latents, all packed (B, channels of the step, h, w)
Code = Callable[[int, Step, Tensor, Tensor], Tensor]


class ParameterNet(nn.Module):
    """g_ep: (B, 3 M, h, w) to scales and means (B, 2 M, h, w).

    Args:
        M: channels of y.
        depths: residual blocks before and after the adaptive factors.
    """

    def __init__(self, M: int, depths: tuple[int, int]) -> None:
        super().__init__()
        before, after = ([depthwise_block(3 * M) for _ in range(depth)] for depth in depths)
        self.before = nn.Sequential(*before)
        self.after = nn.Sequential(*after, Pointwise(3 * M, 2 * M))

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        psi: Tensor = self.after(self.before(x) * factors)
        return psi


def _zeros(hyper: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty y_hat for the grid of `hyper`, which has twice its channels."""
    return torch.zeros_like(hyper.chunk(2, dim=1)[0], dtype=dtype)


class Context(nn.Module):
    """Runs the coding steps.

    Args:
        legacy_s2_hyper: take scale 2's hyperprior from where the published code does.
    """

    def __init__(self, variant: Variant, *, legacy_s2_hyper: bool = False) -> None:
        super().__init__()
        M = variant.M
        self.steps = steps(variant)
        self.legacy_s2_hyper = legacy_s2_hyper
        later = len(self.steps) - 1
        self.adaptors = nn.ModuleList(Pointwise(3 * M, 3 * M) for _ in range(later))
        self.factors = nn.ParameterList(torch.ones(1, 3 * M, 1, 1) for _ in range(later))
        self.coarse = ParameterNet(M, variant.coarse_depths)
        self.fine = ParameterNet(M, variant.fine_depths)
        self.finer = nn.ModuleList(Pointwise(2 * M, 2 * M) for _ in range(2))
        self.attention = nn.ModuleList(
            CrossAttention(2 * M, window, variant.num_heads) for window in variant.windows or ()
        )

    def forward(self, hyper: Tensor, code: Code) -> Tensor:
        """Run all steps.

        Args:
            hyper: scales and means of the hyperprior (B, 2 M, 4h, 4w).
            code: codes one step's latents and gives their decoded values back; its scales are at
                least 0.12, float32 as are the means.

        Returns:
            y_hat (B, M, 4h, 4w) float32.
        """
        s2_hyper = coarser(hyper, 3, stacked=2)
        context = s1_hyper = coarser(s2_hyper, 2, stacked=2)
        if self.legacy_s2_hyper:
            s2_hyper = misplaced(s2_hyper)
        hypers = {1: s1_hyper, 2: s2_hyper, 3: hyper}
        psi, y_hat, scale = s1_hyper, None, 1
        for i, step in enumerate(self.steps):
            if y_hat is not None:
                if step.scale != scale:
                    scale = step.scale
                    context = insert(context, hypers[scale], scale, stacked=2)
                    context = self.finer[scale - 2](context)
                    y_hat = insert(y_hat, _zeros(hypers[scale], y_hat.dtype), scale)
                net = self.coarse if scale < 3 else self.fine
                psi = net(self.adaptors[i - 1](torch.cat([context, y_hat], 1)), self.factors[i - 1])
            scales, means = full_precision(gather(psi, step, stacked=2)).chunk(2, 1)
            values = code(step.number, step, lower_bound(scales, MIN_SCALE), means)
            if y_hat is None:
                y_hat = add(_zeros(context, values.dtype), values, step)
                continue
            y_hat = add(y_hat, values, step)
            if step is not self.steps[-1]:
                context = self.attention[scale - 1](psi, context) if self.attention else psi
        assert y_hat is not None
        return y_hat
