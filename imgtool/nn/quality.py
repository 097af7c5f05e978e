"""How close an image is to its original. Every measure gives one value an image.

Images are float32 (B, 3, H, W) on [0, 1], clamped and not rounded to 8 bits: rounding adds up to
1/12 of a grey level squared to the error, which only shows above 58 dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorch_msssim.ssim import ms_ssim as library_ms_ssim
from torch import Tensor

PERFECT_MSE = 1e-10  # floor of the error in psnr: 100 dB at most, never infinity
MS_SSIM_MIN_SIDE = 161  # five scales of an 11-pixel window
BOUNDARY_WIDTH = 0.02  # of the image's diagonal (Cheng et al. 2021, section 5.3)


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of each image, (B,)."""
    return (x_hat - x).square().mean(dim=(1, 2, 3))


def psnr(mse_unit: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB from errors on [0, 1]; at most 100 dB."""
    return -10 * torch.log10(mse_unit.clamp(min=PERFECT_MSE))


def gradient_energy(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of each image, (B,): across and down, halved.

    Of an error image it is the error of gradients: what is flat or slow costs nothing.
    """
    across = (x[..., 1:] - x[..., :-1]).square().mean(dim=(1, 2, 3))
    down = (x[..., 1:, :] - x[..., :-1, :]).square().mean(dim=(1, 2, 3))
    return (across + down) / 2


def has_ms_ssim(height: int, width: int) -> bool:
    """Whether images of this size have an MS-SSIM: both sides at least 161 pixels."""
    return min(height, width) >= MS_SSIM_MIN_SIDE


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, (B,), five scales, data range 1."""
    return library_ms_ssim(x_hat, x, data_range=1.0, size_average=False)


def sums_dtype(device: torch.device) -> torch.dtype:
    """The type in which sums over a data set are kept: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_by_class(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Sums of `values` over the elements of each class, image by image.

    Args:
        values: (B, ...).
        classes: the same shape; numbers of `num_classes` and above are left out.

    Returns:
        (B, num_classes) in the type of `sums_dtype`, without a host synchronisation.
    """
    batch_size, bins = classes.shape[0], num_classes + 1
    first = torch.arange(batch_size, device=classes.device).mul_(bins)
    cell = classes.long().clamp(max=num_classes).view(batch_size, -1) + first[:, None]
    sums = torch.zeros(batch_size * bins, dtype=sums_dtype(cell.device), device=cell.device)
    sums.index_add_(0, cell.flatten(), values.to(sums.dtype).flatten())
    return sums.view(batch_size, bins)[:, :num_classes]


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Elements by true class (rows) and predicted class (columns), image by image.

    Args:
        predicted: class numbers below `num_classes`, (B, ...).
        target: the same shape; numbers of `num_classes` and above are ignored.

    Returns:
        (B, num_classes, num_classes) in the type of `sums_dtype`.
    """
    cell = target.long() * num_classes + predicted
    cell = torch.where(target < num_classes, cell, num_classes**2)
    ones = torch.ones((), device=cell.device).expand(cell.shape)
    return sum_by_class(ones, cell, num_classes**2).view(-1, num_classes, num_classes)


def boundary(classes: Tensor, num_classes: int) -> Tensor:
    """The classes near their contours; `num_classes` everywhere else.

    Near is what an erosion by a square takes away whose half side is BOUNDARY_WIDTH of the image's
    diagonal, at least a pixel. The image's edge is a contour. This is the G_d of Cheng et al. 2021
    ("Boundary IoU", section 4.1, and their code), of all classes at once.

    Args:
        classes: (B, H, W) uint8; numbers of `num_classes` and above are unknown, stay as they
            are, and make no contour.
    """
    width = max(1, round(BOUNDARY_WIDTH * math.hypot(*classes.shape[1:])))
    known = classes < num_classes
    # Shifted by one, so that 0 and 255 are free for what is unknown, and for the edge.
    shifted = classes + 1
    lowest = _window(torch.where(known, shifted, 255), width, torch.minimum, edge=0)
    highest = _window(torch.where(known, shifted, 0), width, torch.maximum, edge=255)
    inside = (lowest == shifted) & (highest == shifted)
    return torch.where(known & inside, num_classes, classes)


def _window(
    x: Tensor, width: int, join: Callable[[Tensor, Tensor], Tensor], *, edge: int
) -> Tensor:
    """`join` over the square of 2 width + 1 pixels around each, with `edge` outside; (B, H, W).

    By doubling, as minima and maxima allow: 2 log2(2 width + 1) passes, exact on any device.
    """
    size = 2 * width + 1
    x = F.pad(x, (width,) * 4, value=edge)
    for dim in (1, 2):
        have = 1
        while have < size:
            step = min(have, size - have)
            length = x.shape[dim] - step
            x = join(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            have += step
    return x


def mean_iou(confusion: Tensor, num_classes: int | None = None) -> float | None:
    """Mean intersection over union of the classes that occur in target or prediction.

    Args:
        num_classes: only the first so many count; the others are other than them, and no more.
    """
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    hits, union = hits[:num_classes], union[:num_classes]
    occurs = union > 0
    if not occurs.any():
        return None
    return (hits[occurs] / union[occurs]).mean().item()
