"""The `.hpcm` file: a header, two streams and checksums. Numbers are little-endian.

     0  4  magic "HPCM"
     4  1  version, 1 or 2
     5  1  flags: bit 0 says that the image is grey
     6  1  threads that the encoder computed with, 0 on a GPU
     7  2  what else the encoder's arithmetic depended on, as a CRC (`Environment`)
     9  8  hash of the model
    17  4  lambda, float32
    21  8  height and width, uint32
    29  8  lengths of the streams of z and of y, in words of 4 bytes, uint32
    37     the stream of z, then that of y
        4  CRC32 of the decoded pixels, (3, H, W) bytes, begun with all that stands before it
       10  version 2 alone: the words of `checks`, three of 2 bytes and one of 4
     -4  4  CRC32 of all that stands before it

The last is checked before anything else is believed. The pixels' is checked when the image is
there: in version 1 it also notices a header or stream that was changed and given a fresh last CRC.

Version 2 is of models whose entropy path computes in integers. Its words are of the integers that
encoder and decoder must have in common, up to and with the hyperprior's and those of scales 1, 2
and 3, begun with all that stands before them: they notice a changed file, and say where two
machines part. Threads and environment are then those of the picture's synthesis, which is in
floating point: elsewhere a few pixels may differ by one level.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imgtool.errors import DataError

MAGIC = b"HPCM"
HASH_BYTES = 8
MAX_SIDE = 1 << 24
MAX_PIXELS = 40_000_000  # of an image that is decoded unasked; 8K has 33 million
_GREY = 1
_HEADER = struct.Struct("<4sBBBH8sfIIII")
_CRC = struct.Struct("<I")
_CHECKS = struct.Struct("<HHHI")
NO_CHECKS = (0, 0, 0, 0)  # of version 2 before they are known
_CHECK_MASKS = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF)
# Of a file beside its streams, by version.
OVERHEAD_BYTES = {
    1: _HEADER.size + 2 * _CRC.size,
    2: _HEADER.size + 2 * _CRC.size + _CHECKS.size,
}


class StreamError(DataError):
    """A file that is no whole `.hpcm`, or that this machine and model cannot decode exactly."""


def damaged(what: str) -> StreamError:
    """The error of a file that is not what an encoder wrote."""
    return StreamError(f"damaged: {what}", hint="copy it anew, or compress the image again")


@dataclass(frozen=True)
class Container:
    """What a file says, less its checksums.

    Attributes:
        model_hash: of the model that decodes it, 8 bytes.
        lmbda: of that model's training, for people.
        height, width: of the image, at least 1.
        grey: whether its three channels are equal.
        threads: of the encoder, 0..255.
        environment: CRC of the encoder's, 0..65535.
        z, y: the streams; their lengths are multiples of 4.
        pixels_crc: of the decoded pixels, begun with what stands before it in the file.
        checks: of version 2, else None; see `check_of`.
    """

    model_hash: bytes
    lmbda: float
    height: int
    width: int
    grey: bool
    threads: int
    environment: int
    z: bytes
    y: bytes
    pixels_crc: int = 0
    checks: tuple[int, ...] | None = None

    @property
    def version(self) -> int:
        """1, or 2 where the entropy path is one of integers."""
        return 1 if self.checks is None else 2

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return OVERHEAD_BYTES[self.version] + len(self.z) + len(self.y)

    @property
    def bpp(self) -> float:
        """Bits of the file for each pixel of the image."""
        return 8 * self.num_bytes / (self.height * self.width)

    def record(self) -> dict[str, Any]:
        """What a file says of itself, for people."""
        return {
            "height": self.height,
            "width": self.width,
            "grey": self.grey,
            "file_bytes": self.num_bytes,
            "version": self.version,
            "bpp": self.bpp,
            "model_hash": self.model_hash.hex(),
            "lmbda": float(f"{self.lmbda:.7g}"),
        }

    def crc_of(self, pixels: bytes | memoryview) -> int:
        """What `pixels_crc` has to be for these pixels."""
        return zlib.crc32(pixels, zlib.crc32(self._body()))

    def checks_of(self, crcs: Sequence[int]) -> tuple[int, ...]:
        """What `checks` has to be for CRCs of integers; fewer where fewer are known."""
        before = zlib.crc32(_CRC.pack(self.pixels_crc), zlib.crc32(self._body()))
        masks = _CHECK_MASKS[: len(crcs)]
        return tuple(
            zlib.crc32(_CRC.pack(crc), before) & mask for crc, mask in zip(crcs, masks, strict=True)
        )

    def pack(self) -> bytes:
        """The file."""
        body = self._body() + _CRC.pack(self.pixels_crc)
        if self.checks is not None:
            body += _CHECKS.pack(*self.checks)
        return body + _CRC.pack(zlib.crc32(body))

    def _body(self) -> bytes:
        header = _HEADER.pack(
            MAGIC,
            self.version,
            _GREY * self.grey,
            self.threads,
            self.environment,
            self.model_hash,
            self.lmbda,
            self.height,
            self.width,
            len(self.z) // 4,
            len(self.y) // 4,
        )
        return header + self.z + self.y

    @classmethod
    def unpack(cls, data: bytes) -> Container:
        """Read a file; nothing is allocated that is larger than it.

        Raises:
            StreamError: it is no `.hpcm`, damaged, or of a newer version.
        """
        if data[:4] != MAGIC[: len(data)] or not data:
            raise StreamError("not an .hpcm file", hint="give a file that imgtool compress wrote")
        if len(data) < OVERHEAD_BYTES[1]:
            raise damaged(f"it is cut short, {len(data)} bytes")
        if _CRC.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
            raise damaged("its checksum is wrong")
        fields = _HEADER.unpack_from(data)
        _, version, flags, threads, environment, model_hash, lmbda, *numbers = fields
        if version not in OVERHEAD_BYTES:
            raise StreamError(
                f"of version {version}; this imgtool reads {', '.join(map(str, OVERHEAD_BYTES))}",
                hint="decompress it with the imgtool that wrote it",
            )
        height, width, z_words, y_words = numbers
        if flags & ~_GREY or not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
            raise damaged("its header has impossible values")
        if not (math.isfinite(lmbda) and lmbda > 0):
            raise damaged("its header has impossible values")
        if OVERHEAD_BYTES[version] + 4 * (z_words + y_words) != len(data):
            raise damaged("its streams are not as long as its header says")
        middle = _HEADER.size + 4 * z_words
        end = middle + 4 * y_words
        return cls(
            model_hash=model_hash,
            lmbda=lmbda,
            height=height,
            width=width,
            grey=bool(flags & _GREY),
            threads=threads,
            environment=environment,
            z=data[_HEADER.size : middle],
            y=data[middle:end],
            pixels_crc=_CRC.unpack_from(data, end)[0],
            checks=None if version == 1 else _CHECKS.unpack_from(data, end + _CRC.size),
        )
