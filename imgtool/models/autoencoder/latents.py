"""What a latent space is like: its statistics, and how images change along it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.diffusability import Diffusability
from imgtool.models.autoencoder.interpolation import interpolate
from imgtool.models.autoencoder.measures import ACTIVE_VARIANCE
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.spectrum_picture import draw
from imgtool.models.base import Batch, Study
from imgtool.nn.images import to_pm1


@dataclass
class _Sums:
    """Sums a channel, over images and positions, in float64."""

    num_positions: int = 0
    first: Tensor | None = None
    second: Tensor | None = None
    variance: Tensor | None = None
    kld: Tensor | None = None
    image_means: list[Tensor] = field(default_factory=list)

    def add(self, mean: Tensor, logvar: Tensor | None) -> None:
        """One image's latent (C, h, w), and the log variance of a variational one."""
        flat = mean.double().flatten(1)
        self.num_positions += flat.shape[1]
        self.first = _plus(self.first, flat.sum(1))
        self.second = _plus(self.second, flat.square().sum(1))
        self.image_means.append(flat.mean(1))
        if logvar is not None:
            wide = logvar.double().flatten(1)
            kld = -0.5 * (1 + wide - flat.square() - wide.exp())
            self.variance = _plus(self.variance, wide.exp().sum(1))
            self.kld = _plus(self.kld, kld.sum(1))


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more.cpu() if total is None else total + more.cpu()


def study(
    network: Autoencoder, batches: Iterable[Batch], pairs: Iterable[Batch], *, num_images: int
) -> Study | None:
    """The document `latents`, the picture `spectrum` and strips `interpolation_00`, ….

    Statistics are of the first `num_images` validation images; images are interpolated between
    the deterministic latents (the means of a variational one).

    The document:

    num_images, num_pairs, latent_shape    what was looked at; (C, h, w) of the last image
    mean, std                    of all elements; of the means of a variational latent
    std_sampled                  of samples of it: the variance of the means plus the mean variance,
                                 exactly; None unless variational
    channel_mean, channel_std, channel_std_sampled    a channel, over images and positions
    kld_per_channel              nats an element, KL(q(z|x) || N(0, 1)) as in Kingma & Welling
                                 2014, appendix B; None unless variational
    active_units, active_share   channels whose variance exceeds 0.01 (Burda et al. 2016,
                                 section 4.3), and their part of all
    path_length, midpoint_energy, end_energy, each with X_se    see `interpolation`
    spectrum_slope, high_frequency_share, spectrum_kl, flow_floor, equivariance_error and more,
                                 each with X_se    see `diffusability`
    pca                          an image's mean latent on the first two principal axes, [x, y]

    Args:
        network: in eval mode; called under no_grad.
        pairs: batches of two images of different scenes, of equal size.
        num_images: at most so many.

    Returns:
        None where there is no image to look at.
    """
    sums, shape, ease = _Sums(), None, Diffusability(network)
    for x, latent, scenes in _latents(network, batches, num_images):
        means = latent.z if latent.mu is None else latent.mu
        for index, mean in enumerate(means):
            sums.add(mean, None if latent.logvar is None else latent.logvar[index])
        ease.add(x, latent, scenes)
        shape = list(means.shape[1:])
    if sums.first is None or sums.second is None or shape is None:
        return None
    between, spectra = interpolate(network, pairs), ease.document()
    document = {
        "num_images": len(sums.image_means),
        "latent_shape": shape,
        **_statistics(sums, sums.first, sums.second),
        **({} if between is None else between.document()),
        **spectra,
        "pca": _principal(torch.stack(sums.image_means)),
    }
    strips = [] if between is None else between.strips
    pictures = {f"interpolation_{n:02d}": strip for n, strip in enumerate(strips)}
    if spectra["spectrum_power"] is not None:
        pictures["spectrum"] = draw(spectra)
    return Study({"latents": document}, pictures)


def _latents(
    network: Autoencoder, batches: Iterable[Batch], num_images: int
) -> Iterable[tuple[Tensor, Latent, list[int]]]:
    """Images on [-1, 1], their latents, and the number of each one's scene."""
    seen = 0
    for batch in batches:
        valid, images = batch.get("valid"), batch["image"]
        scenes = batch.get("scene", torch.arange(seen, seen + len(images)))
        if valid is not None:
            images, scenes = images[valid], scenes.to(valid.device)[valid]
        images = images[: num_images - seen]
        if not len(images):
            return
        x = to_pm1(images)
        yield x, network.encode(x), scenes[: len(images)].tolist()
        seen += len(images)


def _statistics(sums: _Sums, first: Tensor, second: Tensor) -> dict[str, Any]:
    count = sums.num_positions
    mean = first / count
    variance = (second / count - mean.square()).clamp_(min=0)
    whole_mean = float(mean.mean())
    whole_variance = float((second / count).mean()) - whole_mean**2
    active = int((variance > ACTIVE_VARIANCE).sum())
    inner = None if sums.variance is None else sums.variance / count  # of the posteriors
    return {
        "mean": whole_mean,
        "std": max(0.0, whole_variance) ** 0.5,
        "std_sampled": None
        if inner is None
        else (max(0.0, whole_variance) + float(inner.mean())) ** 0.5,
        "channel_mean": mean.tolist(),
        "channel_std": variance.sqrt().tolist(),
        "channel_std_sampled": None if inner is None else (variance + inner).sqrt().tolist(),
        "kld_per_channel": None if sums.kld is None else (sums.kld / count).tolist(),
        "active_units": active,
        "active_share": active / len(variance),
    }


def _principal(means: Tensor) -> list[list[float]] | None:
    """(N, C) on the first two principal axes; None for fewer than three images or two channels."""
    if len(means) < 3 or means.shape[1] < 2:
        return None
    means = means.cpu()
    centred = means - means.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    largest = axes.abs().argmax(1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()  # the sign of an axis is arbitrary
    return [[round(float(v), 6) for v in row] for row in centred @ axes.T]
