"""What validation measures. Each measure says what to add up for an image, and what that means.

Validation sums over images on the device; only the finished sums are read back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import Latent, gaussian_sample
from imgtool.models.autoencoder.losses import IGNORED, Criterion, kl_divergence, perplexity
from imgtool.models.base import Batch, Noise
from imgtool.nn import quality
from imgtool.nn.images import to_unit
from imgtool.nn.lpips import find_lpips

ACTIVE_VARIANCE = 0.01  # of mu over the data (Burda, Grosse & Salakhutdinov 2016, section 5)

Metrics = dict[str, float | None]
Decode = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One batch of validation.

    Attributes:
        x: originals (B, 3, H, W) on [-1, 1].
        latent: theirs; of the padded images where the network had to pad.
        outputs: what the heads say, pictures at the size of x.
        batch: the batch itself, for its targets.
        decode: z to outputs, as `outputs` were made of `latent.z`.
    """

    x: Tensor
    latent: Latent
    outputs: Mapping[str, Tensor]
    batch: Batch
    decode: Decode


class Measure(ABC):
    """Attributes: shapes: name -> shape of every sum."""

    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        """What each image adds to each sum, (B, *shape)."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        """Metrics from the sums, which lie on the CPU."""


class Losses(Measure):
    """The unweighted losses, their weighted sum `loss`, and `kld_weighted`.

    Without the weights of LPIPS, which no evaluation asks for, `lpips` and `loss` are None.
    """

    def __init__(self, criterion: Criterion, device: torch.device) -> None:
        self.criterion = criterion
        lost = "lpips" in criterion.weights and find_lpips(device) is None
        self.names = [name for name in criterion.weights if not (lost and name == "lpips")]
        self.shapes = dict.fromkeys(self.names, ())

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        return self.criterion.terms(seen.x, seen.latent, seen.outputs, seen.batch, self.names)

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        means = {name: sums[name] / num_images for name in self.names}
        found: Metrics = {"loss": None, **dict.fromkeys(self.criterion.weights)}
        found |= {name: mean.item() for name, mean in means.items()}
        if len(means) == len(self.criterion.weights):
            found["loss"] = self.criterion.total(means).item()
        if "kld" in means:
            found["kld_weighted"] = self.criterion.weights["kld"] * means["kld"].item()
        return found


class Perceptual(Measure):
    """`lpips`, where it is no loss; None without its weights."""

    def __init__(self, device: torch.device) -> None:
        self.lpips = find_lpips(device)
        self.shapes = {} if self.lpips is None else {"lpips": ()}

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        return {} if self.lpips is None else {"lpips": self.lpips(seen.x, seen.outputs["rgb"])}

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        return {"lpips": sums["lpips"].item() / num_images if self.shapes else None}


class Reconstruction(Measure):
    """`mse` and `psnr` on [0, 1], `mse_pm1`, `highpass_psnr` and `ms_ssim`."""

    def __init__(self) -> None:
        names = ("mse", "psnr", "highpass_psnr", "ms_ssim", "ms_ssim_images")
        self.shapes = dict.fromkeys(names, ())

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        x, x_hat = to_unit(seen.x), to_unit(seen.outputs["rgb"])
        mse = quality.mse(x_hat, x)
        found = {
            "mse": mse,
            "psnr": quality.psnr(mse),
            "highpass_psnr": quality.psnr(quality.gradient_energy(x_hat - x)),
        }
        if quality.has_ms_ssim(*x.shape[-2:]):
            found["ms_ssim"] = quality.ms_ssim(x_hat, x)
            found["ms_ssim_images"] = torch.ones_like(mse)
        return found

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        mse = sums["mse"].item() / num_images
        return {
            "mse": mse,
            "mse_pm1": 4 * mse,
            "psnr": sums["psnr"].item() / num_images,
            "highpass_psnr": sums["highpass_psnr"].item() / num_images,
            "ms_ssim": _ratio(sums["ms_ssim"], sums["ms_ssim_images"]),
        }


class ReconstructionByClass(Measure):
    """`mse_CLASS` on [0, 1], over all pixels of each mask class: plain mse is mostly background."""

    def __init__(self, mask_names: tuple[str, ...]) -> None:
        self.names = mask_names
        self.shapes = dict.fromkeys(("class_error", "class_pixels"), (len(mask_names),))

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        error = (to_unit(seen.outputs["rgb"]) - to_unit(seen.x)).square().mean(1)
        mask, classes = seen.batch["mask"], len(self.names)
        return {
            "class_error": quality.sum_by_class(error, mask, classes),
            "class_pixels": quality.sum_by_class(torch.ones_like(error), mask, classes),
        }

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        by_class = zip(self.names, sums["class_error"], sums["class_pixels"], strict=True)
        return {f"mse_{name}": _ratio(error, pixels) for name, error, pixels in by_class}


class Segmentation(Measure):
    """`seg_miou` and `seg_accuracy` over all labelled pixels, `seg_boundary_miou` near contours.

    The last is the boundary IoU of Cheng et al. 2021, from sums over all images, a mean over
    classes; neither map has a contour towards pixels without a label.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.shapes = {
            "confusion": (num_classes, num_classes),
            "boundary": (num_classes + 1, num_classes + 1),
        }

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        mask, classes = seen.batch["mask"], self.num_classes
        predicted = seen.outputs["segmentation"].argmax(1)
        confusion = quality.confusion_matrix(predicted, mask, classes)
        known = torch.where(mask < classes, predicted.to(mask.dtype), IGNORED)
        near = quality.boundary(known, classes)
        near = torch.where(mask < classes, near, classes)  # of no matter, but a number in range
        boundary = quality.confusion_matrix(near, quality.boundary(mask, classes), classes + 1)
        return {"confusion": confusion, "boundary": boundary}

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        confusion = sums["confusion"]
        return {
            "seg_miou": quality.mean_iou(confusion),
            "seg_boundary_miou": quality.mean_iou(sums["boundary"], self.num_classes),
            "seg_accuracy": _ratio(confusion.diagonal().sum(), confusion.sum()),
        }


class Classification(Measure):
    """`cls_accuracy`."""

    def __init__(self) -> None:
        self.shapes = {"correct": ()}

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        return {"correct": seen.outputs["classification"].argmax(1) == seen.batch["label"]}

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        return {"cls_accuracy": sums["correct"].item() / num_images}


class Posterior(Measure):
    """`kld`, `kld_nats`, `active_units` and `mse_sampled` of a variational latent.

    Args:
        latent_channels: channels of mu.
        rgb: whether there is a reconstruction to measure a sample by.
        seed: of the sample's noise, which is the same for every image.
    """

    def __init__(self, latent_channels: int, *, rgb: bool, seed: int) -> None:
        self.rgb, self.noise = rgb, Noise(seed, 0)
        self.shapes = dict.fromkeys(("posterior_kld", "kld_nats", "positions"), ())
        self.shapes |= dict.fromkeys(("mu", "mu_squared"), (latent_channels,))
        if rgb:
            self.shapes["mse_sampled"] = ()

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        mu, logvar = seen.latent.mu, seen.latent.logvar
        assert mu is not None
        assert logvar is not None
        kld = kl_divergence(mu, logvar)
        exact = mu.to(quality.sums_dtype(mu.device))
        found = {
            "posterior_kld": kld,
            "kld_nats": kld * mu[0].numel(),
            "positions": torch.full_like(kld, mu[0, 0].numel()),
            "mu": exact.sum(dim=(2, 3)),
            "mu_squared": exact.square().sum(dim=(2, 3)),
        }
        if self.rgb:
            z = gaussian_sample(mu, logvar, self.noise.normal(mu[:1], "kl validation"))
            x_hat = to_unit(seen.decode(z)["rgb"])
            found["mse_sampled"] = quality.mse(x_hat, to_unit(seen.x))
        return found

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        mean = sums["mu"] / sums["positions"]
        variance = sums["mu_squared"] / sums["positions"] - mean.square()
        found: Metrics = {
            "kld": sums["posterior_kld"].item() / num_images,
            "kld_nats": sums["kld_nats"].item() / num_images,
            "active_units": float((variance > ACTIVE_VARIANCE).sum()),
        }
        if self.rgb:
            found["mse_sampled"] = sums["mse_sampled"].item() / num_images
        return found


class Codes(Measure):
    """`perplexity` of the codes over the whole validation set."""

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.shapes = {"codes": (codebook_size,)}

    def of_images(self, seen: Seen) -> dict[str, Tensor]:
        indices = seen.latent.indices
        assert indices is not None
        ones = torch.ones((), device=indices.device).expand(indices.shape)
        return {"codes": quality.sum_by_class(ones, indices, self.codebook_size)}

    def metrics(self, sums: Mapping[str, Tensor], num_images: float) -> Metrics:
        return {"perplexity": perplexity(sums["codes"]).item()}


def _ratio(total: Tensor, count: Tensor) -> float | None:
    return total.item() / count.item() if count.item() else None
