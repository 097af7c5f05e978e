"""What an iteration trains: the network, and where there is one the discriminator after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import Latent, VectorQuantizer, gaussian_sample
from imgtool.models.autoencoder.discriminator import adaptive_ratio, hinge
from imgtool.models.autoencoder.equivariance import IGNORED, Transform
from imgtool.models.autoencoder.losses import code_counts, perplexity
from imgtool.models.base import Batch, StepResult, Update
from imgtool.nn.blocks import frozen
from imgtool.nn.global_batch import sum_over_ranks
from imgtool.nn.images import pad_to_multiple, to_pm1

if TYPE_CHECKING:
    from imgtool.models.autoencoder.task import AutoencoderTask

COMPARING = ("mse_pm1", "l1_pm1", "gradient", "lpips", "seg")  # losses that tau changes


class Seen(NamedTuple):
    """What losses compare: originals on [-1, 1], what the heads say of them, and targets."""

    x: Tensor
    outputs: dict[str, Tensor]
    batch: Batch


class AutoencoderUpdate(Update):
    """Reconstruct a batch of crops and take one step on the weighted losses.

    In a step whose pair is transformed (`loss.eq`), the losses that compare are logged as eq_X.
    """

    def __init__(self, task: AutoencoderTask) -> None:
        super().__init__()
        self.network, self.criterion = task.network, task.criterion
        self._outside = [task]  # with the discriminator, which this update does not train

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, with `gan` and `gan_ratio` once the discriminator counts."""
        task, criterion = self._outside[0], self.criterion
        x = to_pm1(batch["image"])
        tau = task.transform(x)
        latent = self.network.encode(x, batch["noise"])
        seen = task.compared(x, latent.z, batch, tau)
        terms = criterion.terms(seen.x, latent, seen.outputs, seen.batch)
        means = {name: of_images.mean() for name, of_images in terms.items()}
        loss, losses = criterion.total(means), dict(means)
        if task.judgement_counts:
            judged = self._judge(seen, means)
            losses |= judged
            weight = task.experiment.loss.gan
            loss = loss + weight * judged["gan_ratio"] * judged["gan"]
        if tau is not None:
            losses = {f"eq_{n}" if n in COMPARING else n: value for n, value in losses.items()}
        return {**losses, **self._of_latent(latent, means), "loss": loss}

    def _judge(self, seen: Seen, means: dict[str, Tensor]) -> dict[str, Tensor]:
        task, x_hat = self._outside[0], seen.outputs["rgb"]
        discriminator = task.discriminator
        assert discriminator is not None
        with frozen(discriminator):
            judgement = -discriminator(x_hat).mean()
        ratio = torch.ones_like(judgement)
        if task.experiment.loss.gan_weighing == "adaptive":
            weights = self.criterion.weights
            of_rgb = [weights[n] * means[n] for n in task.experiment.loss.of_rgb if n in weights]
            ratio = adaptive_ratio(torch.stack(of_rgb).sum(), judgement, x_hat)
        return {"gan": judgement, "gan_ratio": ratio}

    def _of_latent(self, latent: Latent, means: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        if "kld" in means:
            found["kld_weighted"] = self.criterion.weights["kld"] * means["kld"].detach()
        quantizer = self.network.bottleneck
        if isinstance(quantizer, VectorQuantizer) and latent.indices is not None:
            used = code_counts(latent.indices, quantizer.codebook_size)
            found["perplexity"] = perplexity(sum_over_ranks(used))
        return found

    def after_step(self, result: StepResult) -> None:
        self.network.bottleneck.after_step(result)


class DiscriminatorUpdate(Update):
    """One step of the discriminator, on the network's batch and what it makes of it now.

    The pair is transformed as in the network's step of this iteration. The codebook (vq) learns
    nothing of it; kl samples anew.
    """

    name = "disc"
    fresh_batch = False

    def __init__(self, task: AutoencoderTask) -> None:
        super().__init__()
        self.discriminator = task.discriminator
        self._outside = [task]  # with the network, which this update does not train

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`disc`, and the mean logits of originals and reconstructions."""
        task = self._outside[0]
        assert self.discriminator is not None
        with torch.no_grad():
            x = to_pm1(batch["image"])
            latent = task.network.encode(x)
            z = latent.z
            if latent.mu is not None and latent.logvar is not None:
                normal = batch["noise"].normal(latent.mu, "kl")
                z = gaussian_sample(latent.mu, latent.logvar, normal)
            seen = task.compared(x, z, batch, task.transform(x), ("rgb",))
        both = torch.cat([seen.x, seen.outputs["rgb"]])
        real, fake = self.discriminator(both).chunk(2)
        loss = hinge(real, fake)
        return {
            "disc": loss,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
            "loss": loss,
        }


def transformed(x: Tensor, batch: Batch, tau: Transform, unit: int) -> tuple[Tensor, Batch]:
    """Originals, padded as `encode` pads them, and their targets after `tau`."""
    bottom, right = (-side % unit for side in x.shape[-2:])
    moved = tau(pad_to_multiple(x, unit))
    if "mask" not in batch:
        return moved, batch
    mask = F.pad(batch["mask"], (0, right, 0, bottom), value=IGNORED)
    return moved, {**batch, "mask": tau.of_mask(mask)}
