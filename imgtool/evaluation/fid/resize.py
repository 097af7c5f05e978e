"""Images as Inception wants them: 299 px, and scaled as the tool does whose numbers are meant.

FIDs of different ways differ by several units, so the way is part of every result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.evaluation.fid.options import IMAGENET_RESIZE

SIDE = 299
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(images: Tensor, resize: str, side: int = SIDE) -> Tensor:
    """Resize and scale.

    Args:
        images: (B, 3, H, W) uint8, 0..255, RGB.
        resize:
            clean: bicubic with antialiasing, clamped, (x - 128) / 128 (Parmar et al. 2022).
            pytorch-fid: bilinear between pixel centres, no antialiasing, 2 x / 255 - 1.
            tf1: bilinear between pixel corners, as TensorFlow 1 and Heusel et al. 2017,
                (x - 128) / 128.
            imagenet: bilinear as pytorch-fid, ImageNet's mean and deviation.
        side: of the result, pixels.

    Returns:
        (B, 3, side, side) float32 of channels_last strides.
    """
    x = images.to(torch.float32)
    if resize == "clean":
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(0, 255) - 128) / 128
    elif resize == "tf1":
        x = (_tf1_bilinear(x, side) - 128) / 128
    elif resize in ("pytorch-fid", IMAGENET_RESIZE):
        x = F.interpolate(x / 255, (side, side), mode="bilinear", align_corners=False)
        x = 2 * x - 1 if resize == "pytorch-fid" else _standardised(x)
    else:
        raise ValueError(f"no resize {resize!r}")
    return x.contiguous(memory_format=torch.channels_last)


def _standardised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return (x - mean) / std


def _tf1_bilinear(x: Tensor, side: int) -> Tensor:
    """Position i reads i * size / side: the corner of a pixel, not its centre."""
    for dim in (2, 3):
        size = x.shape[dim]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = at.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        part = (at - low).view((-1, 1) if dim == 2 else (-1,))
        first = x.index_select(dim, low)
        x = first + (x.index_select(dim, high) - first) * part
    return x
