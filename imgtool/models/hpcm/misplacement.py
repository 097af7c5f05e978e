"""Where the published code takes scale 2's hyperprior from.

It gathers the hyperprior of scale 2 without that of scale 1 as one list, row by row, and lays the
list out over scale 2's positions that scale 1 does not hold. But it thinks scale 1 to be elsewhere:
of each 2x2 cell it leaves out another position than it skips. In channel groups 2 to 7, most values
so end up in other columns. Published weights were trained with that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def misplaced(hyper: Tensor) -> Tensor:
    """Scale 2's hyperprior as the published code places it.

    The position of each 2x2 cell (row, column) that is left out, and the one that is skipped:

        groups 0, 1   (0, 0)   (0, 0)   as it should be
        groups 2, 3   (0, 0)   (0, 1)
        groups 4, 5   (0, 1)   (1, 0)
        groups 6, 7   (0, 1)   (1, 1)

    Args:
        hyper: scales and means (B, 2 M, 2h, 2w) on scale 2's grid, in their right order.

    Returns:
        The same size; zeros where scale 1's latents lie.
    """
    top, bottom = hyper.unflatten(1, (2, 4, -1)).unflatten(4, (-1, 2)).unbind(5)
    half = hyper.shape[3] // 2
    none = torch.zeros_like(top[:, :, 0, :, :, :half])
    # Three half rows of each pair of rows are in use; those below are lists of them, in order.
    first = _rows(_mixed(none, top[:, :, 0, ..., 1::2]), bottom[:, :, 0])
    second = _rows(_mixed(top[:, :, 1, ..., 1::2], none), bottom[:, :, 1])
    left, right = bottom[..., :half], bottom[..., half:]
    third = _rows(_joined(top[:, :, 2], left[:, :, 2]), _mixed(none, right[:, :, 2]))
    fourth = _rows(_joined(top[:, :, 3], left[:, :, 3]), _mixed(right[:, :, 3], none))
    return torch.stack([first, second, third, fourth], dim=2).flatten(1, 3)


def _joined(top: Tensor, left: Tensor) -> Tensor:
    """A full upper row: the even columns of the pair's first row, then what follows in its second."""
    return torch.cat([top[..., ::2], left], dim=-1)


def _mixed(even: Tensor, odd: Tensor) -> Tensor:
    """Columns taken from both in turn."""
    return torch.stack([even, odd], dim=-1).flatten(-2)


def _rows(top: Tensor, bottom: Tensor) -> Tensor:
    """Rows (..., h, 2w) taken from both in turn."""
    return torch.stack([top, bottom], dim=-2).flatten(-3, -2)
