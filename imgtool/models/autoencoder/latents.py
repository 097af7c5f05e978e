"""What a latent space is like: its statistics, and how smoothly images change along it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imgtool.models.autoencoder.measures import ACTIVE_VARIANCE
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.base import Batch, Study
from imgtool.nn.images import to_pm1, to_uint8, to_unit

NUM_STEPS = 8  # between the two ends of an interpolation
NUM_STRIPS = 3


@dataclass
class _Sums:
    """Sums a channel, over images and positions, in float64."""

    num_positions: int = 0
    first: Tensor | None = None
    second: Tensor | None = None
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
            self.kld = _plus(self.kld, kld.sum(1))


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more.cpu() if total is None else total + more.cpu()


def study(
    network: Autoencoder, batches: Iterable[Batch], *, num_images: int, num_pairs: int
) -> Study | None:
    """The document `latents` and strips `interpolation_00`, … of a trained network.

    Everything is of the deterministic latent (the mean of a variational one), of the first
    `num_images` validation images; pairs are consecutive images of equal size.

    The document:

    num_images, num_pairs, latent_shape    what was looked at; (C, h, w) of the last image
    mean, std                    of all elements
    channel_mean, channel_std    a channel, over images and positions
    kld_per_channel              nats an element, KL(q(z|x) || N(0, 1)) as in Kingma & Welling
                                 2014, appendix B; None unless variational
    active_units, active_share   channels whose variance exceeds 0.01 (Burda et al. 2016,
                                 section 4.3), and their part of all
    interpolation_smoothness     in (0, 1], higher is smoother: of an image decoded at NUM_STEPS
                                 equal steps between two latents, the distance of its ends over
                                 the length of its path, a mean over pairs. Distances are RMS
                                 on [0, 1]. A straight cross-fade has 1. The length of decoded
                                 paths follows Karras et al. 2020 (section 3, path length), here
                                 of pixels instead of perceptual features.
    path_length                  mean length of the path, RMS on [0, 1]
    max_step_ratio               longest step over the mean step, a mean over pairs; 1 is even
    pca                          an image's mean latent on the first two principal axes, [x, y]

    Args:
        network: in eval mode; called under no_grad.
        num_images: at most so many.
        num_pairs: at most so many.

    Returns:
        None where there is no image to look at.
    """
    sums, pairs, waiting, shape = _Sums(), _Pairs(num_pairs), None, None
    for image, latent in _latents(network, batches, num_images):
        mean, logvar = latent
        sums.add(mean, logvar)
        shape = list(mean.shape)
        if waiting is not None and waiting[0].shape == image.shape:
            pairs.add(network, waiting[1], mean, image.shape[-2:])
            waiting = None
        else:
            waiting = (image, mean)
    if sums.first is None or sums.second is None or shape is None:
        return None
    document = {
        "num_images": len(sums.image_means),
        "num_pairs": len(pairs.smoothness),
        "num_steps": NUM_STEPS,
        "latent_shape": shape,
        **_statistics(sums, sums.first, sums.second),
        **pairs.means(),
        "pca": _principal(torch.stack(sums.image_means)),
    }
    pictures = {f"interpolation_{n:02d}": strip for n, strip in enumerate(pairs.strips)}
    return Study({"latents": document}, pictures)


def _latents(
    network: Autoencoder, batches: Iterable[Batch], num_images: int
) -> Iterable[tuple[Tensor, tuple[Tensor, Tensor | None]]]:
    """One image after another, with its mean and log variance."""
    seen = 0
    for batch in batches:
        valid = batch.get("valid")
        images = batch["image"] if valid is None else batch["image"][valid]
        images = images[: num_images - seen]
        if not len(images):
            return
        latent = network.encode(to_pm1(images))
        means = latent.z if latent.mu is None else latent.mu
        for index, image in enumerate(images):
            logvar = None if latent.logvar is None else latent.logvar[index]
            yield image, (means[index], logvar)
        seen += len(images)


class _Pairs:
    """Interpolations between latents."""

    def __init__(self, num_pairs: int) -> None:
        self.num_pairs = num_pairs
        self.smoothness: list[float] = []
        self.lengths: list[float] = []
        self.ratios: list[float] = []
        self.strips: list[Tensor] = []

    def add(self, network: Autoencoder, first: Tensor, last: Tensor, size: Any) -> None:
        if len(self.smoothness) >= self.num_pairs or "rgb" not in network.decoder.heads:
            return
        weights = torch.linspace(0, 1, NUM_STEPS + 1, device=first.device).view(-1, 1, 1, 1)
        between = first.float().lerp(last.float(), weights)
        frames = torch.cat([network.decode(z[None], ("rgb",), size)["rgb"] for z in between])
        if len(self.strips) < NUM_STRIPS:
            self.strips.append(torch.cat(list(to_uint8(frames)), dim=2).cpu())
        measured = path_measures(to_unit(frames))
        if measured is not None:
            smoothness, length, ratio = measured
            self.smoothness.append(smoothness)
            self.lengths.append(length)
            self.ratios.append(ratio)

    def means(self) -> dict[str, float | None]:
        def mean(values: list[float]) -> float | None:
            return sum(values) / len(values) if values else None

        return {
            "interpolation_smoothness": mean(self.smoothness),
            "path_length": mean(self.lengths),
            "max_step_ratio": mean(self.ratios),
        }


def path_measures(frames: Tensor) -> tuple[float, float, float] | None:
    """Smoothness (end-to-end over path), path length, longest over mean step; RMS distances.

    Args:
        frames: (K, 3, H, W) on [0, 1], K of at least 2.

    Returns:
        None where nothing changes along the path.
    """
    frames = frames.double().flatten(1)
    steps = (frames[1:] - frames[:-1]).square().mean(1).sqrt()
    length = float(steps.sum())
    if length == 0:
        return None
    end_to_end = float((frames[-1] - frames[0]).square().mean().sqrt())
    return end_to_end / length, length, float(steps.max() / steps.mean())


def _statistics(sums: _Sums, first: Tensor, second: Tensor) -> dict[str, Any]:
    count = sums.num_positions
    mean = first / count
    variance = (second / count - mean.square()).clamp_(min=0)
    whole_mean = float(mean.mean())
    whole_variance = float((second / count).mean()) - whole_mean**2
    active = int((variance > ACTIVE_VARIANCE).sum())
    return {
        "mean": whole_mean,
        "std": max(0.0, whole_variance) ** 0.5,
        "channel_mean": mean.tolist(),
        "channel_std": variance.sqrt().tolist(),
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
