"""From the encoder's features to the latent: plain, variational (kl) or vector-quantised (vq).

Architecture plain projects features with 1x1 convolutions; kl with a 3x3 one and, where it has
`quant_convs`, a 1x1 one behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Noise, StepResult
from imgtool.nn.codebook import Codebook

LOGVAR_RANGE = (-30.0, 20.0)  # variances of 1e-13 to 5e8: exp stays finite, also in the gradient


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


class Projection(nn.Module):
    """Features (B, F, h, w) to (B, channels, h, w), as architecture kl does it."""

    def __init__(self, features: int, channels: int, model: Model) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(features, channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(channels, channels, 1) if model.quant_convs else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.quant_conv(self.conv_out(features))
        return projected


def projection(features: int, channels: int, model: Model) -> nn.Module:
    """What maps features to `channels` of the latent."""
    if model.architecture == "kl":
        return Projection(features, channels, model)
    return nn.Conv2d(features, channels, 1)


class Bottleneck(nn.Module):
    """Features (B, F, h, w) to a Latent. With `noise` it trains, without it is deterministic.

    Attributes:
        is_frozen: whether it stays as it is; whoever sets it freezes the parameters, too.
    """

    is_frozen = False

    def after_step(self, result: StepResult) -> None:
        """What is learnt without a gradient."""


class Plain(Bottleneck):
    """The features, projected to the latent's channels."""

    def __init__(self, features: int, model: Model) -> None:
        super().__init__()
        self.to_latent = projection(features, model.latent_channels, model)

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
        mu, logvar = self.moments(features)
        logvar = logvar.clamp(*LOGVAR_RANGE)
        z = mu if noise is None else gaussian_sample(mu, logvar, noise.normal(mu, "kl"))
        return Latent(z=z, mu=mu, logvar=logvar)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, float32, (B, C, h, w) each."""
        return self.to_mu(features).float(), self.to_logvar(features).float()


class GaussianOfMoments(Gaussian):
    """As Gaussian; mean and log variance are the two halves of one projection."""

    def __init__(self, features: int, model: Model) -> None:
        Bottleneck.__init__(self)
        self.to_moments = projection(features, 2 * model.latent_channels, model)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.to_moments(features).float().chunk(2, dim=1)
        return mu, logvar


class VectorQuantizer(Codebook, Bottleneck):
    """The nearest of `codebook_size` vectors at every position, after a projection."""

    def __init__(self, features: int, model: Model) -> None:
        super().__init__(model.codebook_size, model.latent_channels, model.codebook_decay)
        self.to_latent = projection(features, model.latent_channels, model)

    def forward(self, features: Tensor, noise: Noise | None) -> Latent:
        encoded = self.to_latent(features).float()
        z, (indices,) = self.quantise([encoded], None if self.is_frozen else noise)
        return Latent(z=z[0], encoded=encoded, indices=indices)

    def after_step(self, result: StepResult) -> None:
        if not self.is_frozen:
            self.learn(result.applied, result.all_reduce)


def make_bottleneck(features: int, model: Model) -> Bottleneck:
    """The bottleneck that `model.bottleneck` names, fed with `features` channels."""
    gaussian = GaussianOfMoments if model.architecture == "kl" else Gaussian
    kinds = {"none": Plain, "kl": gaussian, "vq": VectorQuantizer}
    return kinds[model.bottleneck](features, model)
