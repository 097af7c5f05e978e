"""JPEG and WebP as anchors, made on the spot by Pillow."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image, features
from torch import Tensor

from imgtool.errors import NoAnswer, UsageError
from imgtool.evaluation.rate_distortion.measure import Coded

Name = Literal["jpeg", "webp"]
Subsampling = Literal["4:2:0", "4:4:4"]
QUALITIES: dict[Name, tuple[int, ...]] = {
    "jpeg": (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "webp": (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
}
MAX_SIDE = {"jpeg": 65500, "webp": 16383}


@dataclass(frozen=True)
class Anchor:
    """One classical codec at one quality. The rate counts the whole file, its headers too.

    JPEG with optimised Huffman tables; WebP lossy with its slowest method (6). Both are given
    RGB and convert it to YCbCr.

    Attributes:
        codec: jpeg or webp.
        quality: of Pillow, 0 to 100.
        subsampling: of the chroma. Lossy WebP knows 4:2:0 alone.

    Raises:
        UsageError: WebP at 4:4:4, or a quality out of range.
        NoAnswer: this Pillow has no such codec.
    """

    codec: Name
    quality: int
    subsampling: Subsampling = "4:2:0"

    def __post_init__(self) -> None:
        if self.codec == "webp" and self.subsampling != "4:2:0":
            raise UsageError(
                "lossy WebP has no 4:4:4", hint="leave --subsampling out, or take --codec jpeg"
            )
        if not 0 <= self.quality <= 100:
            raise UsageError(f"a quality of {self.quality}", hint="0 to 100")
        if not features.check("jpg" if self.codec == "jpeg" else self.codec):
            raise NoAnswer(f"this Pillow has no {self.codec}", hint="pip install pillow")

    @property
    def title(self) -> str:
        """Name of the curve."""
        return f"{'JPEG' if self.codec == 'jpeg' else 'WebP'} {self.subsampling}"

    @property
    def description(self) -> str:
        """What made it."""
        if self.codec == "jpeg":
            how = f"optimised Huffman tables, libjpeg {features.version('jpg')}"
        else:
            how = f"method 6, libwebp {features.version('webp')}"
        return f"{self.title}, {how}, Pillow {PIL.__version__}"

    def __call__(self, image: Tensor) -> Coded:
        """Encode and decode uint8 (3, H, W).

        Raises:
            NoAnswer: a side is longer than the format allows.
        """
        longest = max(image.shape)
        if longest > MAX_SIDE[self.codec]:
            raise NoAnswer(
                f"{self.codec} has no images of {longest} pixels",
                hint=f"{MAX_SIDE[self.codec]} at most: leave it out",
            )
        source = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        begin = time.perf_counter()
        stream = io.BytesIO()
        source.save(stream, self.codec, **self._options())
        encoded = time.perf_counter()
        with Image.open(io.BytesIO(stream.getvalue()), formats=[self.codec.upper()]) as opened:
            decoded = np.array(opened.convert("RGB"))
        decoded_at = time.perf_counter()
        num_bytes = len(stream.getvalue())
        return Coded(
            bits=8.0 * num_bytes,
            decoded=torch.from_numpy(decoded).permute(2, 0, 1),
            num_bytes=num_bytes,
            encode_sec=encoded - begin,
            decode_sec=decoded_at - encoded,
        )

    def _options(self) -> dict[str, Any]:
        if self.codec == "jpeg":
            return {"quality": self.quality, "subsampling": self.subsampling, "optimize": True}
        return {"quality": self.quality, "method": 6}
