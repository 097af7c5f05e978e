"""The HPCM codec: transforms, hyperprior, context model and rates.

x -> g_a -> y -> h_a -> z -> (round) -> z_hat -> h_s -> context -> scales, means of y
             \\-> (step by step: round y - means) -> y_hat -> g_s -> x_hat
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgtool.models.hpcm.context import Code, Context
from imgtool.models.hpcm.entropy import (
    MIN_LIKELIHOOD,
    MIN_SCALE,
    full_precision,
    likelihood,
    lower_bound,
    quantise,
)
from imgtool.models.hpcm.partition import coarser, insert, merge, split
from imgtool.models.hpcm.steps import Step
from imgtool.models.hpcm.transforms import make_g_a, make_g_s, make_h_a, make_h_s
from imgtool.models.hpcm.variants import Variant
from imgtool.nn.images import pad_to_multiple

UNIT = 64  # pixels that an element of z stands for in each direction

# (like, purpose) -> U(-1/2, 1/2) of like's size
UniformNoise = Callable[[Tensor, str], Tensor]


class Forward(NamedTuple):
    """What comes of a batch of images; h, w are the padded image's sides / 64.

    Attributes:
        x_hat: (B, 3, H, W), not clamped.
        likelihood_y: (B, M, 4h, 4w) float32, 1e-9..1.
        likelihood_z: (B, N, h, w), the same.
        y_hat: (B, M, 4h, 4w) float32.
    """

    x_hat: Tensor
    likelihood_y: Tensor
    likelihood_z: Tensor
    y_hat: Tensor

    @property
    def latents(self) -> tuple[Tensor, Tensor, Tensor]:
        """y_hat that is new at scales 1, 2 and 3: (B, M) of (h, w), (2h, 2w) and (4h, 4w).

        Zeros where a coarser scale's values lie.
        """
        s2 = coarser(self.y_hat, 3)
        s1 = coarser(s2, 2)
        s2_new = insert(torch.zeros_like(s1), s2, 2)
        return s1, s2_new, insert(torch.zeros_like(s2), self.y_hat, 3)


class HPCM(nn.Module):
    """The whole codec.

    Args:
        variant: one of `VARIANTS`.
        legacy_s2_hyper: reproduce the published code's misplaced hyperprior at scale 2.
    """

    def __init__(self, variant: Variant, *, legacy_s2_hyper: bool = False) -> None:
        super().__init__()
        self.variant = variant
        self.g_a, self.g_s = make_g_a(variant), make_g_s(variant)
        self.h_a, self.h_s = make_h_a(variant), make_h_s(variant)
        self.context = Context(variant, legacy_s2_hyper=legacy_s2_hyper)
        self.means_hyper = nn.Parameter(torch.zeros(1, variant.N, 1, 1))
        self.scales_hyper = nn.Parameter(torch.ones(1, variant.N, 1, 1))

    def forward(self, x: Tensor, noise: UniformNoise | None = None) -> Forward:
        """Code and decode images, and say how likely the symbols are.

        Args:
            x: (B, 3, H, W) on 0..1, H and W at least 1.
            noise: in training; the rate is then that of values with uniform noise instead of
                rounded ones, while the decoder sees rounded ones all the same.
        """
        y, z = self.analyse(x)
        residual_z = z - self.means_hyper
        z_hat = quantise(z, self.means_hyper)
        y_hat, scales, means = self._code_all(y, z_hat)
        residual_y = y - means
        if noise is None:
            residual_y, residual_z = residual_y.round(), residual_z.round()
        else:
            residual_y = residual_y + noise(residual_y, "y")
            residual_z = residual_z + noise(residual_z, "z")
        p_y = likelihood(residual_y, scales)
        p_z = likelihood(residual_z, lower_bound(self.scales_hyper, MIN_SCALE))
        return Forward(
            self.synthesise(y_hat)[:, :, : x.shape[2], : x.shape[3]],
            lower_bound(p_y, MIN_LIKELIHOOD),
            lower_bound(p_z, MIN_LIKELIHOOD),
            y_hat,
        )

    def _code_all(self, y: Tensor, z_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y_hat, scales and means (B, M, 4h, 4w) of y, rounded step by step."""
        steps = self.context.steps
        latents = split(y, steps)
        parameters = []

        def code(number: int, step: Step, scales: Tensor, means: Tensor) -> Tensor:
            parameters.append(torch.cat([scales, means], dim=1))
            return quantise(latents[number - 1], means)

        y_hat = self.walk(z_hat, code)
        scales, means = merge(parameters, steps, stacked=2).chunk(2, dim=1)
        return y_hat, scales, means

    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) on 0..1, padded to 64, to y (B, M, 4h, 4w) and z (B, N, h, w).

        Both are float32, not rounded.
        """
        y = full_precision(self.g_a(pad_to_multiple(x, UNIT)))
        return y, full_precision(self.h_a(y))

    def hyper_parameters(self, z_hat: Tensor) -> Tensor:
        """z_hat (B, N, h, w) to the hyperprior's scales and means (B, 2 M, 4h, 4w)."""
        hyper: Tensor = self.h_s(z_hat)
        return hyper

    def walk(self, z_hat: Tensor, code: Code) -> Tensor:
        """Run the coding steps: the one path of training, encoding and decoding.

        Args:
            z_hat: (B, N, h, w).
            code: called as code(number, step, scales, means) at each step, in order. Scales (at
                least 0.12) and means are float32 and packed, (B, step.channels(M), rows, columns)
                of the step's grid; it returns the latents' decoded values, packed likewise
                (`partition.split` packs).

        Returns:
            y_hat (B, M, 4h, 4w) float32.
        """
        # Fresh strides: a decoder's z_hat must take the same kernels as the encoder's did.
        z_hat = z_hat.clone(memory_format=torch.channels_last)
        y_hat: Tensor = self.context(self.hyper_parameters(z_hat), code)
        return y_hat

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, 4h, 4w) to x_hat (B, 3, 64h, 64w), neither clamped nor cropped."""
        return full_precision(self.g_s(y_hat))
