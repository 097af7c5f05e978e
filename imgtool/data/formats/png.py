"""PNG files, of which the decoders are shown only what the pixels need.

Texts, profiles and times may be of any size, damaged or anywhere; they never cost the picture.
What they say of the orientation is read here.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import Image

from imgtool.data.base import Image8
from imgtool.data.formats.base import (
    Picture,
    library,
    orientation,
    rgb_of,
    upright,
    upright_size,
)
from imgtool.data.formats.pillow import eight_bit_rgb, opened

MAGIC = b"\x89PNG\r\n\x1a\n"
_END = b"IEND\xaeB`\x82"
_XMP = b"XML:com.adobe.xmp"
_EXIF = b"Raw profile type exif"
_MAX_TEXT = 1 << 26  # bytes of one text that is read for its orientation


@dataclass
class _Parts:
    """What a walk through a file has found.

    Attributes:
        shown: (begin, end) of what decoders are shown.
        first_pixels: where the body of the first IDAT begins; 0 without one.
        is_plain: all of the file is shown.
        depth, colour: as IHDR has them.
        info: what says the orientation, under the keys of Pillow's `info`.
    """

    shown: list[tuple[int, int]] = field(default_factory=lambda: [(0, len(MAGIC))])
    first_pixels: int = 0
    is_plain: bool = False
    depth: int = 8
    colour: int = 0
    info: dict[str, bytes | str] = field(default_factory=dict)

    def show(self, begin: int, end: int) -> None:
        if self.shown[-1][1] == begin:
            begin = self.shown.pop()[0]
        self.shown.append((begin, end))

    def read(self, stream: BinaryIO, *, header_only: bool = False) -> io.BytesIO:
        pieces = []
        for begin, end in self.shown:
            is_last = header_only and begin < self.first_pixels <= end
            stream.seek(begin)
            pieces.append(stream.read((self.first_pixels if is_last else end) - begin))
            if is_last:
                break
        return io.BytesIO(b"".join(pieces))


def read_png(stream: BinaryIO, num_bytes: int) -> Picture:
    """A PNG of any depth; those of 16 bits are decoded by imagecodecs, as Pillow cuts colours."""
    parts = _walk(stream, num_bytes)
    is_complete = parts.is_plain or isinstance(stream, io.BytesIO)
    shown = stream if parts.is_plain else parts.read(stream, header_only=not is_complete)
    image = opened(shown, "PNG")
    image.info.update(parts.info)
    turn = orientation(image)
    width, height = image.size
    if parts.depth == 16:
        library("imagecodecs", "PNG of 16 bits")

    def pixels() -> Image8:
        if parts.depth == 16:
            return upright(_deep(parts.read(stream).getvalue()), turn)
        complete = image if is_complete else opened(parts.read(stream), "PNG")
        return upright(_shallow(complete, parts.depth), turn)

    stream.seek(max(0, num_bytes - len(_END)))
    whole = stream.read(len(_END)) == _END
    return Picture(upright_size((height, width), turn), whole, pixels)


def _shallow(image: Image.Image, depth: int) -> Image8:
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int):
        # Pillow spreads levels of 2 and 4 bits over 0..255, but not the transparent one.
        maximum = (1 << depth) - 1
        image.info["transparency"] = (level & maximum) * 255 // maximum
    return eight_bit_rgb(image)


def _deep(data: bytes) -> Image8:
    values = library("imagecodecs", "PNG of 16 bits").png_decode(data)  # tRNS becomes alpha
    values = values.reshape(*values.shape[:2], -1)
    num_colours = 1 if values.shape[2] < 3 else 3
    alpha = values[..., num_colours:] if values.shape[2] > num_colours else None
    return rgb_of(values[..., :num_colours], 65535, alpha)


def _walk(stream: BinaryIO, num_bytes: int) -> _Parts:
    parts = _Parts()
    position = len(MAGIC)
    while position + 8 <= num_bytes:
        stream.seek(position)
        head = stream.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        begin, end = position, min(position + 12 + length, num_bytes)
        if not name.isalpha():
            break  # no chunk; whether enough has come before it, the decoder will say
        if name == b"IDAT":
            parts.first_pixels = parts.first_pixels or begin + 8
            end = min(_end_of_run(stream, begin, head) + 12 + length, num_bytes)
        if name == b"IHDR":
            header = stream.read(10)
            parts.depth, parts.colour = (*header[8:], 8, 0)[:2]
        if name[0] < ord("a"):  # critical
            parts.show(begin, end)
        elif name == b"tRNS" and length >= {0: 2, 2: 6, 3: 1}.get(parts.colour, 1 << 31):
            if _body(stream, begin, name, length) is not None:
                parts.show(begin, end)
        elif name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            parts.info.update(_told(stream, begin, name, length))
        if name == b"IEND":
            parts.is_plain = parts.shown == [(0, end)]
            break
        position = end
    return parts


def _end_of_run(stream: BinaryIO, begin: int, head: bytes) -> int:
    """Where the last of a run of chunks begins that all start as `head`.

    Writers make every IDAT but the last of one length. Leaps that double, then halve, touch
    a few pages of a file of many chunks; a slow file system would else read all of it.
    """
    step = 12 + int.from_bytes(head[:4], "big")
    leap, is_growing = step, True
    while leap >= step:
        stream.seek(begin + leap)
        if stream.read(8) == head:
            begin += leap
            leap = 2 * leap if is_growing else leap // 2
        else:
            leap, is_growing = leap // 2, False
    return begin


def _body(stream: BinaryIO, begin: int, name: bytes, length: int) -> bytes | None:
    """A chunk's contents; None when they are not what its checksum says."""
    stream.seek(begin + 8)
    body = stream.read(length)
    checksum = zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "big")
    return body if stream.read(4) == checksum else None


def _told(stream: BinaryIO, begin: int, name: bytes, length: int) -> dict[str, bytes | str]:
    """What a chunk says of the orientation; nothing when it is damaged or of other things."""
    stream.seek(begin + 8)
    key = stream.read(min(length, len(_EXIF) + 1)).split(b"\0")[0]
    if name != b"eXIf" and key not in (_XMP, _EXIF):
        return {}
    body = _body(stream, begin, name, length)
    if body is None:
        return {}
    if name == b"eXIf":
        return {"exif": b"Exif\0\0" + body}
    text = body[len(key) + 1 :]
    try:
        if name == b"zTXt":  # method, text
            text = _inflated(text[1:])
        elif name == b"iTXt":  # packed or not, method, language, keyword in it, text
            packed, (_, _, text) = text[:1], text[2:].split(b"\0", 2)
            text = _inflated(text) if packed != b"\0" else text
    except (zlib.error, ValueError):
        return {}
    told: dict[str, bytes | str] = {"xmp": text} if name == b"iTXt" and key == _XMP else {}
    with contextlib.suppress(UnicodeDecodeError):
        told[key.decode()] = text.decode("utf-8" if name == b"iTXt" else "latin-1")
    return told


def _inflated(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, _MAX_TEXT)
