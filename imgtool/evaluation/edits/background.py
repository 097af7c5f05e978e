"""What an edit changes where it should change nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from imgtool.data.landmarks import Points
from imgtool.errors import DataError

# Half axes of the ellipse that is a face: across, of the distance of the eyes; down, of that from
# the eyes' middle to the mouth's. By CelebA's mean face it goes from the hairline to the chin.
ACROSS, DOWN = 1.25, 1.75
HELD = 0.9  # of an edit's change, what the pixels that are its support hold


def face_region(points: Points, size: int, device: torch.device | None = None) -> Tensor:
    """Pixels of faces, bool (N, 1, S, S), on a device.

    Args:
        points: (N, 5) on a square of side 1, in the order of `landmarks.NAMES`.

    Raises:
        DataError: a face fills its picture: there is no background to look at.
    """
    eyes, mouth = points[:, :2].mean(1), points[:, 3:].mean(1)
    centre, down = (eyes + mouth) / 2, mouth - eyes
    upright = down / np.maximum(np.abs(down), 1e-9)
    across = np.maximum(ACROSS * np.abs(points[:, 1] - points[:, 0]), 1e-9)
    tall = np.maximum(DOWN * np.abs(down), 1e-9)
    words = (centre.real, centre.imag, upright.real, upright.imag, across, tall)
    x0, y0, cos, sin, wide, high = (
        torch.from_numpy(one).float().to(device)[:, None, None] for one in words
    )
    middles = (torch.arange(size, device=device) + 0.5) / size
    x, y = middles[None, None, :] - x0, middles[None, :, None] - y0
    downwards, sideways = x * cos + y * sin, y * cos - x * sin
    found = ((sideways / wide).square() + (downwards / high).square() <= 1)[:, None]
    if found.flatten(1).all(1).any():
        raise DataError(
            "a face fills the whole of its picture: it has no background",
            hint="are the landmarks of these images? without a table the change itself tells",
        )
    return found


def support(edit: Tensor, reconstruction: Tensor) -> Tensor:
    """The fewest pixels that hold HELD of what an edit changes against the reconstruction.

    Args:
        edit, reconstruction: uint8 (B, 3, S, S).

    Returns:
        bool (B, 1, S, S); where nothing is changed no pixel.
    """
    change = (edit.float() - reconstruction.float()).abs().mean(1).flatten(1)
    most, order = change.sort(dim=1, descending=True)
    before = most.cumsum(1) - most
    within = before < HELD * change.sum(1, keepdim=True)
    found = torch.zeros_like(within).scatter(1, order, within)
    return found.view(len(edit), 1, *edit.shape[-2:])


def l1_outside(edit: Tensor, source: Tensor, region: Tensor) -> Tensor:
    """Mean absolute difference on [0, 1] of the pixels outside a region, (B,)."""
    outside = ~region
    change = (edit.float() - source.float()).abs().mean(1, keepdim=True) / 255
    sums = (change * outside).flatten(1).sum(1)
    return sums / outside.flatten(1).sum(1)


def with_own_inside(edit: Tensor, source: Tensor, region: Tensor) -> Tensor:
    """The edit with the source's pixels within a region: what is left to see is outside it."""
    return torch.where(region, source, edit)
