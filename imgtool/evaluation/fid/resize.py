"""Images as networks want them: of one size, and scaled as the tool does whose numbers are meant.

FIDs of different ways differ by several units, so the way is part of every result.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 299  # Inception's
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
            edm2: bicubic with antialiasing, not clamped, ImageNet's mean and deviation.
            dgm-eval: Pillow's bicubic, rounded to uint8, ImageNet's mean and deviation.
        side: of the result, pixels.

    Returns:
        (B, 3, side, side) float32; for Inception of channels_last strides.
    """
    if resize == "dgm-eval":
        return _standardised(_resized_by_pillow(images, side) / 255)
    x = images.to(torch.float32)
    if resize == "edm2":
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
        return _standardised(x / 255)
    if resize == "clean":
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(0, 255) - 128) / 128
    elif resize == "tf1":
        x = (_tf1_bilinear(x, side) - 128) / 128
    elif resize in ("pytorch-fid", "imagenet"):
        x = F.interpolate(x / 255, (side, side), mode="bilinear", align_corners=False)
        x = 2 * x - 1 if resize == "pytorch-fid" else _standardised(x)
    else:
        raise ValueError(f"no resize {resize!r}")
    return x.contiguous(memory_format=torch.channels_last)


def _resized_by_pillow(images: Tensor, side: int) -> Tensor:
    """(B, 3, side, side) float32 of whole numbers, on the device of the images."""
    found = [
        np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
        for pixels in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(images.device, torch.float32)


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
