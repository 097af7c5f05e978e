"""Means and deviations of latents, as a latents file has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.data.latent_contents import CHUNK_BYTES, Contents
from imgtool.data.latents import LatentsFile
from imgtool.errors import DataError


def statistics(
    arrays: Mapping[str, Any], contents: Contents
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each channel over the training images, as they are stored.

    Of samples where log variances are stored: Var(z) = Var(mean) + E[exp(logvar)]. In float64, of
    blocks of images whose sums are joined as in Chan, Golub & LeVeque 1983, equation 2.1.
    """
    rows = np.flatnonzero(contents.parts == 0)
    if not len(rows):
        raise DataError("there are no training images", hint="a lower --val-fraction")
    channels, height, width = contents.shape
    size = max(1, CHUNK_BYTES // (8 * channels * height * width))
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    variances = np.zeros(channels)
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        block = arrays["mean"][part].astype(np.float64)
        new = len(part) * height * width
        its_mean = block.mean((0, 2, 3))
        its_squares = ((block - its_mean[:, None, None]) ** 2).sum((0, 2, 3))
        offset = its_mean - mean
        squares += its_squares + offset**2 * (count * new / (count + new))
        mean += offset * (new / (count + new))
        count += new
        if contents.with_logvar:
            variances += np.exp(arrays["logvar"][part].astype(np.float64)).sum((0, 2, 3))
    deviation = np.sqrt((squares + variances) / count)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
        raise DataError("the latents' deviation is not finite", hint="take another checkpoint")
    return mean, deviation


def scalars(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> tuple[float, float]:
    """Shift and scale of all channels together, which have as many elements each."""
    shift = float(mean.mean())
    variance = float((deviation**2).mean() + ((mean - shift) ** 2).mean())
    return shift, 1 / math.sqrt(variance) if variance > 0 else 1.0


def rounding(file: LatentsFile) -> float:
    """How far float16 moves a latent, in deviations of its channel: of the worst channel, the root
    of the mean square. Half of a last place is 2^-11 of a value; 0 where all 32 bits are stored.
    """
    if file.contents.dtype == "float32":
        return 0.0
    power = file.channel_mean.astype(np.float64) ** 2 + file.channel_std.astype(np.float64) ** 2
    steps = np.maximum(np.sqrt(power) * 2.0**-11, 2.0**-25)
    return float((steps / math.sqrt(3) / file.channel_std).max())
