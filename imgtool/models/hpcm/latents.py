"""What each scale of a codec's latents holds: power by frequency, bits, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from imgtool.models.base import Batch, Study
from imgtool.models.hpcm.entropy import quantise
from imgtool.models.hpcm.interscale import new_at
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.partition import split
from imgtool.models.hpcm.steps import Step
from imgtool.nn.figures import COLOURS, MARKERS, Figure, logarithmic
from imgtool.nn.quality import mse, psnr
from imgtool.nn.spectra import NUM_RINGS, radial_power, ring_frequencies


def variation(z: Tensor, scale: int) -> Tensor:
    """Latents (B, M, h, w) less each image's and channel's mean over what is new at the scale.

    Zeros stay where coarser scales' latents lie: with the means left in, they would show as a
    wave of the highest frequency.
    """
    new = new_at(scale, z)
    return (z - z.sum((2, 3), keepdim=True) / new.sum((2, 3), keepdim=True)) * new


def up_to(codec: HPCM, x: Tensor, last: int) -> Tensor:
    """What is decoded of images (B, 3, H, W) on 0..1 from the scales up to `last`, clamped.

    Latents of finer scales are what the context model expects them to be, given those that are
    known; with `last` 0 all are, given z.
    """
    y, z = codec.analyse(x)
    latents = split(y, codec.context.steps)

    def code(number: int, step: Step, scales: Tensor, means: Tensor) -> Tensor:
        return quantise(latents[number - 1], means) if step.scale <= last else means

    x_hat = codec.synthesise(codec.walk(quantise(z, codec.means_hyper), code))
    return x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0, 1)


class _Quality:
    """Sums of errors and of PSNRs."""

    def __init__(self) -> None:
        self.mse = self.psnr = 0.0

    def add(self, x_hat: Tensor, x: Tensor) -> None:
        errors = mse(x_hat, x).double()
        self.mse += errors.sum().item()
        self.psnr += psnr(errors).sum().item()


class _Scale:
    """Sums of one scale."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.quality = _Quality()
        self.power = torch.zeros(NUM_RINGS, dtype=torch.float64)
        self.counts = torch.zeros(NUM_RINGS, dtype=torch.float64)
        self.bits = 0.0

    def add(self, z: Tensor, bits: Tensor) -> None:
        power, counts = radial_power(variation(z, self.number))
        self.power += power.cpu()
        self.counts += counts.cpu()
        self.bits += bits.sum().item()

    def spectrum(self) -> list[float | None]:
        """Mean power of each ring; None of a ring that no image's grid reaches."""
        pairs = zip(self.power.tolist(), self.counts.tolist(), strict=True)
        return [power / count if count else None for power, count in pairs]


def study(codec: HPCM, batches: Iterable[Batch], *, num_images: int) -> Study | None:
    """The document `latents` and the pictures `spectra` and `scales` of the first `num_images`.

    The document:

    num_images       that were looked at
    mean, std        of all latents, decoded
    frequencies      the rings' centres, cycles a latent of the scale
    scales           for s1, s2, s3, the latents that are new at each: `pixels_per_latent` (64, 32,
                     16), `power` a ring, `power_share` and `bpp_share` of all three, `bpp`; and
                     of images decoded from z and the scales up to it: `bpp_so_far`, `mse` and
                     `psnr` (dB, the mean of images) against the originals
    hyper            the same of z alone: `bpp`, `mse`, `psnr`

    Power is of the latents' variation about their channel's mean. Grids have zeros where coarser
    scales' latents lie (every fourth position of each channel), which adds faint copies of the
    spectrum, mirrored at half the Nyquist frequency.

    Args:
        codec: in eval mode; called under no_grad.

    Returns:
        None where there is no image to look at.
    """
    scales, hyper = [_Scale(number) for number in (1, 2, 3)], _Quality()
    first = second = bits_z = 0.0
    seen = num_latents = num_pixels = 0
    for batch in batches:
        valid = batch.get("valid")
        images = batch["image"] if valid is None else batch["image"][valid]
        images = images[: num_images - seen]
        if not len(images):
            break
        x = images / 255
        coded = codec(x)
        costs = coded._replace(y_hat=-coded.likelihood_y.log2()).latents
        for scale, z, cost in zip(scales, coded.latents, costs, strict=True):
            scale.add(z, cost.double())
            whole = scale.number == len(scales)
            scale.quality.add(
                coded.x_hat.clamp(0, 1) if whole else up_to(codec, x, scale.number), x
            )
        hyper.add(up_to(codec, x, 0), x)
        bits_z -= coded.likelihood_z.double().log2().sum().item()
        y_hat = coded.y_hat.double()
        first, second = first + y_hat.sum().item(), second + y_hat.square().sum().item()
        seen += len(images)
        num_latents += y_hat.numel()
        num_pixels += len(images) * images.shape[2] * images.shape[3]
    if not seen:
        return None
    mean = first / num_latents
    document: dict[str, Any] = {
        "num_images": seen,
        "mean": mean,
        "std": math.sqrt(max(0.0, second / num_latents - mean**2)),
        "frequencies": ring_frequencies(),
        "hyper": {"bpp": bits_z / num_pixels, "mse": hyper.mse / seen, "psnr": hyper.psnr / seen},
        "scales": _describe(scales, bits_z, num_pixels, seen),
    }
    pictures = {"spectra": picture(document), "scales": picture_of_scales(document)}
    return Study({"latents": document}, pictures)


def _describe(
    scales: list[_Scale], bits_z: float, num_pixels: int, num_images: int
) -> list[dict[str, Any]]:
    so_far = list(accumulate((scale.bits for scale in scales), initial=bits_z))[1:]
    all_power = sum(float(scale.power.sum()) for scale in scales) or 1.0
    all_bits = sum(scale.bits for scale in scales) or 1.0
    return [
        {
            "name": f"s{scale.number}",
            "pixels_per_latent": 128 >> scale.number,
            "power": scale.spectrum(),
            "power_share": float(scale.power.sum()) / all_power,
            "bpp": scale.bits / num_pixels,
            "bpp_share": scale.bits / all_bits,
            "bpp_so_far": bits / num_pixels,
            "mse": scale.quality.mse / num_images,
            "psnr": scale.quality.psnr / num_images,
        }
        for scale, bits in zip(scales, so_far, strict=True)
    ]


def picture(document: dict[str, Any]) -> Tensor:
    """The spectra as lines over cycles a pixel, uint8 (3, H, W)."""
    figure = Figure(7, 4.2)
    axes = figure.drawn.add_subplot()
    for scale, colour, marker in zip(document["scales"], COLOURS, MARKERS, strict=False):
        size = scale["pixels_per_latent"]
        points = [
            (frequency / size, power)
            for frequency, power in zip(document["frequencies"], scale["power"], strict=True)
            if power
        ]
        label = f"{scale['name']} (1/{size}): {scale['bpp']:.4f} bpp"
        across, up = [point[0] for point in points], [point[1] for point in points]
        axes.plot(across, up, color=colour, marker=marker, label=label)
    logarithmic(axes, "x", 2)
    logarithmic(axes, "y")
    axes.set_xlabel("frequency (cycles a pixel)")
    axes.set_ylabel("mean power of the new latents")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure.pixels()


def picture_of_scales(document: dict[str, Any]) -> Tensor:
    """Rate of each scale, and what is decoded up to it, uint8 (3, H, W) (Taming, figure 8)."""
    figure = Figure(8, 3.6)
    rates, qualities = figure.drawn.subplots(1, 2)
    parts = [{"name": "z", "bpp_so_far": document["hyper"]["bpp"], **document["hyper"]}]
    parts += document["scales"]
    names, colours = [part["name"] for part in parts], ("#999999", *COLOURS[:3])
    rates.bar(names, [part["bpp"] for part in parts], color=colours)
    rates.set_ylabel("bits a pixel")
    rates.grid(axis="y", alpha=0.3)
    across, up = [part["bpp_so_far"] for part in parts], [part["psnr"] for part in parts]
    qualities.plot(across, up, color="#666666", linewidth=1, zorder=1)
    for part, colour in zip(parts, colours, strict=True):
        label = part["name"] if part["name"] == "z" else f"up to {part['name']}"
        label = f"{label}: {part['psnr']:.2f} dB"
        qualities.scatter([part["bpp_so_far"]], [part["psnr"]], color=colour, label=label, zorder=2)
    qualities.set_xlabel("bits a pixel so far")
    qualities.set_ylabel("PSNR (dB)")
    qualities.grid(alpha=0.3)
    qualities.legend(fontsize="small", loc="lower right")
    return figure.pixels()
