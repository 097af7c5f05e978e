"""Masks on the latent's grid."""

from __future__ import annotations

import torch
from torch import Tensor

from imgtool.data.base import IGNORE


def mask_on_grid(mask: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """The class that most pixels of each cell have; of equally many the lower class number.

    Pixels without a class have no say; a cell of nothing else has none either.

    Args:
        mask: (B, H, W) uint8 class numbers, 255 ignored.
        size: (h, w), of which H and W are multiples.
        num_classes: numbers are below it.

    Returns:
        (B, h, w) uint8.
    """
    count, (rows, columns) = len(mask), size
    cells = mask.reshape(count, rows, mask.shape[1] // rows, columns, mask.shape[2] // columns)
    best = torch.zeros((count, rows, columns), dtype=torch.int32, device=mask.device)
    found = torch.full_like(best, IGNORE, dtype=torch.uint8)
    for number in range(num_classes):
        votes = (cells == number).sum((2, 4), dtype=torch.int32)
        found = torch.where(votes > best, number, found).to(torch.uint8)
        best = torch.maximum(votes, best)
    return found
