"""TIFF and PNG files written by hand from their specifications, so that tests know each sample.

What a picture must look like is then arithmetic on the samples that went in: no decoder is asked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = PNG_CHANNELS
WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, TIFF_PALETTE, CMYK = 0, 1, 2, 3, 5


def eight_bits(samples: np.ndarray, maximum: int, alpha: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3): samples laid on white by alpha, rounded once, halves up."""
    opaque = maximum if alpha is None else alpha.astype(np.int64)
    laid = samples.astype(np.int64) * opaque + maximum * (maximum - opaque)
    small = (laid * 510 + maximum**2) // (2 * maximum**2)
    return np.broadcast_to(small.astype(np.uint8), (*samples.shape[:2], 3))


def packed(rows: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """(H, N) integers as rows of samples of `bits`, each row from a byte of its own."""
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    ones = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [row.tobytes() for row in np.packbits(ones.astype(np.uint8).reshape(len(rows), -1), 1)]


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    filters: Sequence[int] = (0,),
    piece: int = 1 << 16,
) -> bytes:
    """A PNG of (H, W, C) samples.

    Args:
        before, after: chunks beside the pixels.
        filters: of the rows, over and over.
        piece: bytes of an IDAT.
    """
    height, width, channels = samples.shape
    step = max(1, channels * depth // 8)
    rows, above = [], b""
    for y, row in enumerate(packed(samples.reshape(height, -1), depth)):
        kind = filters[y % len(filters)]
        rows.append(bytes([kind]) + _filtered(row, above or bytes(len(row)), step, kind))
        above = row
    pixels = zlib.compress(b"".join(rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pieces = [pixels[i : i + piece] for i in range(0, len(pixels), piece)]
    body = b"".join(chunk(b"IDAT", part) for part in pieces)
    return PNG_MAGIC + chunk(b"IHDR", header) + before + body + after + chunk(b"IEND", b"")


def _filtered(row: bytes, above: bytes, step: int, kind: int) -> bytes:
    x, b = (np.frombuffer(raw, np.uint8).astype(int) for raw in (row, above))
    a, c = (np.concatenate([np.zeros(step, int), raw])[: len(x)] for raw in (x, b))
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
    return ((x - [0 * x, a, b, (a + b) // 2, paeth][kind]) % 256).astype(np.uint8).tobytes()


def _lzw(raw: bytes) -> bytes:
    """TIFF's LZW, begun anew before its codes would grow past 9 bits."""
    codes = [code for i in range(0, len(raw), 200) for code in (256, *raw[i : i + 200])] + [257]
    ones = (np.array(codes)[:, None] >> np.arange(8, -1, -1)) & 1
    return np.packbits(ones.astype(np.uint8)).tobytes()


COMPRESSIONS = {1: bytes, 5: _lzw, 8: zlib.compress}


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    extra: Sequence[int] = (),
    order: str = "<",
    predictor: int = 1,
    compression: int = 1,
    planar: int = 1,
    strip: int | None = None,
    tile: int | None = None,
    tags: Mapping[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of (H, W, S) samples.

    Args:
        extra: ExtraSamples. planar: 2 writes a plane a sample.
        predictor: 2 writes differences. strip, tile: rows, and pixels a side.
        tags: more fields, or other ones: number -> (type: 1 byte, 3 short, 4 long; values).
    """
    height, width, num_samples = samples.shape
    planes = [samples] if planar == 1 else np.split(samples, num_samples, axis=2)
    blocks = [
        COMPRESSIONS[compression](
            b"".join(packed(_differences(part, predictor, bits), bits, order))
        )
        for plane in planes
        for part in _parts(plane, strip or height, tile)
    ]
    offsets = np.cumsum([8, *[len(block) + len(block) % 2 for block in blocks]]).tolist()
    lengths = [len(block) for block in blocks]
    fields = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * num_samples)}
    fields |= {259: (3, [compression]), 262: (3, [photometric]), 277: (3, [num_samples])}
    fields |= {284: (3, [planar]), 317: (3, [predictor])} | ({338: (3, extra)} if extra else {})
    if tile:
        fields |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, offsets[:-1]), 325: (4, lengths)}
    else:
        fields |= {278: (4, [strip or height]), 273: (4, offsets[:-1]), 279: (4, lengths)}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", offsets[-1])
    body = b"".join(block + b"\0" * (len(block) % 2) for block in blocks)
    return head + body + _directory(fields | dict(tags or {}), offsets[-1], order)


def _parts(plane: np.ndarray, strip: int, tile: int | None) -> list[np.ndarray]:
    height, width, _ = plane.shape
    if tile is None:
        return [plane[y : y + strip] for y in range(0, height, strip)]
    plane = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    return [plane[y : y + tile, x : x + tile] for y, x in corners]


def _differences(part: np.ndarray, predictor: int, bits: int) -> np.ndarray:
    part = part.astype(np.int64)
    if predictor == 2:
        part[:, 1:] = (part[:, 1:] - part[:, :-1]) % (1 << bits)
    return part.reshape(len(part), -1)


def _directory(fields: Mapping[int, tuple[int, Sequence[int]]], position: int, order: str) -> bytes:
    entries, more = struct.pack(f"{order}H", len(fields)), b""
    begin = position + 2 + 12 * len(fields) + 4
    for tag, (kind, values) in sorted(fields.items()):
        raw = struct.pack(f"{order}{len(values)}{' B HI'[kind]}", *values)
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place = struct.pack(f"{order}I", begin + len(more))
            more += raw + b"\0" * (len(raw) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    return entries + bytes(4) + more
