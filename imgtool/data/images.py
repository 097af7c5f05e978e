"""Reading image files as RGB of 8 bits, and resizing them.

Every mode ends as (H, W, 3) uint8: grey is repeated, palettes are looked up, transparency is
laid on white, deeper samples are rounded (65535 becomes 255), the picture is turned upright
(the ruling stands in `imgtool.data.formats.base`), and of several frames the first is taken.
Pixels of 32 bits, signed or float are refused, because nothing in the file says what white is.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from imgtool.data.base import Image8, Sample, Size
from imgtool.data.formats import jxl, pillow, png, tiff
from imgtool.data.formats.base import Picture, Unreadable
from imgtool.data.formats.jpeg import read_jpeg
from imgtool.errors import DataError

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
    ]
)
MAX_PIXELS = 1 << 27  # 134 million: 400 MB of RGB
MAX_BYTES = 1 << 30

# Sizes are bounded here, and damage is an error of ours: no second voice on stderr.
warnings.filterwarnings("ignore", module=r"PIL\..*")

_Reader = Callable[[BinaryIO, int], Picture]


class BadImage(DataError):
    """One file that is no usable image.

    Attributes:
        reason: what is wrong, without the file's name.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}", hint="`imgtool data check FOLDER` lists every bad file of a folder"
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's first bytes say.

    Attributes:
        size: (H, W), EXIF orientation applied.
        whole: False when the file does not end as its format should, so that only decoding
            it can tell whether it is truncated.
        num_bytes: length of the file.
    """

    size: Size
    whole: bool
    num_bytes: int


def probe(path: str | Path) -> Header:
    """Read a file's header.

    Raises:
        BadImage: missing, empty, unreadable, not an image, too large, or of pixels that have
            no known white.
    """
    try:
        with open_file(path) as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            picture = _picture(path, stream, num_bytes)
            return Header(picture.size, picture.whole, num_bytes)
    except Exception as error:
        raise _bad(path, error) from error


def decode(path: str | Path) -> tuple[Image8, Image8]:
    """Decode a file.

    Returns:
        The image, (H, W, 3) uint8 RGB, and the file's bytes, (N,) uint8; not writable.

    Raises:
        BadImage: as `probe`, or damaged, or written to while it was read.
    """
    try:
        with open_file(path, buffering=0) as stream:
            before = os.fstat(stream.fileno())
            data = stream.read(min(before.st_size, MAX_BYTES + 1))
            after = os.fstat(stream.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise BadImage(path, "changed while it was read; is something still writing it?")
        picture = _picture(path, io.BytesIO(data), len(data))
        pixels = picture.pixels()
    except Exception as error:
        raise _bad(path, error) from error
    if pixels.shape != (*picture.size, 3):
        raise BadImage(path, f"damaged: decodes to {pixels.shape}, its header says {picture.size}")
    return pixels, np.frombuffer(data, np.uint8)


def open_file(path: str | Path, buffering: int = -1) -> Any:
    """Open a regular file for reading; nothing else may be opened, let alone waited for.

    Raises:
        BadImage: it is a pipe, a socket or a device.
        OSError: as `open`.
    """
    _refuse_special(path, os.stat(path).st_mode)
    stream = open(path, "rb", buffering, opener=_without_waiting)  # noqa: SIM115
    try:
        _refuse_special(path, os.fstat(stream.fileno()).st_mode)
    except BaseException:
        stream.close()
        raise
    return stream


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_special(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        kind = (
            "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        )
        raise BadImage(path, f"{kind}, not a file")


def _bad(path: str | Path, error: Exception) -> BadImage:
    """Whatever went wrong, said of the file: damaged ones make decoders raise nearly anything."""
    if isinstance(error, BadImage):
        return error
    if isinstance(error, MemoryError):
        return BadImage(path, "decoding it needs more memory than there is")
    if isinstance(error, FileNotFoundError):
        return BadImage(path, "no such file")
    if isinstance(error, OSError) and error.strerror:
        return BadImage(path, error.strerror.lower())
    if isinstance(error, Image.DecompressionBombError):
        return BadImage(path, f"more than {MAX_PIXELS} pixels")
    if isinstance(error, UnidentifiedImageError):
        return BadImage(path, "damaged: no header that can be read")
    what = " ".join(str(error).split()) or type(error).__name__
    return BadImage(path, what if isinstance(error, Unreadable) else f"damaged: {what}")


def _picture(path: str | Path, stream: BinaryIO, num_bytes: int) -> Picture:
    if num_bytes == 0:
        raise BadImage(path, "the file is empty (0 bytes)")
    if num_bytes > MAX_BYTES:
        raise BadImage(path, f"the file has more than {MAX_BYTES} bytes")
    read = _reader(stream.read(64))
    if read is None:
        raise BadImage(path, "not an image (jpg, png, webp, bmp, tiff, avif, heic or jxl)")
    picture = read(stream, num_bytes)
    height, width = picture.size
    if height * width > MAX_PIXELS:
        raise BadImage(path, f"{width}x{height} is more than {MAX_PIXELS} pixels")
    if height * width == 0:
        raise BadImage(path, f"{width}x{height} has no pixels")
    return picture


def _reader(head: bytes) -> _Reader | None:
    """What reads a file, by its first bytes."""
    if head.startswith(b"\xff\xd8\xff"):
        return read_jpeg
    if head.startswith(png.MAGIC):
        return png.read_png
    if head.startswith(tiff.MAGICS):
        return tiff.read_tiff
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return pillow.read_webp
    if head.startswith(b"BM"):
        return pillow.read_bmp
    if head.startswith((jxl.CODESTREAM, jxl.CONTAINER)):
        return jxl.read_jxl
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4])), 4)}
        if brands & {b"avif", b"avis"}:
            return pillow.read_avif
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return pillow.read_heif
    return None


def resized_size(size: Size, shorter: int | None) -> Size:
    """(H, W) after resizing so that the shorter side has `shorter` pixels; None keeps it."""
    if shorter is None or min(size) == shorter:
        return size
    height, width = size
    short = min(size)
    return (
        max(1, (height * shorter * 2 + short) // (2 * short)),
        max(1, (width * shorter * 2 + short) // (2 * short)),
    )


def resize_image(image: Image8, size: Size, *, flat: bool) -> Image8:
    """Resize with antialiasing to (H, W).

    Args:
        flat: True for plans of flat colours: area average, which makes no new extremes;
            otherwise bicubic.
    """
    if image.shape[:2] == size:
        return image
    method = Image.Resampling.BOX if flat else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(image).resize((size[1], size[0]), method))


def resize_mask(mask: Image8, size: Size) -> Image8:
    """Resize class numbers to (H, W): nearest pixel, so that no class is made up."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def resize_sample(sample: Sample, size: Size) -> Sample:
    """A sample at (H, W): layouts (those with a mask) by area average, photos bicubic."""
    if sample.image.shape[:2] == size:
        return sample
    image = resize_image(sample.image, size, flat=sample.mask is not None)
    mask = None if sample.mask is None else resize_mask(sample.mask, size)
    return Sample(image, mask, sample.label, sample.name)
