"""Latents of a set of images in one safetensors file, read through a memory map.

All latents have one shape (C, h, w). N images, in the order of their data set:

    label         (N,) I64, where the data has classes of whole images
    channel_mean, channel_std  (C,) F32, over all positions of the training images; of samples
                  where logvar is stored: std is sqrt(var(mean) + mean(exp(logvar)))
    mean          (N, C, h, w) F16 or F32
    logvar        (N, C, h, w), where it was asked for
    mean_flipped, logvar_flipped  (N, C, h, w), where asked for: of the images mirrored
                  horizontally, which is not the latent mirrored
    part          (N,) U8: 0 train, 1 val, 2 test
    mask          (N, h, w) U8 class numbers, 255 where none; where the data has masks

The header's metadata has under `imgtool-latents` one JSON value: format, names, groups,
autoencoder (`latent_contents.AutoencoderFacts`), data (DataFacts), label_names, mask_names, palette, shift, scale
and fingerprint. A reader goes by names: tensors may lie in any order, without gaps.

A normalised latent is (z - channel_mean) / channel_std. The scalars, for what has no channels:
(z - shift) * scale has mean 0 and deviation 1 over the training images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.data.latent_contents import (
    CHUNK_BYTES,
    FORMAT,
    META_KEY,
    PARTS,
    Contents,
    content_fingerprint,
    json_object,
    number,
    placed,
    read_contents,
)
from imgtool.data.tensors import map_arrays, read_header, sound, strings
from imgtool.errors import DataError

MAX_TENSORS = 9
WHAT, HINT = "latents", "`imgtool encode` writes such files"

Rows = int | slice | Sequence[int] | NDArray[np.int64]


def is_latents_file(path: str | Path) -> bool:
    """Whether a file says that it holds latents; it may still be damaged."""
    try:
        return META_KEY in read_header(Path(path), MAX_TENSORS)[0]["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


class LatentsFile:
    """A latents file. Its header is checked in full before any of it is used.

    Rows are copied out of the map as they are asked for: one image (an int) gives (C, h, w),
    several (a slice, a list) give (n, C, h, w), float32.

    Attributes:
        path: of the file.
        contents: what it says but for the numbers; see there.
        num_images: N.
        shape: (C, h, w) of a latent.
        names, groups: of each image.
        parts: (N,) uint8, positions in PARTS.
        channel_mean, channel_std: (C,) float32; std is above 0.
        shift, scale: scalars that do the same for all channels together.
        autoencoder, data: facts.
        fingerprint: hash of what is in the file, wherever things lie.

    Raises:
        DataError: no latents, truncated, or inconsistent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with sound(self.path, WHAT, HINT):
            header, start, num_bytes = read_header(self.path, MAX_TENSORS)
            metadata = header.pop("__metadata__")
            if META_KEY not in metadata:
                raise ValueError("it holds something else")
            meta = json_object(json.loads(metadata[META_KEY]), META_KEY)
            if meta["format"] != FORMAT:
                raise ValueError(f"its format is {meta['format']!r}, this program reads {FORMAT}")
            contents = read_contents(meta, header)
            entries = placed(contents, header, num_bytes - start)
            self._arrays = map_arrays(self.path, start, entries)
            self.shift, self.scale = (number(meta[key], key) for key in ("shift", "scale"))
            self.fingerprint = strings([meta["fingerprint"]], "fingerprint")[0]
            self._see_small(contents)
        self._header_bytes = start
        self.contents = contents
        self.names, self.groups, self.shape = contents.names, contents.groups, contents.shape
        self.parts = contents.parts
        self.autoencoder, self.data = contents.autoencoder, contents.data
        self.label_names, self.mask_names = contents.label_names, contents.mask_names
        self.palette = contents.palette
        self.num_images = len(self.names)

    def _see_small(self, contents: Contents) -> None:
        """Check what is small and keep it in memory."""
        self.channel_mean = self._arrays["channel_mean"].astype(np.float32)
        self.channel_std = self._arrays["channel_std"].astype(np.float32)
        numbers = [self.channel_mean, self.channel_std]
        if not all(np.isfinite(array).all() for array in numbers) or self.channel_std.min() <= 0:
            raise ValueError("a channel's mean or deviation is out of range")
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}")
        contents.parts[:] = self._arrays["part"]
        if contents.parts.max() >= len(PARTS):
            raise ValueError("a part is out of range")
        self.labels: NDArray[np.int64] | None = None
        if contents.label_names:
            self.labels = self._arrays["label"].astype(np.int64)
            if self.labels.min() < 0 or self.labels.max() >= len(contents.label_names):
                raise ValueError("a label is out of range")

    def __len__(self) -> int:
        return self.num_images

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images that were encoded, and of those that are decoded."""
        unit = self.autoencoder.downsampling
        return self.shape[1] * unit, self.shape[2] * unit

    @property
    def has_logvar(self) -> bool:
        """Whether log variances are stored."""
        return self.contents.with_logvar

    @property
    def has_flipped(self) -> bool:
        """Whether latents of the mirrored images are stored."""
        return self.contents.with_flipped

    @property
    def has_label(self) -> bool:
        """Whether images have labels."""
        return bool(self.label_names)

    @property
    def has_mask(self) -> bool:
        """Whether images have masks, on the latent's grid."""
        return bool(self.mask_names)

    def rows_of(self, part: str) -> NDArray[np.int64]:
        """Positions of the images of a part, one of PARTS."""
        return np.flatnonzero(self.parts == PARTS.index(part))

    def mean(self, rows: Rows, *, flipped: bool = False) -> NDArray[np.float32]:
        """Latents, or the means of their posteriors; not normalised.

        Args:
            flipped: of the mirrored images. Raises KeyError where they are not stored.
        """
        return self._latents("mean", rows, flipped)

    def logvar(self, rows: Rows, *, flipped: bool = False) -> NDArray[np.float32]:
        """Log variances of the posteriors, in nats; as `mean`. Raises KeyError without them."""
        return self._latents("logvar", rows, flipped)

    def label(self, rows: Rows) -> Any:
        """Classes of whole images, int64. Raises KeyError where there are none."""
        if self.labels is None:
            raise KeyError("label")
        return self.labels[rows]

    def mask(self, rows: Rows, *, flipped: bool = False) -> NDArray[np.uint8]:
        """Class numbers on the latent's grid, (h, w) or (n, h, w), 255 where none.

        Raises:
            KeyError: there are no masks.
            DataError: one has a class without a name.
        """
        mask = np.array(self._arrays["mask"][rows])
        if mask.size and int((mask + np.uint8(1)).max()) > len(self.mask_names):  # 255 becomes 0
            raise DataError(f"{self.path}: a mask has a class that mask_names lacks", hint=HINT)
        return np.ascontiguousarray(mask[..., ::-1]) if flipped else mask

    def normalise(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """(z - channel_mean) / channel_std, of (..., C, h, w)."""
        normal: NDArray[np.float32] = (latents - _wide(self.channel_mean)) / _wide(self.channel_std)
        return normal

    def _latents(self, name: str, rows: Rows, flipped: bool) -> NDArray[np.float32]:
        return np.array(self._arrays[name + ("_flipped" if flipped else "")][rows], np.float32)

    def check_values(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read all of it: names of the images whose latents or masks are not as they should be.

        Args:
            progress: called with images done and in all.

        Raises:
            DataError: its bytes are not those that were written.
        """
        bad = []
        size = max(1, CHUNK_BYTES // (4 * math.prod(self.shape)))
        for begin in range(0, self.num_images, size):
            rows = slice(begin, begin + size)
            good = np.ones(len(self.parts[rows]), bool)
            for name in self.contents.latents:
                good &= np.isfinite(self._arrays[name][rows]).all((1, 2, 3))
            if self.has_mask:
                known = self._arrays["mask"][rows] + np.uint8(1) <= len(self.mask_names)
                good &= known.all((1, 2))
            bad += [self.names[begin + at] for at in np.flatnonzero(~good)]
            if progress:
                progress(min(begin + size, self.num_images), self.num_images)
        if not bad and content_fingerprint(self.contents, self._arrays) != self.fingerprint:
            raise DataError(f"{self.path}: damaged: its bytes are not those written", hint=HINT)
        return bad


def _wide(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    return channels[:, None, None]


def facts_of(file: LatentsFile) -> dict[str, Any]:
    """What a record says of a latents file."""
    return {
        "latent_shape": list(file.shape),
        "image_height": file.image_size[0],
        "image_width": file.image_size[1],
        "dtype": file.contents.dtype,
        "tensors": [*file.contents.latents, *(["mask"] if file.has_mask else [])],
        "autoencoder": file.autoencoder.path,
        "autoencoder_hash": file.autoencoder.hash,
        "downsampling": file.autoencoder.downsampling,
        "shift": file.shift,
        "scale": file.scale,
        "channel_mean": [float(f"{value:.9g}") for value in file.channel_mean],
        "channel_std": [float(f"{value:.9g}") for value in file.channel_std],
        "fingerprint": file.fingerprint,
    }
