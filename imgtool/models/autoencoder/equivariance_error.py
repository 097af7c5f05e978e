"""How far an encoder is from keeping scalings and rotations, of standardised latents.

|tau E(x) - E(tau x)|^2 / |E(tau x)|^2 (EQ-VAE, Kouzelis et al. 2025), a measure alone: as a loss
it collapses the latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imgtool.models.autoencoder.equivariance import MEASURED
from imgtool.nn.quality import sums_dtype
from imgtool.nn.spectral_sums import CONSTANT

SIDE = 4  # latents are cut to multiples of it: a quarter of them is whole


class _Terms(NamedTuple):
    """Sums over positions for every tau of an image, (T, C), and their number (T, 1)."""

    difference: Tensor
    square: Tensor
    first: Tensor
    positions: Tensor


class Equivariance:
    """Adds images up."""

    def __init__(self) -> None:
        self._terms: list[_Terms] = []
        self._groups: list[int] = []

    def __len__(self) -> int:
        return len(self._terms)

    def add(
        self,
        encode: Callable[[Tensor], Tensor],
        x: Tensor,
        z: Tensor,
        unit: int,
        groups: Tensor,
    ) -> None:
        """Look at images.

        Args:
            encode: images as latents.
            x: images (B, 3, unit h, unit w).
            z: their latents (B, C, h, w).
            groups: (B,), see `spectral_sums.Groups`.
        """
        grid = [side // SIDE * SIDE or side for side in z.shape[-2:]]
        if grid != list(z.shape[-2:]):
            x = x[..., : grid[0] * unit, : grid[1] * unit].contiguous()
            z = encode(x)
        parts: list[tuple[Tensor, ...]] = []
        for tau in MEASURED:
            if any((side * tau.scale).denominator > 1 for side in grid):
                nothing = torch.zeros(len(z), z.shape[1], dtype=torch.float64)
                parts.append((nothing, nothing, nothing, nothing[:, :1]))
                continue
            got, wanted = encode(tau(x)), tau(z)
            maps = ((got - wanted).square(), got.square(), got)
            sums = [v.sum((2, 3), dtype=sums_dtype(v.device)).double().cpu() for v in maps]
            count = got.shape[-2] * got.shape[-1]
            parts.append((*sums, torch.full((len(z), 1), count, dtype=torch.float64)))
        stacked = [torch.stack(kind, 1) for kind in zip(*parts, strict=True)]
        self._terms += [_Terms(*(kind[row] for kind in stacked)) for row in range(len(z))]
        self._groups += groups.tolist()

    def error(self, mean: Tensor, variance: Tensor, weights: Tensor) -> Tensor:
        """Mean over images and three scalings and three rotations of each, 0-d.

        Args:
            mean, variance: of the channels (C,), by which latents are standardised; a NaN leaves a
                channel out.
            weights: of the groups.

        Returns:
            NaN where there is nothing to divide by.
        """
        if not self._terms:
            return torch.tensor(float("nan")).double()
        terms = _Terms(*(torch.stack(kind) for kind in zip(*self._terms, strict=True)))
        alive = ~variance.isnan()
        mean, scale = mean[alive], variance[alive]
        difference, square, first = (kind[..., alive] for kind in terms[:3])
        moved = square - 2 * mean * first + mean.square() * terms.positions
        above, below = (difference / scale).sum(-1), (moved / scale).sum(-1)
        count = terms.positions[..., 0] * len(scale)
        valid = below > CONSTANT * count  # and never where there are no positions
        of_image = weights[torch.tensor(self._groups)][:, None] * valid
        ratio = torch.where(valid, above / below, 0)
        return (ratio * of_image).sum() / of_image.sum()
