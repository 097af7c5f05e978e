"""Decoded images in one safetensors file, read through a memory map.

Images keep their own sizes: pixels lie one image after another in one long tensor, and each
begins where the sum of heights x widths before it says.

    labels     (N,) int64, with classes
    unmatched  (N,) int64, with segmentation targets: pixels of a mask without a class
    num_bytes  (N,) int64, length of each file that was packed; its hash is in
    hashes     (N, 16) uint8
    heights, widths (N,) int32
    masks      (P,) uint8, with segmentation targets; P = sum of heights x widths
    pixels     (P, 3) uint8

Names, groups, targets and the fingerprint are JSON in the header, under `imgtool`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.data.base import Sample, Size
from imgtool.data.images import MAX_PIXELS
from imgtool.data.tensors import (
    Entries,
    map_arrays,
    names_and_groups,
    palette_of,
    read_header,
    sound,
    strings,
    tensor_entries,
)
from imgtool.errors import DataError

FORMAT = 1
META_KEY = "imgtool"
MAX_TENSORS = 8
_KINDS = ("photos", "layouts")


def packed_entries(
    num_images: int, num_pixels: int, targets: frozenset[str]
) -> tuple[Entries, int]:
    """The header's entry of each tensor, in the file's order, and how long all of them are."""
    mask, label = "mask" in targets, "label" in targets
    return tensor_entries(
        [
            *([("labels", "I64", [num_images])] if label else []),
            *([("unmatched", "I64", [num_images])] if mask else []),
            ("num_bytes", "I64", [num_images]),
            ("heights", "I32", [num_images]),
            ("widths", "I32", [num_images]),
            ("hashes", "U8", [num_images, 16]),
            *([("masks", "U8", [num_pixels])] if mask else []),
            ("pixels", "U8", [num_pixels, 3]),
        ]
    )


class PackedDataset:
    """A packed file. Its header is checked in full before any of it is used.

    Args:
        max_unmatched: largest part of a mask's pixels without a class, 0..1.

    Attributes:
        kind: `photos` or `layouts`.
        image_size: what the shorter sides were resized to; None where sizes are native.

    Raises:
        DataError: no packed images, truncated, inconsistent, or a mask above max_unmatched.
    """

    decoded = True

    def __init__(self, path: str | Path, *, max_unmatched: float = 1.0) -> None:
        self.path = Path(path)
        self.bad_files: list[str] = []
        with sound(self.path, "packed images", "`imgtool data pack` writes such files"):
            header, start, num_bytes = read_header(self.path, MAX_TENSORS)
            self._read_meta(json.loads(header.pop("__metadata__")[META_KEY]))
            self._map(header, start, num_bytes)
        self._refuse_unmatched(max_unmatched)

    def _map(self, header: dict[str, Any], start: int, num_bytes: int) -> None:
        num_images = len(self._names)
        num_pixels = header["pixels"]["shape"][0]
        if type(num_pixels) is not int:
            raise ValueError("the tensor pixels has no shape")
        entries, length = packed_entries(num_images, num_pixels, self.targets)
        if header != entries:
            raise ValueError("its tensors do not fit its names and targets")
        if num_bytes != start + length:
            raise ValueError(f"{num_bytes} bytes instead of {start + length}: it is truncated")
        arrays = map_arrays(self.path, start, entries)
        self._heights = arrays["heights"].astype(np.int64)
        self._widths = arrays["widths"].astype(np.int64)
        self._areas = self._heights * self._widths
        if min(self._heights.min(), self._widths.min()) < 1 or self._areas.max() > MAX_PIXELS:
            raise ValueError("a height or width is out of range")
        self._starts = np.concatenate([[0], np.cumsum(self._areas)])
        if self._starts[-1] != num_pixels:
            raise ValueError("heights and widths do not add up to its pixels")
        self._num_bytes, self._hashes = arrays["num_bytes"].copy(), arrays["hashes"].copy()
        self._pixels = arrays["pixels"]
        self._masks = self._labels = self._unmatched = None
        if "mask" in self.targets:
            self._masks, self._unmatched = arrays["masks"], arrays["unmatched"].copy()
        if "label" in self.targets:
            self._labels = arrays["labels"].copy()
            if self._labels.min() < 0 or self._labels.max() >= len(self.label_names):
                raise ValueError("a label is out of range")

    def _read_meta(self, meta: dict[str, Any]) -> None:
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, this program reads {FORMAT}")
        if meta["dataset"] not in _KINDS:
            raise ValueError(f"dataset {meta['dataset']!r} is unknown")
        self.kind: str = meta["dataset"]
        self.fingerprint = strings([meta["fingerprint"]], "fingerprint")[0]
        size = meta["image_size"]
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"image_size is {size!r}")
        self.image_size: int | None = size
        self._names, self._groups = names_and_groups(meta)
        self.targets = frozenset(strings(meta["targets"], "targets"))
        self.mask_names = strings(meta["mask_names"], "mask_names")
        self.label_names = strings(meta["label_names"], "label_names")
        self.palette = palette_of(meta["palette"], self.mask_names)
        named = {"mask": bool(self.mask_names), "label": bool(self.label_names)}
        if self.targets != {target for target, names in named.items() if names}:
            raise ValueError(f"targets are {sorted(self.targets)}, names of classes say otherwise")

    def _refuse_unmatched(self, limit: float) -> None:
        if self._unmatched is None:
            return
        shares = self._unmatched / self._areas
        worst = int(shares.argmax())
        if shares[worst] > limit:
            raise DataError(
                f"{self.path}: {shares[worst]:.1%} of the pixels of {self._names[worst]} have no "
                f"palette colour (data.max_unmatched is {limit:.1%})",
                hint="raise data.max_unmatched if this is meant",
            )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Name of an image, as its folder or manifest had it."""
        return self._names[index]

    def group(self, index: int) -> str:
        """What must stay on one side of a split."""
        return self._groups[index]

    def num_bytes(self, index: int) -> int:
        """Length of the file that was packed."""
        return int(self._num_bytes[index])

    def content_hash(self, index: int) -> str:
        """BLAKE2b of the file that was packed."""
        return bytes(self._hashes[index]).hex()

    def size(self, index: int) -> Size:
        """(H, W)."""
        return int(self._heights[index]), int(self._widths[index])

    def read(self, index: int) -> Sample:
        """Views of the file: nothing is decoded, and pixels that nobody reads are not loaded.

        A mask's values are as the file has them; the loader checks those that it hands on.
        """
        begin, end = int(self._starts[index]), int(self._starts[index + 1])
        height, width = self.size(index)
        image = self._pixels[begin:end].reshape(height, width, 3)
        mask = None if self._masks is None else self._masks[begin:end].reshape(height, width)
        label = None if self._labels is None else int(self._labels[index])
        return Sample(image, mask, label, self._names[index])
