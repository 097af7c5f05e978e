"""From the encoder's features to the latent: plain, variational (kl) or vector-quantised (vq)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Noise, StepResult

LOGVAR_RANGE = (-30.0, 20.0)  # variances of 1e-13 to 5e8: exp stays finite, also in the gradient
REVIVE_BELOW = 0.1  # a code used less than this part of the average use is dead
DISTANCES_AT_ONCE = 2**24  # 64 MiB of float32


@dataclass(frozen=True, kw_only=True)
class Latent:
    """An encoded batch; every tensor is (B, C, h, w) but `indices`.

    Attributes:
        z: what the decoder reads.
        mu, logvar: mean and log variance (kl).
        encoded: the encoder's word before quantisation (vq).
        indices: numbers of the code vectors, (B, h, w) int64 (vq).
    """

    z: Tensor
    mu: Tensor | None = None
    logvar: Tensor | None = None
    encoded: Tensor | None = None
    indices: Tensor | None = None


class Bottleneck(nn.Module):
    """Features (B, F, h, w) to a Latent. With `noise` it trains, without it is deterministic."""

    def after_step(self, result: StepResult) -> None:
        """What is learnt without a gradient."""


class Plain(Bottleneck):
    """A 1x1 convolution to the latent's channels."""

    def __init__(self, features: int, model: Model) -> None:
        super().__init__()
        self.to_latent = nn.Conv2d(features, model.latent_channels, 1)

    def forward(self, features: Tensor, noise: Noise | None) -> Latent:
        return Latent(z=self.to_latent(features))


def gaussian_sample(mu: Tensor, logvar: Tensor, normal: Tensor) -> Tensor:
    """mu + sigma * normal: a sample of the posterior (Kingma & Welling 2014, section 2.4)."""
    return mu + torch.exp(0.5 * logvar) * normal


class Gaussian(Bottleneck):
    """Two 1x1 convolutions, mu and logvar; z is a sample in training and mu otherwise."""

    def __init__(self, features: int, model: Model) -> None:
        super().__init__()
        self.to_mu = nn.Conv2d(features, model.latent_channels, 1)
        self.to_logvar = nn.Conv2d(features, model.latent_channels, 1)

    def forward(self, features: Tensor, noise: Noise | None) -> Latent:
        mu = self.to_mu(features).float()
        logvar = self.to_logvar(features).float().clamp(*LOGVAR_RANGE)
        z = mu if noise is None else gaussian_sample(mu, logvar, noise.normal(mu, "kl"))
        return Latent(z=z, mu=mu, logvar=logvar)


class VectorQuantizer(Bottleneck):
    """The nearest of `codebook_size` vectors at every position (van den Oord et al. 2017).

    The codebook follows averages of what is assigned to each code (appendix A.1), taken after the
    optimizer's step over the whole global batch. A code whose average use has sunk below
    REVIVE_BELOW of the mean use starts again at a latent of this batch; the first batch of all
    starts every code like that and passes through unquantised.

    Everything that a resumed run needs is in the buffers. What forward collects for after_step is
    no buffer, because DDP would overwrite it with the first process's.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(self, features: int, model: Model) -> None:
        super().__init__()
        self.to_latent = nn.Conv2d(features, model.latent_channels, 1)
        self.decay = model.codebook_decay
        shape = (model.codebook_size, model.latent_channels)
        self.register_buffer("codebook", torch.zeros(shape))
        self.register_buffer("ema_count", torch.zeros(shape[0], 1))
        self.register_buffer("ema_sum", torch.zeros(shape))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._collected: Tensor | None = None

    @property
    def codebook_size(self) -> int:
        return self.codebook.shape[0]

    def forward(self, features: Tensor, noise: Noise | None) -> Latent:
        encoded = self.to_latent(features).float()
        position_last = encoded.detach().permute(0, 2, 3, 1)
        vectors = position_last.reshape(-1, position_last.shape[-1])
        indices = self.nearest(vectors)
        quantised = torch.where(self.initialised, self.codebook[indices], vectors)
        quantised = quantised.view(position_last.shape).permute(0, 3, 1, 2)
        if noise is not None and not vectors.is_meta:  # meta: a dry run
            self._collect(vectors, indices, noise)
        # The value of `quantised`, exactly, with the gradient of `encoded`: straight through.
        z = quantised + (encoded - encoded.detach())
        return Latent(z=z, encoded=encoded, indices=indices.view(position_last.shape[:3]))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """The number of the nearest code of each vector, (N, C) -> (N,); float32 under autocast."""
        kind = vectors.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            half_norms = 0.5 * self.codebook.square().sum(1)
            rows = max(1, DISTANCES_AT_ONCE // self.codebook_size)
            found = [
                # |v - e|^2 / 2 less |v|^2 / 2, which is the same for every code
                torch.addmm(half_norms, part, self.codebook.T, alpha=-1).argmin(1)
                for part in vectors.split(rows)
            ]
        return torch.cat(found)

    @torch.no_grad()
    def _collect(self, vectors: Tensor, indices: Tensor, noise: Noise) -> None:
        """Add up per code: uses, sum of the vectors, and a vector to start again at."""
        num_vectors, channels = vectors.shape
        counted = torch.cat([vectors.new_ones(num_vectors, 1), vectors], dim=1)
        sums = counted.new_zeros(self.codebook_size, 1 + channels).index_add_(0, indices, counted)
        collected = torch.cat([sums, self._candidates(vectors, noise)], dim=1)
        self._collected = collected if self._collected is None else self._collected + collected

    def _candidates(self, vectors: Tensor, noise: Noise) -> Tensor:
        """Of one vector a code, drawn from the global batch, those that lie in this part; else 0.

        The draw is stratified: code k gets a position in the k-th of equally long stretches, so
        that no position is drawn twice while there are enough. The sum over all parts of the
        global batch is the same however it is cut.
        """
        num_vectors, size = vectors.shape[0], self.codebook_size
        drawn = torch.rand(
            size,
            generator=noise.generator("vq", vectors.device),
            device=vectors.device,
        )
        stretch = torch.arange(size, device=vectors.device) + drawn
        whole = num_vectors * noise.parts
        position = (stretch * (whole / size)).long().clamp_(max=whole - 1)
        position -= num_vectors * noise.part
        here = (position >= 0) & (position < num_vectors)
        return torch.where(here[:, None], vectors[position.clamp(0, num_vectors - 1)], 0.0)

    @torch.no_grad()
    def after_step(self, result: StepResult) -> None:
        if self._collected is None:
            return
        collected = result.all_reduce(self._collected)
        self._collected = None
        count, total, candidate = collected.tensor_split((1, 1 + self.codebook.shape[1]), dim=1)
        mean_use = count.sum() / self.codebook_size
        new_count = self.decay * self.ema_count + (1 - self.decay) * count
        new_sum = self.decay * self.ema_sum + (1 - self.decay) * total
        dead = (new_count < REVIVE_BELOW * mean_use) | ~self.initialised
        new_count = torch.where(dead, mean_use, new_count)
        new_sum = torch.where(dead, mean_use * candidate, new_sum)
        for buffer, new in (
            (self.ema_count, new_count),
            (self.ema_sum, new_sum),
            (self.codebook, new_sum / new_count),
        ):
            buffer.copy_(torch.where(result.applied, new, buffer))
        self.initialised.logical_or_(result.applied)


def make_bottleneck(features: int, model: Model) -> Bottleneck:
    """The bottleneck that `model.bottleneck` names, fed with `features` channels."""
    kinds = {"none": Plain, "kl": Gaussian, "vq": VectorQuantizer}
    return kinds[model.bottleneck](features, model)
