"""Images as tensors: value ranges, padding, and pictures made of pictures.

Ranges: uint8 0..255; `unit` [0, 1]; `pm1` [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def to_pm1(image: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 [-1, 1] on the same device, with the same strides.

    0 becomes exactly -1 and 255 exactly 1.

    Raises:
        TypeError: the image is not uint8; a range is never guessed from the values.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"an image is uint8, not {image.dtype}")
    return (image - 127.5).div_(127.5)


def to_unit(image_pm1: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped, not rounded."""
    return (image_pm1 + 1).mul_(0.5).clamp_(0, 1)


def to_uint8(image_pm1: Tensor) -> Tensor:
    """[-1, 1] to the nearest of 0..255, clamped."""
    return ((image_pm1 + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(image: Tensor, unit: int) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) until both sides are multiples of `unit`."""
    height, width = image.shape[-2:]
    bottom, right = -height % unit, -width % unit
    if not (bottom or right):
        return image
    return F.pad(image, (0, right, 0, bottom), mode="replicate")


def colour_map(classes: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    """Class numbers (..., H, W) to their colours, uint8 (..., 3, H, W).

    Numbers without a colour, such as 255 for ignored pixels, become black.
    """
    colours = torch.zeros(256, 3, dtype=torch.uint8)
    colours[: len(palette)] = torch.tensor(palette, dtype=torch.uint8)
    return colours.to(classes.device)[classes.long()].movedim(-1, -3)


def grid(rows: Sequence[Sequence[Tensor]], *, gap: int = 2, grey: int = 128) -> Tensor:
    """Pictures side by side and below each other.

    Args:
        rows: uint8 (3, H, W) each; one size for all, and equally many in every row.
        gap: width of the separating lines in pixels.
        grey: level of the lines.

    Returns:
        uint8 (3, height, width) on the CPU.
    """
    _, height, width = rows[0][0].shape
    down, across = len(rows), len(rows[0])
    size = (3, down * (height + gap) - gap, across * (width + gap) - gap)
    picture = torch.full(size, grey, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            picture[:, top : top + height, left : left + width] = cell
    return picture
