"""One image at several sizes, in one array.

A pyramid of sizes s1, s2 ... is the pixels of the images, one after another in rows, as
(s1*s1 + s2*s2 + ..., 1, 3) uint8: loaders, caches and transfers see one image, and each size is
a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imgtool.data.base import Image8, Size

if TYPE_CHECKING:
    from torch import Tensor


def pyramid_size(sizes: Sequence[int]) -> Size:
    """(H, W) of the array that holds squares of these sides."""
    return sum(side * side for side in sizes), 1


def pack(images: Sequence[Image8]) -> Image8:
    """Square images (s, s, 3) uint8 as one pyramid."""
    return np.concatenate([image.reshape(-1, 1, 3) for image in images])


def unpack(image: Tensor, sizes: Sequence[int]) -> dict[int, Tensor]:
    """The images of a batch by size, (B, 3, s, s) uint8 of channels_last strides; views.

    Args:
        image: (B, 3, P, 1) uint8 of pyramids.
        sizes: as they were packed.
    """
    batch, channels, rows, _ = image.shape
    if rows != pyramid_size(sizes)[0]:
        raise ValueError(f"{rows} pixels are no pyramid of {tuple(sizes)}")
    pixels = image.squeeze(3).permute(0, 2, 1)  # (B, P, 3)
    found, begin = {}, 0
    for side in sizes:
        end = begin + side * side
        square = pixels[:, begin:end].unflatten(1, (side, side))
        found[side] = square.permute(0, 3, 1, 2)
        begin = end
    assert channels == 3
    return found
