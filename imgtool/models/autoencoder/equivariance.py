"""Scaling and rotation of latents and pictures alike: of the loss `eq`, and of `equivariance_error`.

EQ-VAE (Kouzelis et al. 2025): where D(tau(E(x))) is trained to be tau(x), the latent becomes
smoother and is easier to generate. The explicit |tau(E(x)) - E(tau(x))|^2 as a loss collapses the
latent (their section 3.2); it is a measure alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd

import torch
from torch import Tensor

from imgtool.nn.blocks import without_autocast

IGNORED = 255
SMALLEST_SCALE = Fraction(1, 4)  # as published


@dataclass(frozen=True)
class Transform:
    """tau: an isotropic scaling down, then a rotation.

    Attributes:
        scale: of every side, such that sides stay whole numbers.
        quarters: quarter turns, counter-clockwise.
    """

    scale: Fraction = Fraction(1)
    quarters: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures or latents (B, C, H, W), float32: bilinear, no antialiasing, as published.

        By products with two matrices: the gradient of torch's own resize has no deterministic way
        on CUDA.
        """
        is_nhwc = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        with without_autocast(x):
            out = x.float()
            if self.scale != 1:
                down, across = (self._weights(side, x.device) for side in x.shape[-2:])
                out = down @ out @ across.T
        order = torch.channels_last if is_nhwc else torch.contiguous_format
        return torch.rot90(out, self.quarters, (-2, -1)).contiguous(memory_format=order)

    def of_mask(self, mask: Tensor) -> Tensor:
        """Class numbers (B, H, W), by the nearest pixel."""
        if self.scale != 1:
            for dim in (1, 2):
                places = self._places(mask.shape[dim], mask.device) + 0.5
                mask = mask.index_select(dim, places.floor().long())
        return torch.rot90(mask, self.quarters, (-2, -1)).contiguous()

    def _places(self, side: int, device: torch.device) -> Tensor:
        """Where the new elements' centres lie, in elements of the old ones from the first's."""
        count = side * self.scale
        assert count.denominator == 1
        return (torch.arange(int(count), device=device) + 0.5) / float(self.scale) - 0.5

    def _weights(self, side: int, device: torch.device) -> Tensor:
        places = self._places(side, device).clamp(0, side - 1)
        return (1 - (places[:, None] - torch.arange(side, device=device)).abs()).clamp(min=0)


def scales(size: Sequence[int], smallest: int = 1) -> list[Fraction]:
    """The scales below 1 at which a latent of `size` (h, w) has whole sides.

    From a quarter on, and such that no side is below `smallest`: k/h where h = w.
    """
    steps = gcd(*size)
    least = max(SMALLEST_SCALE, Fraction(smallest, min(size)))
    return [Fraction(k, steps) for k in range(max(1, ceil(least * steps)), steps)]


def draw_transform(
    weight: float, size: Sequence[int], smallest: int, generator: torch.Generator
) -> Transform | None:
    """What a step does to its latents (h, w) and pictures; None leaves them as they are.

    The rule of EQ-VAE's section 3.3: a step has either the plain pair or the transformed one, and
    the weight is the odds, so that the mean over steps is that of plain + weight x transformed,
    over 1 + weight. Weight 1 is the published p = 0.5. Scales are those of their code, k/h from a
    quarter on; a quarter of the transformations only scale, the others also turn.
    """
    turned, scaled, place = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    if place >= weight / (1 + weight):
        return None
    choices = scales(size, smallest)
    if choices:
        return Transform(choices[int(scaled * len(choices))], int(4 * turned))
    return Transform(quarters=1 + int(3 * turned))


# The measure's transformations (EQ-VAE, as they evaluate): three scales and three turns.
MEASURED = (
    *(Transform(scale=Fraction(k, 4)) for k in (1, 2, 3)),
    *(Transform(quarters=k) for k in (1, 2, 3)),
)
