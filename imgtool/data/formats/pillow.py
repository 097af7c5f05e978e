"""Pictures of 8 bits, which Pillow reads: JPEG, PNG, WebP, BMP, most TIFFs, AVIF and HEIF.

At 512 px torchvision's decoders give the same pixels in 0.8 (JPEG), 0.65 (flat PNG) and 0.92
(photo PNG) of Pillow's 2.0, 2.7 and 9.6 ms, but take seconds to import and are deprecated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, features

from imgtool.data.base import Image8
from imgtool.data.formats.base import (
    Picture,
    Unreadable,
    library,
    orientation,
    upright,
    upright_size,
)

_ALPHA = ("RGBA", "LA", "PA")


def opened(stream: BinaryIO, kind: str) -> Image.Image:
    """A file as Pillow sees it. Raises what Pillow raises."""
    stream.seek(0)
    return Image.open(stream, formats=(kind,))


def picture(image: Image.Image, whole: bool) -> Picture:
    """What Pillow decodes and has not turned."""
    turn = orientation(image)
    width, height = image.size
    return Picture(
        upright_size((height, width), turn), whole, lambda: upright(eight_bit_rgb(image), turn)
    )


def eight_bit_rgb(image: Image.Image) -> Image8:
    """(H, W, 3) uint8 of a picture of 8 bits, laid on white, not turned."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise Unreadable(f"pixels of mode {image.mode} have no known white")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.mode in _ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _read(ends_well: Callable[[BinaryIO, int], bool], kind: str) -> Callable[..., Picture]:
    def read(stream: BinaryIO, num_bytes: int) -> Picture:
        return picture(opened(stream, kind), ends_well(stream, num_bytes))

    return read


def _riff_ends_well(stream: BinaryIO, num_bytes: int) -> bool:
    stream.seek(4)
    return int.from_bytes(stream.read(4), "little") + 8 <= num_bytes


def _bmp_ends_well(stream: BinaryIO, num_bytes: int) -> bool:
    stream.seek(2)
    return int.from_bytes(stream.read(4), "little") <= num_bytes


def _boxes_end_well(stream: BinaryIO, num_bytes: int) -> bool:
    """Of ISO base media (AVIF, HEIF), where the last box ends."""
    position = 0
    while position + 8 <= num_bytes:
        stream.seek(position)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            return True
        if length < 8:
            return False
        position += length
    return position == num_bytes


def read_avif(stream: BinaryIO, num_bytes: int) -> Picture:
    """AVIF, where the installed Pillow has its library (11.3 and later have)."""
    if not features.check("avif"):
        raise Unreadable("AVIF needs `pip install 'imgtool[formats]'`")
    return picture(opened(stream, "AVIF"), _boxes_end_well(stream, num_bytes))


def read_heif(stream: BinaryIO, num_bytes: int) -> Picture:
    """HEIC and its kin, with pillow-heif, which also turns them upright."""
    library("pillow_heif", "HEIC", extra="formats").register_heif_opener()
    return picture(opened(stream, "HEIF"), _boxes_end_well(stream, num_bytes))


read_webp = _read(_riff_ends_well, "WEBP")
read_bmp = _read(_bmp_ends_well, "BMP")
