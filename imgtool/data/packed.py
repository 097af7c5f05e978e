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
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.data.base import Sample, Size
from imgtool.data.images import MAX_PIXELS
from imgtool.errors import DataError

FORMAT = 1
MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
MAX_TENSORS = 8
TYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_KINDS = ("photos", "layouts")


def tensor_entries(
    num_images: int, num_pixels: int, targets: frozenset[str]
) -> tuple[dict[str, dict[str, Any]], int]:
    """The header's entry of each tensor, in the file's order, and how long all of them are."""
    mask, label = "mask" in targets, "label" in targets
    layout = [
        *([("labels", "I64", [num_images])] if label else []),
        *([("unmatched", "I64", [num_images])] if mask else []),
        ("num_bytes", "I64", [num_images]),
        ("heights", "I32", [num_images]),
        ("widths", "I32", [num_images]),
        ("hashes", "U8", [num_images, 16]),
        *([("masks", "U8", [num_pixels])] if mask else []),
        ("pixels", "U8", [num_pixels, 3]),
    ]
    entries, begin = {}, 0
    for name, dtype, shape in layout:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        end = begin + count * TYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return entries, begin


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
        try:
            header, start, num_bytes = _read_header(self.path)
            self._read_meta(json.loads(header.pop("__metadata__")["imgtool"]))
            self._map(header, start, num_bytes)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "no such file" if missing else (error.strerror or str(error)).lower()
            raise DataError(f"{path}: {reason}") from error
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path}: not a sound file of packed images: {reason}",
                hint="`imgtool data pack` writes such files",
            ) from error
        self._refuse_unmatched(max_unmatched)

    def _map(self, header: dict[str, Any], start: int, num_bytes: int) -> None:
        num_images = len(self._names)
        num_pixels = header["pixels"]["shape"][0]
        if type(num_pixels) is not int:
            raise ValueError("the tensor pixels has no shape")
        entries, length = tensor_entries(num_images, num_pixels, self.targets)
        if header != entries:
            raise ValueError("its tensors do not fit its names and targets")
        if num_bytes != start + length:
            raise ValueError(f"{num_bytes} bytes instead of {start + length}: it is truncated")
        mapped = np.memmap(self.path, np.uint8, mode="r")

        def array(name: str) -> np.ndarray:
            begin, end = entries[name]["data_offsets"]
            flat = mapped[start + begin : start + end].view(TYPES[entries[name]["dtype"]])
            return flat.reshape(entries[name]["shape"])

        self._heights = array("heights").astype(np.int64)
        self._widths = array("widths").astype(np.int64)
        self._areas = self._heights * self._widths
        if min(self._heights.min(), self._widths.min()) < 1 or self._areas.max() > MAX_PIXELS:
            raise ValueError("a height or width is out of range")
        self._starts = np.concatenate([[0], np.cumsum(self._areas)])
        if self._starts[-1] != num_pixels:
            raise ValueError("heights and widths do not add up to its pixels")
        self._num_bytes, self._hashes = array("num_bytes").copy(), array("hashes").copy()
        self._pixels = array("pixels")
        self._masks = self._labels = self._unmatched = None
        if "mask" in self.targets:
            self._masks, self._unmatched = array("masks"), array("unmatched").copy()
        if "label" in self.targets:
            self._labels = array("labels").copy()
            if self._labels.min() < 0 or self._labels.max() >= len(self.label_names):
                raise ValueError("a label is out of range")

    def _read_meta(self, meta: dict[str, Any]) -> None:
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, this program reads {FORMAT}")
        if meta["dataset"] not in _KINDS:
            raise ValueError(f"dataset {meta['dataset']!r} is unknown")
        self.kind: str = meta["dataset"]
        self.fingerprint = _strings([meta["fingerprint"]], "fingerprint")[0]
        size = meta["image_size"]
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"image_size is {size!r}")
        self.image_size: int | None = size
        self._names = _strings(meta["names"], "names")
        self._groups = _strings(meta["groups"], "groups")
        if not self._names or len(set(self._names)) != len(self._names):
            raise ValueError("names are missing or not unique")
        if len(self._groups) != len(self._names):
            raise ValueError(f"{len(self._groups)} groups for {len(self._names)} names")
        self.targets = frozenset(_strings(meta["targets"], "targets"))
        self.mask_names = _strings(meta["mask_names"], "mask_names")
        self.label_names = _strings(meta["label_names"], "label_names")
        self.palette = _palette(meta["palette"])
        named = {"mask": bool(self.mask_names), "label": bool(self.label_names)}
        if self.targets != {target for target, names in named.items() if names}:
            raise ValueError(f"targets are {sorted(self.targets)}, names of classes say otherwise")
        if len(self.palette) != len(self.mask_names) or len(self.palette) > 255:
            raise ValueError("palette and mask_names do not go together")

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


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data after it begins, and the file's length."""
    with open(path, "rb") as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        if num_bytes < 8:
            raise ValueError(f"it has {num_bytes} bytes")
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(num_bytes - 8, MAX_HEADER_BYTES):
            raise ValueError("it is no safetensors file, or truncated")
        text = stream.read(length)
    if text.count(b'"data_offsets":') > MAX_TENSORS:  # parsed, they would fill the memory
        raise ValueError("its tensors are too many")
    header = json.loads(text.decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length, num_bytes


def _strings(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what}: not a list of strings")
    return tuple(values)


def _palette(values: Any) -> tuple[tuple[int, int, int], ...]:
    colours = []
    for red, green, blue in values:
        if any(type(level) is not int or not 0 <= level <= 255 for level in (red, green, blue)):
            raise ValueError("palette: a level is out of range")
        colours.append((red, green, blue))
    return tuple(colours)
