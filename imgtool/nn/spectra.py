"""Power by frequency: orthonormal DCT-II of whole maps and of blocks, and what generating costs.

Mode (u, v) of a map (h, w) has the radius sqrt((u/h)^2 + (v/w)^2): 1 is the Nyquist frequency
along an axis, half a cycle a position; sqrt(2) is the corner. Everything is computed in float64.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from imgtool.nn.quality import sums_dtype

NUM_RINGS = 16
BLOCK = 8  # as JPEG's
LARGEST_RADIUS = math.sqrt(2)
Times = Literal["uniform", "logit_normal"]
_NODES = 48  # of Gauss and Legendre: to 1e-8, the nearest pole being pi/2 beside an axis of 16
_FAR = 8.0  # standard deviations: 1e-15 of a normal lies beyond


@lru_cache(maxsize=16)
def dct_basis(size: int) -> Tensor:
    """The orthonormal DCT-II, (size, size) float64 on the CPU; rows are frequencies.

    Its arguments reach pi times size, where float32 has lost four digits.
    """
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None, :]
    basis = torch.cos(math.pi / (2 * size) * k * (2 * n + 1)) * math.sqrt(2 / size)
    basis[0] = math.sqrt(1 / size)
    return basis


def radius(height: int, width: int) -> Tensor:
    """Of every mode, (height, width) float64 on the CPU, from 0 to below sqrt(2)."""
    u = torch.arange(height, dtype=torch.float64)[:, None] / height
    v = torch.arange(width, dtype=torch.float64)[None, :] / width
    return torch.sqrt(u.square() + v.square())


def dct(z: Tensor) -> Tensor:
    """(..., h, w) to its coefficients, float64 where the device has it."""
    rows, columns = _bases(z)
    return rows @ z.to(rows.dtype) @ columns.T


def dct_of_noise(variance: Tensor) -> Tensor:
    """Variance of every coefficient of independent noise of variance (..., h, w)."""
    rows, columns = _bases(variance)
    return rows.square() @ variance.to(rows.dtype) @ columns.square().T


def _bases(z: Tensor) -> tuple[Tensor, Tensor]:
    kind = sums_dtype(z.device)
    rows, columns = (dct_basis(side).to(z.device, kind) for side in z.shape[-2:])
    return rows, columns


def blocks(z: Tensor, size: int = BLOCK) -> Tensor:
    """(..., h, w) as (..., blocks, size, size); rows and columns that fill no block are left out."""
    height, width = (side // size * size for side in z.shape[-2:])
    tiles = z[..., :height, :width].unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    return tiles.transpose(-3, -2).flatten(-4, -3)


def zigzag(size: int = BLOCK) -> list[int]:
    """Places of a block's coefficients in JPEG's order, along diagonals from the lowest."""
    places = [(u, v) for u in range(size) for v in range(size)]
    places.sort(key=lambda uv: (sum(uv), uv[0] if sum(uv) % 2 else uv[1]))
    return [u * size + v for u, v in places]


def ring_of(radii: Tensor) -> Tensor:
    """Which of NUM_RINGS rings of equal width, from 0 to sqrt(2), a radius lies in."""
    return (radii / LARGEST_RADIUS * NUM_RINGS).long().clamp(max=NUM_RINGS - 1)


def ring_frequencies() -> list[float]:
    """The rings' centres in cycles a position; 0.5 is the Nyquist frequency."""
    return [LARGEST_RADIUS / 2 * (ring + 0.5) / NUM_RINGS for ring in range(NUM_RINGS)]


def radial_power(z: Tensor) -> tuple[Tensor, Tensor]:
    """Power of maps by radial frequency.

    Args:
        z: (B, C, h, w).

    Returns:
        Sums over images, channels and the modes of each ring, frequency 0 left out, and how many
        values each sum has; float64 on the CPU. The transform is orthonormal: all sums together
        are the sum of z squared, where every map's mean is 0.
    """
    power = dct(z).square().sum((0, 1)).double().cpu().flatten()
    ring = ring_of(radius(*z.shape[-2:])).flatten()
    sums, counts = torch.zeros(2, NUM_RINGS, dtype=torch.float64)
    sums.index_add_(0, ring[1:], power[1:])
    counts.index_add_(0, ring[1:], torch.full_like(power[1:], z.shape[0] * z.shape[1]))
    return sums, counts


def mode_variances(z: Tensor, noise: Tensor | None = None) -> Tensor:
    """Mean square of every orthonormal DCT mode of normalised latents, for `flow_floor`.

    Args:
        z: (N, C, h, w), of mean 0 and deviation 1 a channel; tens of images at least, since the
            root of a variance known from n of them is too small by 1 / (4 n).
        noise: the posterior's variance in the same units, where latents are sampled from it.

    Returns:
        (C, h, w).
    """
    power = dct(z).square().mean(0)
    return power if noise is None else power + dct_of_noise(noise).mean(0)


def flow_floor(
    variances: Tensor, *, times: Times = "uniform", low: float = 0.0, high: float = 1.0
) -> float:
    """The least mean squared error of a rectified flow whose data are Gaussian.

    x_t = t z + (1 - t) e, target z - e, e of variance 1. Of a mode of variance l, given x_t, the
    target keeps the variance

        l + 1 - cov(z - e, x_t)^2 / var(x_t) = l / (t^2 l + (1 - t)^2).

    Its integral over t is sqrt(l) atan((t l - (1 - t)) / sqrt(l)), from 0 to 1 (pi / 2) sqrt(l).

    Args:
        variances: of orthonormal modes, any shape; the mean over them is returned.
        times: how t is distributed, uniformly or as sigmoid(n), n normal.
        low, high: t lies in this part of [0, 1].

    Raises:
        ValueError: no t lies there.
    """
    return float(mode_floors(variances, times=times, low=low, high=high).mean())


def mode_floors(
    variances: Tensor, *, times: Times = "uniform", low: float = 0.0, high: float = 1.0
) -> Tensor:
    """`flow_floor` of each mode by itself, of the same shape."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"times from {low} to {high} are no part of 0 to 1")
    variance = variances.double().clamp(min=1e-30)
    if times == "uniform":
        root = variance.sqrt()
        ends = [torch.atan((t * variance - (1 - t)) / root) for t in (low, high)]
        return root * (ends[1] - ends[0]) / (high - low)
    whole = torch.zeros_like(variance)
    share = 0.0
    for n, weight in _normal_nodes(low, high):
        far = math.exp(-n)  # (1 - t) / t
        whole.add_(variance / (variance + far**2), alpha=weight * (1 + far) ** 2)
        share += weight
    return whole / share


@lru_cache(maxsize=64)
def _normal_nodes(low: float, high: float) -> list[tuple[float, float]]:
    """Places n with sigmoid(n) between the bounds, and their weights under a normal density."""
    ends = torch.tensor([low, high], dtype=torch.float64).logit().clamp(-_FAR, _FAR).tolist()
    if ends[0] == ends[1]:
        raise ValueError(f"no logit-normal time lies between {low} and {high}")
    half, middle = (ends[1] - ends[0]) / 2, (ends[0] + ends[1]) / 2
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    n = middle + half * places
    return list(zip(n.tolist(), (weights * np.exp(-n * n / 2)).tolist(), strict=True))
