"""The losses, one value an image each, so that training and validation share one definition.

A mean over images is the same however a global batch is cut into parts; a mean over labelled
pixels would not be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.schema import Loss, Model
from imgtool.models.base import Batch
from imgtool.nn.lpips import Lpips, lpips_on
from imgtool.nn.quality import gradient_energy

IGNORED = 255  # mask value of a pixel without a class


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, mean over the latent's elements; (B, C, h, w) -> (B,).

    Kingma & Welling 2014, appendix B, divided by the number of elements: the same weight is
    therefore a weaker regulariser of a larger latent.
    """
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).mean(dim=(1, 2, 3))


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy in nats of each element; 0 where there is no such class.

    A choice by comparison: nll_loss, and a gather's gradient, have no deterministic way on CUDA.

    Args:
        logits: (B, K, ...), no softmax before it.
        classes: (B, ...) numbers.
    """
    number = torch.arange(logits.shape[1], dtype=classes.dtype, device=classes.device)
    chosen = classes.unsqueeze(1) == number.view(-1, *[1] * (classes.ndim - 1))
    return -torch.where(chosen, F.log_softmax(logits, dim=1), 0).sum(dim=1)


def segmentation_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over each image's labelled pixels.

    Args:
        logits: (B, K, H, W), no softmax before it.
        mask: (B, H, W) class numbers; 255 is ignored.

    Returns:
        (B,); 0 for an image without a labelled pixel, which still counts as an image.
    """
    pixels = cross_entropy(logits, mask)
    return pixels.sum(dim=(1, 2)) / (mask != IGNORED).sum(dim=(1, 2)).clamp(min=1)


class Criterion:
    """The experiment's weighted losses.

    Args:
        model, loss: the experiment's sections.

    Attributes:
        weights: weight by name of every loss that is computed, all above 0: `mse_pm1`, `l1_pm1`
            and `gradient` (on [-1, 1]), `lpips`, `seg`, `cls`, `kld`, `commitment`.
        heads: the heads that some loss trains. The others are neither trained nor validated.
    """

    def __init__(self, model: Model, loss: Loss) -> None:
        of_head = {
            "rgb": loss.of_rgb,
            "segmentation": {"seg": loss.seg},
            "classification": {"cls": loss.cls},
        }
        of_bottleneck = {
            "none": {},
            "kl": {"kld": loss.kld},
            "vq": {"commitment": loss.commitment},
        }
        self.heads = tuple(head for head in model.heads if any(of_head[head].values()))
        offered = [of_head[head] for head in self.heads] + [of_bottleneck[model.bottleneck]]
        self.weights = {name: w for part in offered for name, w in part.items() if w > 0}
        self._lpips: dict[torch.device, Lpips] = {}  # no module of the task's, and not trained

    def terms(
        self,
        x: Tensor,
        latent: Latent,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Each unweighted loss by name, (B,) float32, also under autocast.

        Args:
            x: the originals (B, 3, H, W) on [-1, 1].
            latent: what they were encoded as.
            outputs: what the heads say, at the size of x.
            batch: the targets `mask` and `label`, where a loss needs them.
            names: of these losses; all by default.
        """
        wanted = self.weights if names is None else names
        return {name: self._term(name, x, latent, outputs, batch) for name in wanted}

    def _term(
        self, name: str, x: Tensor, latent: Latent, outputs: Mapping[str, Tensor], batch: Batch
    ) -> Tensor:
        match name:
            case "mse_pm1":
                errors = F.mse_loss(outputs["rgb"].float(), x, reduction="none")  # in one pass
                return errors.mean(dim=(1, 2, 3))
            case "l1_pm1":
                return (outputs["rgb"].float() - x).abs().mean(dim=(1, 2, 3))
            case "gradient":
                return gradient_energy(outputs["rgb"].float() - x)
            case "lpips":
                if x.device not in self._lpips:
                    self._lpips[x.device] = lpips_on(x.device)
                distance: Tensor = self._lpips[x.device](x, outputs["rgb"])
                return distance
            case "seg":
                return segmentation_cross_entropy(outputs["segmentation"].float(), batch["mask"])
            case "cls":
                return cross_entropy(outputs["classification"].float(), batch["label"])
            case "kld":
                assert latent.mu is not None
                assert latent.logvar is not None
                return kl_divergence(latent.mu, latent.logvar)
            case "commitment":
                assert latent.encoded is not None
                return (latent.encoded - latent.z.detach()).square().mean(dim=(1, 2, 3))
        raise KeyError(name)

    def total(self, means: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the means over images."""
        return reduce(add, (weight * means[name] for name, weight in self.weights.items()))


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in int64 `indices` of any shape, (codebook_size,) float32."""
    ones = torch.ones((), device=indices.device).expand(indices.numel())
    counts = torch.zeros(codebook_size, device=indices.device)
    return counts.index_add_(0, indices.flatten(), ones)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the codes' use: 1 when one code does all, codebook_size when all do alike."""
    return torch.exp(torch.special.entr(counts / counts.sum()).sum())
