"""JPEG XL, decoded by imagecodecs; its header is read here, so that its size bounds the work."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from imgtool.data.base import Image8, Size
from imgtool.data.formats.base import Picture, library, rgb_of, upright_size

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEADER_BYTES = 32
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def read_jxl(stream: BinaryIO, num_bytes: int) -> Picture:
    """A JPEG XL picture. Whether it is whole, only decoding can tell."""
    decode = library("imagecodecs", "JPEG XL").jpegxl_decode
    size, turn = _header(_codestream(stream, num_bytes))

    def pixels() -> Image8:
        stream.seek(0)
        values = decode(stream.read(), index=0, keeporientation=False)
        if values.dtype.kind == "f":
            values = np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)
        values = values.reshape(*values.shape[:2], -1)
        num_colours = 1 if values.shape[2] < 3 else 3
        alpha = values[..., num_colours : num_colours + 1]
        maximum = int(np.iinfo(values.dtype).max)
        return rgb_of(values[..., :num_colours], maximum, alpha if alpha.size else None)

    return Picture(upright_size(size, turn), False, pixels)


def _codestream(stream: BinaryIO, num_bytes: int) -> bytes:
    """The first bytes of the codestream, out of its box where it lies in one."""
    stream.seek(0)
    if stream.read(2) == CODESTREAM:
        stream.seek(0)
        return stream.read(_HEADER_BYTES)
    position = 0
    while position + 8 <= num_bytes:
        stream.seek(position)
        head = stream.read(16)
        length, kind, body = int.from_bytes(head[:4], "big"), head[4:8], position + 8
        if length == 1:
            length, body = int.from_bytes(head[8:16], "big"), position + 16
        if kind in (b"jxlc", b"jxlp"):
            stream.seek(body + (4 if kind == b"jxlp" else 0))
            return stream.read(_HEADER_BYTES)
        if length < 8:
            break
        position += length
    raise ValueError("no codestream in this file")


def _header(data: bytes) -> tuple[Size, int]:
    """Stored (H, W) and orientation (ISO/IEC 18181-1: SizeHeader, ImageMetadata)."""
    if data[:2] != CODESTREAM:
        raise ValueError("no codestream in this file")
    bits = int.from_bytes(data[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    is_small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    over, under = _RATIOS.get(ratio, (0, 1))
    width = height * over // under if ratio else side()
    is_default = take(1)
    has_more = 0 if is_default else take(1)
    return (height, width), take(3) + 1 if has_more else 1
