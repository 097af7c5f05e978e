"""Phase 2: keep the latents of neighbouring scales apart ("Taming", section 3.3, Eq. 6).

    - delta * distance(z_coarse, f(z_fine)),  f = 1x1 convolution of the Haar bands of z_fine

The scales are the latents that are new at each of them: s1; s2 without s1; s3 without s2. Taking
whole grids, as Eq. 6 does for a hierarchy of separate latents, would compare values with
themselves, because here a finer grid holds the coarser one's.

f minimises the distance, on detached latents; the encoder is given the same distance with the
opposite sign, and f as it stands. Were both to maximise it, f's weights would grow without end.
The distance is clipped, because the latents could as well: l2 and l1 have no upper bound. The
limit is a number and no part of the latents' variance, which the encoder could raise with them.

Distances are those of the global batch: clipping, and a variance, make them more than a mean over
images, which would be the same however the batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from imgtool.models.hpcm.partition import insert
from imgtool.models.hpcm.schema import Loss
from imgtool.nn.blocks import without_autocast
from imgtool.nn.global_batch import mean_over_ranks

_EPS = 1e-6


def haar(x: Tensor) -> Tensor:
    """One level of the orthonormal Haar transform: (B, C, 2h, 2w) to (B, 4C, h, w).

    The bands LL, LH (horizontal detail), HL (vertical), HH one after another; the sum of squares
    stays the same.
    """
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, bottom, top_change, bottom_change = a + b, c + d, a - b, c - d
    bands = (top + bottom, top_change + bottom_change, top - bottom, top_change - bottom_change)
    return torch.cat(bands, dim=1).mul(0.5)


def new_at(scale: int, like: Tensor) -> Tensor:
    """1 where a latent (B, M, h, w) is new at scale 1, 2 or 3, else 0; (1, M, h, w)."""
    ones = torch.ones_like(like[:1])
    return ones if scale == 1 else insert(torch.zeros_like(ones[..., ::2, ::2]), ones, scale)


def l2(z: Tensor, predicted: Tensor, new: Tensor) -> Tensor:
    """Mean squared distance of the new latents, 0-d."""
    return _mean((z - predicted).square(), new)


def l1(z: Tensor, predicted: Tensor, new: Tensor) -> Tensor:
    """Mean absolute distance of the new latents, 0-d."""
    return _mean((z - predicted).abs(), new)


def cosine(z: Tensor, predicted: Tensor, new: Tensor) -> Tensor:
    """1 - cosine of the channel vectors, a mean over positions; 0..2."""
    apart = 1 - F.cosine_similarity(z, predicted * new, dim=1, eps=_EPS)
    return mean_over_ranks(apart.sum(), apart.numel())


def unpredictability(z: Tensor, predicted: Tensor, new: Tensor) -> Tensor:
    """1 - R^2: squared error over the channels' variance; 1 and above is no prediction at all."""
    count = len(z) * new.sum((0, 2, 3), keepdim=True)
    mean = mean_over_ranks((z * new).sum((0, 2, 3), keepdim=True), count)
    return l2(z, predicted, new) / (_mean((z - mean).square(), new) + _EPS)


def _mean(values: Tensor, new: Tensor) -> Tensor:
    return mean_over_ranks((values * new).sum(), len(values) * new.sum())


_DISTANCES = {"l2": l2, "l1": l1, "cosine": cosine, "bounded": unpredictability}


class InterScale(nn.Module):
    """The predictors of scale 1 from 2 and of 2 from 3, and the regulariser that uses them.

    Args:
        M: channels of y.
        loss: the config's section.
    """

    def __init__(self, M: int, loss: Loss) -> None:
        super().__init__()
        self.predictors = nn.ModuleList(nn.Conv2d(4 * M, M, 1) for _ in range(2))
        self.distance = _DISTANCES[loss.phase2_mode]
        self.delta = loss.delta
        self.limit = {"cosine": 2.0, "bounded": 1.0}.get(loss.phase2_mode, loss.phase2_limit)

    def forward(self, latents: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The regulariser, the predictors' error and what was clipped, means over both pairs, 0-d.

        Args:
            latents: s1 (B, M, h, w), s2 (B, M, 2h, 2w), s3 (B, M, 4h, 4w): what is new at each
                scale, zeros elsewhere.

        Returns:
            regulariser, from -delta * limit to 0, whose gradient reaches the latents alone;
            the error to be minimised, whose gradient reaches the predictors alone; and the share
            of pairs that are at their limit, on which the regulariser has no effect.
        """
        with without_autocast(latents[0]):
            wide = [latent.float() for latent in latents]
            apart, errors = [], []
            for scale, predictor in enumerate(self.predictors, start=1):
                z, finer = wide[scale - 1], haar(wide[scale])
                new = new_at(scale, z)
                error = self.distance(z.detach(), predictor(finer.detach()), new)
                fixed = {name: p.detach() for name, p in predictor.named_parameters()}
                frozen = functional_call(predictor, fixed, finer)
                apart.append(self.distance(z, frozen, new))
                errors.append(error)
            distances = torch.stack(apart)
            clipped = (distances.detach() >= self.limit).float().mean()
            regulariser = -self.delta * distances.clamp(max=self.limit).mean()
            return regulariser, torch.stack(errors).mean(), clipped
