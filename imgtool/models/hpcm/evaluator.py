"""Validation of a codec on whole images."""

from __future__ import annotations

import torch

from imgtool.models.base import Batch, Evaluator
from imgtool.models.hpcm.losses import bits, ms_ssim, num_levels, rate_distortion
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.schema import Loss
from imgtool.nn.quality import mse, psnr, sums_dtype


class HpcmEvaluator(Evaluator):
    """Means over images, of what a decoder would show: clamped to 0..1, not rounded to 8 bits.

    rd_loss    the loss without any regulariser, against the original; decides what is best
    mse, psnr  on [0, 1]; psnr of each image (dB, at most 100) averaged
    bpp        bits a pixel, estimated from rounded latents; bpp_y and bpp_z are its parts
    ms_ssim    where the codec is trained for it, over images of at least 11 pixels a side

    Real streams and 8-bit images are for `imgtool eval rd`.
    """

    def __init__(self, codec: HPCM, loss: Loss) -> None:
        self.codec, self.loss = codec, loss
        device = codec.means_hyper.device
        names = ["images", "mse", "psnr", "bpp_y", "bpp_z"]
        if loss.distortion == "ms-ssim":
            names += ["ms_ssim", "ms_ssim_images"]
        zero = torch.zeros((), dtype=sums_dtype(device), device=device)
        self.totals = {name: zero.clone() for name in names}

    def update(self, batch: Batch) -> None:
        x = batch["image"] / 255
        coded = self.codec(x)
        x_hat = coded.x_hat.clamp(0, 1)
        num_pixels = x.shape[2] * x.shape[3]
        errors = mse(x_hat, x)
        of_images = {
            "images": torch.ones_like(errors),
            "mse": errors,
            "psnr": psnr(errors),
            "bpp_y": bits(coded.likelihood_y) / num_pixels,
            "bpp_z": bits(coded.likelihood_z) / num_pixels,
        }
        if "ms_ssim" in self.totals and num_levels(*x.shape[2:]):
            of_images["ms_ssim"] = ms_ssim(x_hat, x)
            of_images["ms_ssim_images"] = of_images["images"]
        self.add(of_images, batch)

    def compute(self) -> dict[str, float | None]:
        sums = {name: total.item() for name, total in self.totals.items()}
        count, with_ms_ssim = sums.pop("images"), sums.pop("ms_ssim_images", 0.0)
        if not count:
            return {}
        similarity = sums.pop("ms_ssim", None)
        found: dict[str, float | None] = {name: total / count for name, total in sums.items()}
        bpp = (sums["bpp_y"] + sums["bpp_z"]) / count
        lost: float | None = sums["mse"] / count
        if similarity is not None:
            found["ms_ssim"] = similarity / with_ms_ssim if with_ms_ssim else None
            lost = None if found["ms_ssim"] is None else 1 - found["ms_ssim"]
        found["bpp"] = bpp
        found["rd_loss"] = None if lost is None else rate_distortion(self.loss, lost, bpp)
        return found
