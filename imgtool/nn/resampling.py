"""Resampling as matrix products: `torch.nn.functional` has no deterministic gradient on CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.nn.blocks import without_autocast


class Resample(nn.Module):
    """Square images (B, C, S, S) to (B, C, s, s), float32: a linear map of rows and of columns.

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
