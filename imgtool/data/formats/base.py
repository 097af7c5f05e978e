"""What the readers of picture files share: the upright picture, white, and 8 bits.

**Orientation.** Pillow's `exif_transpose` is the ruling for every format: the orientation of
EXIF (in PNG `eXIf`, else the text "Raw profile type exif"), and of XMP where EXIF has none.
A broken or unknown one turns nothing. JPEG XL and HEIF say it in their own headers, and their
decoders have obeyed before anything is seen here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from imgtool.data.base import Image8, Size

_BAND = 1 << 18  # pixels worked on at once, so that wide integers stay small


class Unreadable(Exception):
    """A picture of a kind that is not read, though nothing need be wrong with the file."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture whose header has been read.

    Attributes:
        size: (H, W), upright.
        whole: False when the file does not end as its format should, or cannot tell.
        pixels: decodes to (H, W, 3) uint8 RGB, upright; a damaged file raises nearly anything.
    """

    size: Size
    whole: bool
    pixels: Callable[[], Image8]


def library(module: str, what: str, *, extra: str | None = None) -> Any:
    """Import what reads a rare kind of picture.

    Raises:
        Unreadable: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = f"'imgtool[{extra}]'" if extra else module
        raise Unreadable(f"{what} needs `pip install {package}`") from None


def orientation(image: Image.Image) -> int:
    """How a picture must be turned, 1 to 8, by the ruling above."""
    try:
        # Not PngImageFile's own, which would decode the pixels; formats.png has found all texts.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF does not spoil the pixels
        return 1
    return int(value) if value in range(1, 9) else 1


def orientation_of(exif: int | None, xmp: bytes | None) -> int:
    """The same for a file that Pillow does not open: EXIF's value, and the text of XMP."""
    if exif is not None:
        return exif if exif in range(1, 9) else 1
    shell = Image.Image()
    shell.info["xmp"] = xmp
    return orientation(shell)


def upright_size(stored: Size, orientation: int) -> Size:
    """(H, W) after turning."""
    return stored if orientation < 5 else (stored[1], stored[0])


def upright(pixels: Image8, orientation: int) -> Image8:
    """(H, W, C) pixels, turned."""
    turned = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }
    turn = turned.get(orientation)
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def rgb_of(
    colours: NDArray[Any],
    maximum: int,
    alpha: NDArray[Any] | None = None,
    *,
    is_premultiplied: bool = False,
    alpha_maximum: int | None = None,
) -> Image8:
    """Samples of any depth, laid on white and rounded once to 8 bits.

    Args:
        colours: (H, W, 1 or 3) integers from 0, black, to maximum, white.
        alpha: (H, W, 1) integers from 0, transparent, to alpha_maximum (default: maximum).
        is_premultiplied: the colours are multiplied by alpha already.
    """
    height, width, _ = colours.shape
    small = np.empty(colours.shape, np.uint8)
    if alpha is None and maximum < 1 << 16:
        levels = np.arange(maximum + 1, dtype=np.int64)
        small = ((levels * 510 + maximum) // (2 * maximum)).astype(np.uint8)[colours]
    else:
        opaque = 1 if alpha is None else alpha_maximum or maximum
        rows = max(1, _BAND // max(1, width))
        for top in range(0, height, rows):
            band = slice(top, top + rows)
            values: NDArray[Any] = colours[band].astype(np.int64)
            if alpha is None:
                cover: Any = opaque
            else:
                cover = alpha[band].astype(np.int64)
            if is_premultiplied:
                laid = np.minimum(values * opaque + maximum * (opaque - cover), maximum * opaque)
            else:
                laid = values * cover + maximum * (opaque - cover)
            white = maximum * opaque
            small[band] = (laid * 255 + white // 2) // white
    return np.ascontiguousarray(np.broadcast_to(small, (height, width, 3)))
