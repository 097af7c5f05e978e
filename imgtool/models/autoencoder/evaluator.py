"""Validation on whole images."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from imgtool.config.schema import Experiment
from imgtool.models.autoencoder import measures
from imgtool.models.autoencoder.losses import Criterion
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.base import Batch, DataInfo, Evaluator
from imgtool.nn.quality import sums_dtype


class AutoencoderEvaluator(Evaluator):
    """Metrics of the heads that are trained, and of the latent.

    Every value is a mean over images, unless it says otherwise:

    loss            the weighted sum of the losses; for the log, no measure of quality
    lpips           LPIPS of VGG16, where it is a loss or `loss.measure_lpips` asks for it
    mse_pm1, l1_pm1, gradient, seg, cls, kld, commitment
                    the unweighted losses with a weight above 0
    mse, psnr       on [0, 1], not rounded to 8 bits; psnr of each image (dB, at most 100) averaged
    highpass_psnr   the same of gradients: differences of neighbouring pixels, across and down
    ms_ssim         over the images of at least 161 pixels on the shorter side; None without any
    mse_CLASS       over all pixels of a mask class; None where it does not occur
    seg_miou, seg_accuracy    over all labelled pixels
    seg_boundary_miou         over those near a contour (boundary IoU, Cheng et al. 2021)
    cls_accuracy
    kld, kld_nats, kld_weighted    nats an element, nats an image, and kld times its weight
    mse_sampled     mse of a sample of the latent; all other values are of its mean
    active_units    latent channels whose mean varies over the data by more than 0.01 (variance)
    perplexity      of the codes over the whole set

    A latent's values are over the padded image where the size is no multiple of the unit.
    """

    def __init__(
        self, network: Autoencoder, criterion: Criterion, experiment: Experiment, data: DataInfo
    ) -> None:
        self.network, self.heads = network, criterion.heads
        self.device = next(network.parameters()).device
        self.measures = _measures(criterion, experiment, data, self.device)
        shapes: dict[str, tuple[int, ...]] = {"images": ()}
        for measure in self.measures:
            shapes |= measure.shapes
        self.totals = {
            name: torch.zeros(shape, dtype=sums_dtype(self.device), device=self.device)
            for name, shape in shapes.items()
        }

    def update(self, batch: Batch) -> None:
        x, latent, outputs = self.network.reconstruct(batch["image"], self.heads)
        decode = partial(self.network.decode, heads=self.heads, size=x.shape[-2:])
        seen = measures.Seen(x=x, latent=latent, outputs=outputs, batch=batch, decode=decode)
        valid = batch.get("valid")
        if valid is None:
            valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self._add({"images": torch.ones_like(valid)}, valid)
        for measure in self.measures:
            self._add(measure.of_images(seen), valid)

    def _add(self, of_images: dict[str, Tensor], valid: Tensor) -> None:
        for name, values in of_images.items():
            total = self.totals[name]
            rows = valid.view(-1, *[1] * total.ndim)
            total += torch.where(rows, values.to(total.dtype), 0).sum(0)

    def compute(self) -> dict[str, float | None]:
        sums = {name: total.cpu() for name, total in self.totals.items()}
        num_images = sums["images"].item()
        found: dict[str, float | None] = {}
        if num_images:
            for measure in self.measures:
                found |= measure.metrics(sums, num_images)
        return found


def _measures(
    criterion: Criterion, experiment: Experiment, data: DataInfo, device: torch.device
) -> list[measures.Measure]:
    model, heads = experiment.model, criterion.heads
    chosen: list[measures.Measure] = [measures.Losses(criterion, device)]
    if "rgb" in heads:
        chosen.append(measures.Reconstruction())
    if experiment.loss.measure_lpips and "lpips" not in criterion.weights:
        chosen.append(measures.Perceptual(device))
    if "rgb" in heads and "mask" in data.targets:
        chosen.append(measures.ReconstructionByClass(data.mask_names))
    if "segmentation" in heads:
        chosen.append(measures.Segmentation(len(data.mask_names)))
    if "classification" in heads:
        chosen.append(measures.Classification())
    if model.bottleneck == "kl":
        seed = experiment.train.seed
        chosen.append(measures.Posterior(model.latent_channels, rgb="rgb" in heads, seed=seed))
    if model.bottleneck == "vq":
        chosen.append(measures.Codes(model.codebook_size))
    return chosen
