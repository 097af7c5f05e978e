"""What each scale of a codec's latents holds: power by frequency, bits, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imgtool.models.base import Batch, Study
from imgtool.models.hpcm.entropy import quantise
from imgtool.models.hpcm.interscale import new_at
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.partition import split
from imgtool.models.hpcm.steps import Step
from imgtool.nn.quality import mse, psnr

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

NUM_BINS = 12
_HIGHEST = math.sqrt(0.5)  # the corner of the spectrum, cycles a latent
# Okabe & Ito 2008: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_MARKERS = ("o", "s", "^")


def radial_power(z: Tensor) -> tuple[Tensor, Tensor]:
    """Power of latents by radial frequency.

    Args:
        z: (B, M, h, w).

    Returns:
        Sums over images, channels and the frequencies of each of NUM_BINS rings of equal width
        from 0 to sqrt(1/2) cycles a latent, frequency 0 left out, and how many values each sum
        has; float64. The transform is orthonormal: all sums together are the sum of z squared,
        where its mean is 0.
    """
    power = torch.fft.fft2(z.float(), norm="ortho").abs().double().square().sum((0, 1))
    down = torch.fft.fftfreq(z.shape[2], device=z.device)[:, None]
    across = torch.fft.fftfreq(z.shape[3], device=z.device)[None, :]
    radius = torch.sqrt(down.square() + across.square())
    ring = (radius / _HIGHEST * NUM_BINS).long().clamp(max=NUM_BINS - 1).flatten()
    sums = torch.zeros(NUM_BINS, dtype=torch.float64, device=z.device)
    counts = sums.clone()
    sums.index_add_(0, ring, power.flatten())
    each = z.shape[0] * z.shape[1]
    counts.index_add_(0, ring, torch.full_like(power.flatten(), each))
    sums[0] -= power[0, 0]
    counts[0] -= each
    return sums, counts


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
        self.power = torch.zeros(NUM_BINS, dtype=torch.float64)
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)
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
    spectrum, shifted by half the sampling rate.

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
        "frequencies": [_HIGHEST * (ring + 0.5) / NUM_BINS for ring in range(NUM_BINS)],
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for scale, colour, marker in zip(document["scales"], _COLOURS, _MARKERS, strict=True):
        size = scale["pixels_per_latent"]
        points = [
            (frequency / size, power)
            for frequency, power in zip(document["frequencies"], scale["power"], strict=True)
            if power
        ]
        label = f"{scale['name']} (1/{size}): {scale['bpp']:.4f} bpp"
        across, up = [point[0] for point in points], [point[1] for point in points]
        axes.plot(across, up, color=colour, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("frequency (cycles a pixel)")
    axes.set_ylabel("mean power of the new latents")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _pixels(canvas)


def picture_of_scales(document: dict[str, Any]) -> Tensor:
    """Rate of each scale, and what is decoded up to it, uint8 (3, H, W) (Taming, figure 8)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rates, qualities = figure.subplots(1, 2)
    parts = [{"name": "z", "bpp_so_far": document["hyper"]["bpp"], **document["hyper"]}]
    parts += document["scales"]
    names, colours = [part["name"] for part in parts], ("#999999", *_COLOURS)
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
    return _pixels(canvas)


def _pixels(canvas: FigureCanvasAgg) -> Tensor:
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).contiguous()
