"""Rate and distortion: lambda * 255^2 * MSE + bpp, or lambda * (1 - MS-SSIM) + bpp."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.models.hpcm.entropy import lower_bound
from imgtool.models.hpcm.schema import MS_SSIM_MIN_SIDE, Loss
from imgtool.nn.blocks import without_autocast
from imgtool.nn.quality import mse

Value = TypeVar("Value", float, Tensor)

WINDOW, SIGMA = MS_SSIM_MIN_SIDE, 1.5
LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
_C1, _C2 = 0.01**2, 0.03**2
_FLOOR = 1e-4


def bits(likelihood: Tensor) -> Tensor:
    """Information of each image's latents, (B,), from likelihoods (B, ...) above 0."""
    return -likelihood.float().log2().flatten(1).sum(1)


def rate_distortion(loss: Loss, distortion: Value, bpp: Value) -> Value:
    """The loss, of values or of tensors of any shape.

    Args:
        distortion: MSE on [0, 1], or 1 - MS-SSIM.
        bpp: bits a pixel.
    """
    # Lambda belongs to errors on 0..255, as in CompressAI.
    return loss.lmbda * (255**2 if loss.distortion == "mse" else 1) * distortion + bpp


def distortion(loss: Loss, x_hat: Tensor, x: Tensor) -> Tensor:
    """What the codec is trained for, of each image, (B,).

    Args:
        x_hat, x: (B, 3, H, W) on [0, 1]; x_hat may go beyond.
    """
    if loss.distortion == "mse":
        return mse(x_hat, x)
    with without_autocast(x):
        return 1 - ms_ssim(x_hat, x)


def num_levels(height: int, width: int) -> int:
    """Scales of MS-SSIM that an image has room for, five at most: each wants over 10 pixels.

    0 where the image is smaller than the window.
    """
    levels = 0
    while levels < len(LEVEL_WEIGHTS) and min(height, width) > (WINDOW - 1) * 2**levels:
        levels += 1
    return levels


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, (B,), of images of any size above 10.

    Images of 161 pixels and more get the five scales of Wang et al. 2003; smaller ones get as
    many as fit, with their weights scaled to a sum of 1. Unlike the measure in
    `imgtool.nn.quality`, its gradient stays finite where a similarity is not above 0, as that
    of an untrained network's grey images is.
    """
    levels = num_levels(*x.shape[-2:])
    if levels == 0:
        raise ValueError(f"an image of {x.shape[-1]}x{x.shape[-2]} pixels has no MS-SSIM")
    whole = sum(LEVEL_WEIGHTS[:levels])
    x_hat, x = x_hat.float(), x.float()
    product = torch.ones_like(x[:, :, 0, 0])
    for level in range(levels):
        if level:
            padding = [side % 2 for side in x.shape[-2:]]
            x_hat, x = (F.avg_pool2d(image, 2, padding=padding) for image in (x_hat, x))
        similarity, luminance = _similarity(x_hat, x)
        if level == levels - 1:
            similarity = similarity * luminance
        # Below the floor too, what raises a similarity gets through.
        factor = lower_bound(similarity.mean((2, 3)), _FLOOR)
        product = product * factor.pow(LEVEL_WEIGHTS[level] / whole)
    return product.mean(1)


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast-structure and luminance maps of one scale, each (B, 3, h, w)."""
    mean_a, mean_b, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    structure = (2 * (ab - product) + _C2) / (aa + bb - squares + _C2)
    return structure, (2 * product + _C1) / (squares + _C1)


def _blur(x: Tensor) -> Tensor:
    """A Gaussian window, without padding."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-at.square() / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, WINDOW)
    across = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=x.shape[1])
