"""The ten colours of a floor plan, and the exact lookup from colour to class."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from imgtool.data.base import IGNORE, Image8

CLASSES: dict[str, tuple[int, int, int]] = {
    "bed": (228, 26, 28),
    "cabinet_shelf_desk": (55, 126, 184),
    "chair": (77, 175, 74),
    "lighting": (152, 78, 163),
    "others": (127, 127, 127),
    "pier_stool": (255, 127, 0),
    "sofa": (255, 255, 51),
    "table": (166, 86, 40),
    "wall": (200, 200, 200),
    "background": (240, 240, 240),
}
MASK_NAMES = tuple(CLASSES)  # a class's number is its position here
PALETTE = tuple(CLASSES.values())
LABEL_NAMES = ("room", "scene")


@cache
def _class_of_code() -> Image8:
    """Class of every 24-bit colour code, (2^24,) uint8: exact, and 16 MB once a process."""
    table = np.full(1 << 24, IGNORE, np.uint8)
    for number, (red, green, blue) in enumerate(PALETTE):
        table[red << 16 | green << 8 | blue] = number
    return table


def class_map(image: Image8) -> Image8:
    """Class number of every pixel.

    Args:
        image: (H, W, 3) uint8 RGB, as stored: a colour one level off is no palette colour.

    Returns:
        (H, W) uint8, 0..9, and 255 where a pixel has no palette colour.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"class_map wants uint8 (H, W, 3), not {image.dtype} {image.shape}")
    code: NDArray[np.uint32] = image[..., 0].astype(np.uint32)
    for channel in (1, 2):
        code <<= 8
        code |= image[..., channel]
    return _class_of_code().take(code)


def unmatched_share(mask: Image8) -> float:
    """Part of a mask's pixels that has no class, 0..1."""
    return float(np.count_nonzero(mask == IGNORE)) / mask.size if mask.size else 0.0
