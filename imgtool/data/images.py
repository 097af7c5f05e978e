"""Reading image files as RGB of 8 bits, and resizing them.

Every mode ends as (H, W, 3) uint8: grey is repeated, palettes are looked up, transparency is
laid on white, 16 bits are scaled (65535 becomes 255), EXIF orientation is applied, and of
several frames the first is taken. Pixels of 32 bits (integer or float) are refused, because
nothing in the file says what white is.

Pillow decodes everything. At 512 px torchvision's decoders give the same pixels in 0.8 (JPEG),
0.65 (flat PNG) and 0.92 (photo PNG) of its 2.0, 2.7 and 9.6 ms, but take seconds to import and
are deprecated.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imgtool.data.base import Image8, Sample, Size
from imgtool.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 1 << 27  # 134 million: 400 MB of RGB
MAX_BYTES = 1 << 30

# Sizes are bounded here, and damage is an error of ours: no second voice on stderr.
warnings.filterwarnings("ignore", module=r"PIL\..*")

_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


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
        BadImage: missing, empty, unreadable, not an image, or too large.
    """
    try:
        with open(path, "rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            with _open(path, stream, num_bytes) as image:
                height, width = _upright_size(image)
                whole = _ends_well(image, stream, num_bytes)
            return Header((height, width), whole, num_bytes)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(path, _reason(error)) from error


def decode(path: str | Path) -> tuple[Image8, Image8]:
    """Decode a file.

    Returns:
        The image, (H, W, 3) uint8 RGB, not writable, and the file's bytes, (N,) uint8.

    Raises:
        BadImage: missing, empty, not an image, damaged, too large, or of 32-bit pixels.
    """
    try:
        num_bytes = os.stat(path).st_size
        data: Image8 = np.fromfile(path, np.uint8, count=min(num_bytes, MAX_BYTES + 1))
    except OSError as error:
        raise BadImage(path, _reason(error)) from error
    with _open(path, io.BytesIO(data.tobytes()), data.size) as image:
        size = _upright_size(image)
        try:
            pixels = _pixels(image, data)
        except Exception as error:  # a damaged file makes decoders raise nearly anything
            raise BadImage(path, f"damaged: {_reason(error)}") from error
    if pixels.shape != (*size, 3):
        raise BadImage(path, f"damaged: decodes to {pixels.shape}, its header says {size}")
    return pixels, data


def _open(path: str | Path, stream: BinaryIO, num_bytes: int) -> Image.Image:
    if num_bytes == 0:
        raise BadImage(path, "the file is empty (0 bytes)")
    if num_bytes > MAX_BYTES:
        raise BadImage(path, f"the file has more than {MAX_BYTES} bytes")
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(path, "not an image (jpg, png, webp, bmp or tiff)") from None
    except Image.DecompressionBombError:
        raise BadImage(path, f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        raise BadImage(path, f"damaged: {_reason(error)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(path, f"{width}x{height} is more than {MAX_PIXELS} pixels")
    if width * height == 0:
        raise BadImage(path, f"{width}x{height} has no pixels")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _ends_well(image: Image.Image, stream: BinaryIO, num_bytes: int) -> bool:
    kind = image.format
    if kind == "TIFF":
        return _last_byte(image) <= num_bytes
    stream.seek(max(0, num_bytes - 12))
    tail = stream.read(12)
    if kind == "PNG":
        return tail.endswith(b"IEND\xaeB`\x82")
    if kind in ("JPEG", "MPO"):
        return tail.endswith(b"\xff\xd9")
    if kind == "WEBP":
        stream.seek(4)
        return int.from_bytes(stream.read(4), "little") + 8 <= num_bytes
    stream.seek(2)  # BMP
    return int.from_bytes(stream.read(4), "little") <= num_bytes


def _last_byte(image: Image.Image) -> int:
    """Where the pixels of a TIFF's first frame end; beyond every file when it does not say."""
    tags: Any = getattr(image, "tag_v2", {})
    for offsets, lengths in ((273, 279), (324, 325)):  # strips, tiles
        if tags.get(offsets) and tags.get(lengths):
            return max(map(sum, zip(tags[offsets], tags[lengths], strict=False)))
    return MAX_BYTES + 1


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    try:
        # Asking a PNG for EXIF that it lacks would decode it; what precedes its pixels is known.
        if image.format == "PNG" and "exif" not in image.info:
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF does not spoil the pixels
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> Size:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _upright(pixels: Image8, orientation: int) -> Image8:
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


def _pixels(image: Image.Image, data: Image8) -> Image8:
    orientation = _orientation(image)
    tiles: Any = getattr(image, "tile", None)
    if image.format == "PNG" and image.mode != "I;16" and str(tiles[0][3]).endswith(";16B"):
        deep = _deep_png(data)
        if deep is not None:
            return _upright(deep, orientation)
    return _upright(_eight_bit_rgb(image), orientation)


def _eight_bit_rgb(image: Image.Image) -> Image8:
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):
        bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        grey = _scaled(np.asarray(image), (1 << int(bits)) - 1)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known white; convert the file to 8 or 16 bits")
    if image.mode in _ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _scaled(values: NDArray[Any], maximum: int) -> Image8:
    """0..maximum as 0..255, rounded."""
    wide = np.clip(values.astype(np.int64), 0, maximum)
    return ((wide * 255 + maximum // 2) // maximum).astype(np.uint8)


def _deep_png(data: Image8) -> Image8 | None:
    """A 16-bit PNG with colour or alpha, which Pillow would cut to its high bytes.

    None without torchvision's decoder.
    """
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png

        deep = decode_png(torch.from_numpy(data), mode=ImageReadMode.UNCHANGED)
    except (ImportError, RuntimeError, OSError):
        return None
    if deep.dtype != torch.uint16:
        return None
    values = deep.permute(1, 2, 0).numpy().astype(np.int64)
    colours = values[..., : 1 if values.shape[2] < 3 else 3]
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:]
        colours = (colours * alpha + 65535 * (65535 - alpha) + 32767) // 65535
    return np.ascontiguousarray(np.broadcast_to(_scaled(colours, 65535), (*values.shape[:2], 3)))


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
