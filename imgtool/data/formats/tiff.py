"""TIFF files: Pillow reads those of plain samples of 1 or 8 bits, tifffile all others.

Of every mixture of 1 to 16 bits, WhiteIsZero, BlackIsZero and RGB, extra samples, byte orders,
predictors, LZW and Deflate, planes, strips and tiles, tifffile gives each sample as written;
Pillow refuses or spoils half of them (16 bits of WhiteIsZero, planes), and OpenCV most that are
not of 8 or 16 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from imgtool.data.base import Image8
from imgtool.data.formats.base import (
    Picture,
    Unreadable,
    library,
    orientation,
    orientation_of,
    rgb_of,
    upright,
    upright_size,
)
from imgtool.data.formats.pillow import eight_bit_rgb, opened

MAGICS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
# Tags (TIFF 6.0, section 8 and appendix A)
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_ORIENTATION, _PLANES, _COLOUR_MAP, _EXTRA, _FORMAT, _XMP = 274, 284, 320, 338, 339, 700
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}  # samples
_ASSOCIATED, _UNASSOCIATED, _COREL = 1, 2, 999
_MAX_SAMPLES = 16  # a pixel
_MOST = 1 << 29  # samples to decode at once: RGBA of as many pixels as any picture may have
_MAX_BITS = 16
_CONVERT = "convert the file to 8 or 16 bits"
_KIND = "TIFF of more than 8 bits, with a palette, alpha or planes,"

# What is wrong is an error of ours: no second voice on stderr.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def read_tiff(stream: BinaryIO, num_bytes: int) -> Picture:
    """The first picture of a TIFF."""
    try:
        image = opened(stream, "TIFF")
    except UnidentifiedImageError:
        return _deep(stream, num_bytes)
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if not _is_plain(tags):
        return _deep(stream, num_bytes)
    stored = (tags[_HEIGHT], tags[_WIDTH])  # Pillow's own size is sometimes turned already
    strips, tiles = ([tags.get(tag, ()) for tag in pair] for pair in ((273, 279), (324, 325)))
    whole = min(_last_byte(*strips), _last_byte(*tiles)) <= num_bytes
    # Pillow turns these by itself.
    return Picture(upright_size(stored, orientation(image)), whole, lambda: eight_bit_rgb(image))


def _is_plain(tags: Any) -> bool:
    bits, photometric = set(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC, 0)
    if not set(tags.get(_FORMAT, (1,))) <= {1, 4}:
        return False
    if photometric in (_YCBCR, _LAB):
        return bits == {8}
    return (
        bits in ({1}, {8})
        and photometric != _PALETTE
        and tags.get(_SAMPLES, 1) in (1, _COLOURS.get(photometric))
        and tags.get(_PLANES, 1) == 1
        and not tags.get(_EXTRA)
    )


def _deep(stream: BinaryIO, num_bytes: int) -> Picture:
    tifffile = library("tifffile", _KIND)
    library("imagecodecs", _KIND)
    stream.seek(0)
    page = tifffile.TiffFile(stream).pages[0]

    def tag(code: int, default: Any = None) -> Any:
        return page.tags[code].value if code in page.tags else default

    photometric = int(tag(_PHOTOMETRIC, 0))
    _refuse(page, photometric, _tuple(tag(_BITS, 1)), _tuple(tag(_FORMAT, 1)))
    extra = _tuple(tag(_EXTRA, ()))
    turn = orientation_of(tag(_ORIENTATION), tag(_XMP))
    whole = _last_byte(page.dataoffsets, page.databytecounts) <= num_bytes

    def pixels() -> Image8:
        if not whole or 0 in page.databytecounts:
            raise ValueError("some of its pixels are missing")  # tifffile would make them black
        values = page.asarray(maxworkers=1).reshape(page.shaped)
        values = values.view(np.uint8) if values.dtype == np.bool_ else values
        samples = values[:, 0].transpose(1, 2, 0, 3).reshape(*values.shape[2:4], -1)
        return upright(
            _rgb(samples, photometric, page.bitspersample, extra, tag(_COLOUR_MAP)), turn
        )

    size = upright_size((page.imagelength, page.imagewidth), turn)
    return Picture(size, whole, pixels)


def _last_byte(offsets: Sequence[int], lengths: Sequence[int]) -> int:
    """Where the pixels end; beyond every file when it does not say."""
    return max(map(sum, zip(offsets, lengths, strict=False)), default=1 << 63)


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list | np.ndarray) else (int(value),)


def _refuse(page: Any, photometric: int, bits: tuple[int, ...], formats: tuple[int, ...]) -> None:
    if photometric not in _COLOURS:
        name = getattr(page.photometric, "name", photometric)
        raise Unreadable(f"TIFF of {bits[0]} bits with PhotometricInterpretation {name}")
    if len(set(bits)) > 1:
        raise Unreadable(f"TIFF whose samples have different bits ({', '.join(map(str, bits))})")
    if not set(formats) <= {1, 4}:
        kind = {2: "signed", 3: "float"}.get(formats[0], "complex")
        raise Unreadable(f"{kind} {bits[0]}-bit pixels have no known white; {_CONVERT}")
    if bits[0] > _MAX_BITS:
        raise Unreadable(f"{bits[0]}-bit pixels have no known white; {_CONVERT}")
    num_samples = page.samplesperpixel
    if page.imagedepth != 1 or num_samples > _MAX_SAMPLES:
        raise Unreadable(f"TIFF of {num_samples} samples a pixel and {page.imagedepth} layers")
    whole = page.imagewidth * page.imagelength * num_samples
    if max(whole, page.tilewidth * page.tilelength * num_samples) > _MOST:
        raise Unreadable(f"TIFF of more than {_MOST} samples")
    if num_samples < _COLOURS[photometric]:
        raise ValueError(f"{num_samples} samples are too few for its colours")


def _rgb(
    samples: NDArray[Any], photometric: int, bits: int, extra: tuple[int, ...], colour_map: Any
) -> Image8:
    """(H, W, S) samples as written, by tags 262 (photometric), 338 (extra) and 320 (colours)."""
    maximum = (1 << bits) - 1
    num_colours = _COLOURS[photometric]
    num_extra = samples.shape[2] - num_colours
    if num_extra and not extra:
        extra = (_UNASSOCIATED,) if num_extra == 1 else (0,) * num_extra
    kinds = extra[:num_extra]
    alphas = [i for i, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED, _COREL)]
    alpha, is_premultiplied = None, False
    if alphas:
        alpha = samples[..., num_colours + alphas[0], None]
        is_premultiplied = kinds[alphas[0]] == _ASSOCIATED
    colours = samples[..., :num_colours]
    white = maximum
    if photometric in (_WHITE_IS_ZERO, _CMYK):
        colours, white = _without_ink(colours.astype(np.uint32), maximum)
        if is_premultiplied:  # where it is transparent there is no ink: it lies on white as it is
            alpha, is_premultiplied = None, False
    elif photometric == _PALETTE:
        colours, white = _palette(colour_map)[colours[..., 0]], 255
    return rgb_of(colours, white, alpha, is_premultiplied=is_premultiplied, alpha_maximum=maximum)


def _without_ink(inks: NDArray[Any], maximum: int) -> tuple[NDArray[Any], int]:
    """What one ink, or three under black, leave of white; and white."""
    if inks.shape[2] == 1:
        return maximum - inks, maximum
    return (maximum - inks[..., :3]) * (maximum - inks[..., 3:]), maximum**2


def _palette(colour_map: Any) -> Image8:
    """(N, 3) uint8. Some writers fill 16 bits with 256 times 8 bits, some with 257, some none."""
    colours = np.array(colour_map, np.int64).reshape(3, -1).T
    if colours.max() < 256:
        return colours.astype(np.uint8)
    if not (colours % 256).any():
        return (colours // 256).astype(np.uint8)
    return ((colours + 128) // 257).astype(np.uint8)
