"""How far an encoder is from keeping scalings and rotations: latents of changed images beside
changed latents (EQ-VAE, arXiv 2502.09509; used here as a measure alone, since as a loss it collapses
the latent).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.nn.spectral_sums import CONSTANT

SCALES = (0.25, 0.5, 0.75)
TURNS = (1, 2, 3)  # of 90 degrees


def rescaled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another size, bilinear without antialiasing, as EQ-VAE's code does it."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Change(NamedTuple):
    """Of an image and of its latent, the same."""

    image: Callable[[Tensor], Tensor]
    latent: Callable[[Tensor], Tensor]


def changes(grid: tuple[int, int], unit: int) -> Iterator[Change | None]:
    """Every scaling and rotation of latents of `grid`; None where a scale is not to be had of it.

    Args:
        unit: image pixels a latent position. Scaled sides are whole positions.
    """
    for scale in SCALES:
        height, width = (round(scale * side) for side in grid)
        if min(height, width) < 1 or height == grid[0] or width == grid[1]:
            yield None
            continue
        yield Change(
            lambda x, h=height, w=width: rescaled(x, (h * unit, w * unit)),  # type: ignore[misc]
            lambda z, h=height, w=width: rescaled(z, (h, w)),  # type: ignore[misc]
        )
    for turn in TURNS:
        turned = _turning(turn)
        yield Change(turned, turned)


def _turning(turn: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.rot90(x, turn, (2, 3)).contiguous()


class _Terms(NamedTuple):
    """Sums over positions for every change of an image, (T, C), and their number (T, 1)."""

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
        parts: list[tuple[Tensor, ...]] = []
        grid = (z.shape[-2], z.shape[-1])
        for change in changes(grid, unit):
            if change is None:
                parts.append((torch.zeros(len(z), z.shape[1]).double(),) * 3 + (_column(z, 0),))
                continue
            got, wanted = encode(change.image(x)), change.latent(z)
            sums = [
                v.sum((2, 3), dtype=torch.float32 if v.device.type == "mps" else torch.float64)
                for v in ((got - wanted).square(), got.square(), got)
            ]
            count = _column(z, got.shape[-2] * got.shape[-1])
            parts.append((*(v.double().cpu() for v in sums), count))
        stacked = [torch.stack(kind, 1) for kind in zip(*parts, strict=True)]
        self._terms += [_Terms(*(kind[row] for kind in stacked)) for row in range(len(z))]
        self._groups += groups.tolist()

    def error(self, mean: Tensor, variance: Tensor, weights: Tensor) -> Tensor:
        """Mean over images and changes T of |T E(x) - E(T x)|^2 / |E(T x)|^2, 0-d.

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


def _column(z: Tensor, value: float) -> Tensor:
    return torch.full((len(z), 1), float(value), dtype=torch.float64)
