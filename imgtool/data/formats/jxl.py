"""JPEG XL, decoded by imagecodecs; its header is read here, so that its size bounds the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from imgtool.data.base import Image8, Size
from imgtool.data.formats.base import Picture, Unreadable, library, rgb_of, upright_size

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEADER_BYTES = 64
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def read_jxl(stream: BinaryIO, num_bytes: int) -> Picture:
    """A JPEG XL picture. Whether it is whole, only decoding can tell."""
    decode = library("imagecodecs", "JPEG XL").jpegxl_decode
    header = _header(_codestream(stream, num_bytes))
    if header.bits > 16:
        raise Unreadable(f"JPEG XL of {header.bits} bits")

    def pixels() -> Image8:
        stream.seek(0)
        values = decode(stream.read(), index=0, keeporientation=False)
        maximum = (1 << (header.bits or 16)) - 1
        if values.dtype.kind == "f":  # its white is 1
            values = np.round(np.clip(values.astype(np.float32), 0, 1) * maximum).astype(np.uint16)
        values = values.reshape(*values.shape[:2], -1)
        num_colours = 1 if values.shape[2] < 3 else 3
        alpha = values[..., num_colours : num_colours + 1]
        return rgb_of(values[..., :num_colours], maximum, alpha if alpha.size else None)

    return Picture(upright_size(header.size, header.orientation), False, pixels)


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


class _Bits:
    """Fields of a codestream, least significant bit first (ISO/IEC 18181-1, annex B)."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value

    def choose(self, *counts_and_offsets: tuple[int, int]) -> int:
        """U32: two bits say how many more follow, and what is added to them."""
        count, offset = counts_and_offsets[self.take(2)]
        return self.take(count) + offset

    def size(self) -> Size:
        """SizeHeader: (H, W)."""
        is_small = self.take(1)

        def side() -> int:
            if is_small:
                return 8 * (self.take(5) + 1)
            return self.choose((9, 1), (13, 1), (18, 1), (30, 1))

        height = side()
        ratio = self.take(3)
        over, under = _RATIOS.get(ratio, (0, 1))
        return height, height * over // under if ratio else side()


@dataclass(frozen=True, slots=True)
class _Header:
    """Stored (H, W), orientation, and bits a sample; 0 bits when they are float."""

    size: Size
    orientation: int
    bits: int


def _header(data: bytes) -> _Header:
    """SizeHeader and the first fields of ImageMetadata (ISO/IEC 18181-1, annex D)."""
    if data[:2] != CODESTREAM:
        raise ValueError("no codestream in this file")
    bits = _Bits(data[2:])
    size, turn = bits.size(), 1
    if bits.take(1):  # all as usual
        return _Header(size, turn, 8)
    if bits.take(1):  # more fields
        turn = bits.take(3) + 1
        if bits.take(1):
            bits.size()
        if bits.take(1):
            raise Unreadable("JPEG XL with a preview")
        if bits.take(1):  # animation: ticks, repetitions, timecodes
            bits.choose((0, 100), (0, 1000), (10, 1), (30, 1))
            bits.choose((0, 1), (0, 1001), (8, 1), (10, 1))
            bits.choose((0, 0), (3, 0), (16, 0), (32, 0))
            bits.take(1)
    is_float = bits.take(1)
    return _Header(size, turn, 0 if is_float else bits.choose((0, 8), (0, 10), (0, 12), (6, 1)))
