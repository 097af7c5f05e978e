"""Rate, quality and times of a coder on every image of a folder.

As the papers compute it: the decoded picture has 8 bits a channel; PSNR is taken over RGB, image
by image, and averaged in dB; the rate is bits / (H W) of the image as it was, averaged over the
images. MS-SSIM is taken on the same 8-bit pictures and averaged before it is turned into dB;
HPCM's own numbers are of unrounded ones, which gains 0.01 dB at 13 dB and 0.06 dB at 21 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor

from imgtool.data.base import ImageDataset
from imgtool.evaluation.codec.plan import naming
from imgtool.evaluation.rate_distortion.curves import Curve
from imgtool.nn.quality import has_ms_ssim, ms_ssim, mse, psnr

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Coded:
    """What a coder made of one image.

    Attributes:
        bits: of the whole stream; an estimate where `num_bytes` is None.
        decoded: uint8 (3, H, W).
        num_bytes: of the stream.
        encode_sec, decode_sec: None where nothing was coded.
    """

    bits: float
    decoded: Tensor
    num_bytes: int | None = None
    encode_sec: float | None = None
    decode_sec: float | None = None


class Coder(Protocol):
    """One codec at one quality."""

    def __call__(self, image: Tensor) -> Coded:
        """Encode and decode uint8 (3, H, W)."""


@dataclass(frozen=True)
class ImageResult:
    """One image. ms_ssim is None below 161 pixels a side."""

    name: str
    height: int
    width: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    num_bytes: int | None
    encode_sec: float | None
    decode_sec: float | None


@dataclass(frozen=True)
class Point:
    """A codec at one quality, over all images.

    Attributes:
        label: for people.
        images: at least one.
        facts: what else is known of it: path, lambda, quality.
    """

    label: str
    images: tuple[ImageResult, ...]
    facts: dict[str, Any]

    def mean(self, key: str) -> float | None:
        """Average over the images; None where one has no value."""
        values = [getattr(image, key) for image in self.images]
        return None if None in values else fmean(values)

    @property
    def record(self) -> dict[str, Any]:
        """The averages, for one line of output."""
        keys = ("bpp", "psnr", "ms_ssim", "encode_sec", "decode_sec")
        means = {key: self.mean(key) for key in keys}
        has_bytes = self.images[0].num_bytes is not None
        return {
            "name": self.label,
            **self.facts,
            **means,
            "num_images": len(self.images),
            "real_bytes": has_bytes,
        }


def measure(
    coder: Coder, label: str, facts: dict[str, Any], images: ImageDataset, tell: Tell
) -> Point:
    """Code every image of a data set.

    Raises:
        DataError: an image cannot be read.
        UserError: whatever the coder raises, with the names of the codec and of the image.
    """
    results = []
    codec = facts.get("path", label)
    tell(0, len(images))
    for index in range(len(images)):
        pixels = torch.from_numpy(images.read(index).image.copy()).permute(2, 0, 1).contiguous()
        name = images.name(index)
        with naming(f"{codec}: {name}"):
            coded = coder(pixels)
        results.append(_result(name, pixels, coded))
        tell(index + 1, len(images))
    return Point(label, tuple(results), facts)


def _result(name: str, image: Tensor, coded: Coded) -> ImageResult:
    _, height, width = image.shape
    x, x_hat = image[None] / 255, coded.decoded[None].cpu() / 255
    # Differences of 8-bit pictures are exact in float64, so that an error of zero is zero.
    error = mse(coded.decoded[None].cpu().double() / 255, image[None].double() / 255)
    similar = ms_ssim(x_hat, x).item() if has_ms_ssim(height, width) else None
    return ImageResult(
        name=name,
        height=height,
        width=width,
        bpp=coded.bits / (height * width),
        psnr=psnr(error).item(),
        ms_ssim=similar,
        num_bytes=coded.num_bytes,
        encode_sec=coded.encode_sec,
        decode_sec=coded.decode_sec,
    )


def as_curve(name: str, points: Sequence[Point]) -> Curve:
    """PSNR over rate."""
    pairs = sorted((point.mean("bpp") or 0.0, point.mean("psnr") or 0.0) for point in points)
    return Curve(name, "psnr", tuple(bpp for bpp, _ in pairs), tuple(db for _, db in pairs))


def document(name: str, description: str, data: Path, points: Sequence[Point]) -> dict[str, Any]:
    """One curve in the results schema of CompressAI, which its plot tool reads.

    Beyond that schema it has `points`, with every image. A metric that an image lacks is left
    out of the results. Points are by rising rate.
    """
    ordered = sorted(points, key=lambda point: point.mean("bpp") or 0.0)
    keys = {
        "psnr-rgb": "psnr",
        "ms-ssim-rgb": "ms_ssim",
        "bpp": "bpp",
        "encoding_time": "encode_sec",
        "decoding_time": "decode_sec",
    }
    found = {key: [point.mean(ours) for point in ordered] for key, ours in keys.items()}
    return {
        "name": name,
        "description": description,
        "results": {key: values for key, values in found.items() if None not in values},
        "data": data,
        "points": [
            {**point.record, "images": [asdict(image) for image in point.images]}
            for point in ordered
        ],
    }
