"""JPEG, WebP, AVIF and JPEG XL as anchors, made on the spot by Pillow and imagecodecs."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import imagecodecs
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from imgtool.errors import NoAnswer, UsageError
from imgtool.evaluation.rate_distortion.measure import Coded

Name = Literal["jpeg", "webp", "avif", "jxl"]
Subsampling = Literal["4:2:0", "4:4:4"]
SPEED = 6  # of AVIF, 0 to 10
EFFORT = 7  # of JPEG XL, 1 to 10


@dataclass(frozen=True)
class _Kind:
    """What is known of a codec.

    Attributes:
        title: for people.
        qualities: those of its curve.
        max_side: of an image, in pixels.
        subsamplings: that it has, the usual one first.
        feature: what Pillow calls it; None where imagecodecs makes it.
        install: what brings it.
    """

    title: str
    qualities: tuple[int, ...]
    max_side: int
    subsamplings: tuple[Subsampling, ...]
    feature: str | None
    install: str = "pillow"


_KINDS: dict[Name, _Kind] = {
    "jpeg": _Kind(
        "JPEG", (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95), 65500, ("4:2:0", "4:4:4"), "jpg"
    ),
    "webp": _Kind(
        "WebP", (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95), 16383, ("4:2:0",), "webp"
    ),
    "avif": _Kind(
        "AVIF",
        (5, 10, 20, 30, 40, 50, 60, 70, 80, 90),
        65536,
        ("4:2:0", "4:4:4"),
        "avif",
        "'imgtool[formats]'",
    ),
    "jxl": _Kind(
        "JPEG XL",
        (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
        1 << 18,
        ("4:4:4",),
        None,
        "imagecodecs",
    ),
}
NAMES: tuple[Name, ...] = get_args(Name)
QUALITIES: dict[Name, tuple[int, ...]] = {name: kind.qualities for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class Anchor:
    """One classical codec at one quality. The rate counts the whole file, its headers too.

    JPEG with optimised Huffman tables; WebP lossy with its slowest method (6); AVIF at the speed
    and JPEG XL with the effort that their own libraries take when not told otherwise (6 and 7), on
    one thread. All are given RGB and convert it.

    Attributes:
        codec: its name.
        quality: 0 to 100: of Pillow; of JPEG XL that of cjxl, 100 being lossless.
        subsampling: of the chroma; what the codec usually has when None. Lossy WebP knows 4:2:0
            alone, JPEG XL 4:4:4.

    Raises:
        UsageError: a subsampling that the codec has not, or a quality out of range.
        NoAnswer: this Pillow or imagecodecs has no such codec.
    """

    codec: Name
    quality: int
    subsampling: Subsampling | None = None

    def __post_init__(self) -> None:
        kind = _KINDS[self.codec]
        if self.subsampling not in (None, *kind.subsamplings):
            raise UsageError(
                f"{kind.title} has no {self.subsampling}",
                hint="leave --subsampling out, or take --codec jpeg",
            )
        if not 0 <= self.quality <= 100:
            raise UsageError(f"a quality of {self.quality}", hint="0 to 100")
        if kind.feature is None:
            there = bool(imagecodecs.JPEGXL.available)
        else:
            there = bool(features.check(kind.feature))
        if not there:
            library = "imagecodecs" if kind.feature is None else "Pillow"
            raise NoAnswer(
                f"this {library} has no {kind.title}", hint=f"pip install {kind.install}"
            )

    @property
    def title(self) -> str:
        """Name of the curve."""
        kind = _KINDS[self.codec]
        if len(kind.subsamplings) == 1 and kind.feature is None:
            return kind.title
        return f"{kind.title} {self.subsampling or kind.subsamplings[0]}"

    @property
    def description(self) -> str:
        """What made it."""
        if self.codec == "jxl":
            version = imagecodecs.jpegxl_version()
            return (
                f"{self.title}, effort {EFFORT}, {version}, imagecodecs {imagecodecs.__version__}"
            )
        how = {
            "jpeg": f"optimised Huffman tables, libjpeg {features.version('jpg')}",
            "webp": f"method 6, libwebp {features.version('webp')}",
            "avif": f"speed {SPEED}, libavif {features.version('avif')}",
        }[self.codec]
        return f"{self.title}, {how}, Pillow {PIL.__version__}"

    def __call__(self, image: Tensor) -> Coded:
        """Encode and decode uint8 (3, H, W).

        Raises:
            NoAnswer: a side is longer than the format allows.
        """
        longest, kind = max(image.shape), _KINDS[self.codec]
        if longest > kind.max_side:
            raise NoAnswer(
                f"{self.codec} has no images of {longest} pixels",
                hint=f"{kind.max_side} at most: leave it out",
            )
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        begin = time.perf_counter()
        data = self._encode(pixels)
        encoded = time.perf_counter()
        decoded = self._decode(data)
        decoded_at = time.perf_counter()
        return Coded(
            bits=8.0 * len(data),
            decoded=torch.from_numpy(decoded).permute(2, 0, 1),
            num_bytes=len(data),
            encode_sec=encoded - begin,
            decode_sec=decoded_at - encoded,
        )

    def _encode(self, pixels: NDArray[np.uint8]) -> bytes:
        if self.codec == "jxl":
            distance = jxl_distance(self.quality)
            return bytes(
                imagecodecs.jpegxl_encode(
                    pixels,
                    effort=EFFORT,
                    distance=distance,
                    lossless=distance == 0,
                    numthreads=1,
                )
            )
        subsampling = self.subsampling or _KINDS[self.codec].subsamplings[0]
        options: dict[Name, dict[str, Any]] = {
            "jpeg": {"subsampling": subsampling, "optimize": True},
            "webp": {"method": 6},
            "avif": {"subsampling": subsampling, "speed": SPEED, "max_threads": 1},
        }
        stream = io.BytesIO()
        Image.fromarray(pixels).save(
            stream, self.codec, quality=self.quality, **options[self.codec]
        )
        return stream.getvalue()

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        if self.codec == "jxl":
            return np.array(imagecodecs.jpegxl_decode(data, numthreads=1))
        with Image.open(io.BytesIO(data), formats=[self.codec.upper()]) as opened:
            return np.array(opened.convert("RGB"))


def jxl_distance(quality: int) -> float:
    """The distance that libjxl's JxlEncoderDistanceFromQuality gives a quality of 0 to 100."""
    if quality >= 100:
        return 0.0
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25
