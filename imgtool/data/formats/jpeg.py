"""JPEG files: Pillow reads those of 8 bits, imagecodecs those of 12."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import UnidentifiedImageError

from imgtool.data.base import Image8
from imgtool.data.formats.base import (
    Picture,
    Unreadable,
    library,
    orientation,
    rgb_of,
    upright,
    upright_size,
)
from imgtool.data.formats.pillow import opened, picture

_END, _SCAN = b"\xff\xd9", b"\xff\xda"


def read_jpeg(stream: BinaryIO, num_bytes: int) -> Picture:
    """A JPEG of 8 or 12 bits."""
    try:
        image = opened(stream, "JPEG")
    except UnidentifiedImageError:
        return _deep(stream)
    stream.seek(max(0, num_bytes - 2))
    return picture(image, whole=stream.read(2) == _END)


def _deep(stream: BinaryIO) -> Picture:
    stream.seek(0)
    data = stream.read()
    place = _precision(data)
    if place is None or data[place] == 8:
        raise UnidentifiedImageError
    if data[place] != 12:
        raise Unreadable(f"JPEG of {data[place]} bits")
    decode = library("imagecodecs", "JPEG of 12 bits").jpeg8_decode
    # Pillow reads the header of one that says 8: its size, EXIF and XMP.
    image = opened(io.BytesIO(data[:place] + b"\x08" + data[place + 1 :]), "JPEG")
    turn = orientation(image)
    width, height = image.size

    def pixels() -> Image8:
        if data.rfind(_END) < data.rfind(_SCAN):
            raise ValueError("the file is truncated")  # libjpeg would make the rest grey
        values = decode(data)
        return upright(rgb_of(values.reshape(*values.shape[:2], -1), 4095), turn)

    return Picture(upright_size((height, width), turn), data.endswith(_END), pixels)


def _precision(data: bytes) -> int | None:
    """Where the frame header gives its bits a sample (ITU T.81, B.2.2); None without one."""
    position = 2
    while position + 4 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return position + 4
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4])
    return None
