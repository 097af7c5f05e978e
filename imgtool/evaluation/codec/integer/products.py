"""Exact products of integer matrices: float64 everywhere, int8 limbs where they are the quicker way."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Matrix(nn.Module):
    """x W^T + b of integers.

    Args:
        whole: W (outputs, inputs), integers within +-WEIGHT_MAX in float64.
        shift: (outputs,) powers of two that W's rows are multiplied by.
    """

    weight: Tensor

    def __init__(self, whole: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", (whole * shift[:, None]).t().contiguous())

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(n, inputs) integers within +-ACTIVATION_MAX to (n, outputs); the bias is shifted already."""
        return torch.addmm(bias, x, self.weight)
