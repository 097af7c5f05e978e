"""Writing a packed file: decoded once, streamed, whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imgtool.data.base import IGNORE, ImageDataset, Sample, Size
from imgtool.data.images import resize_sample, resized_size
from imgtool.data.packed import FORMAT, META_KEY, packed_entries
from imgtool.data.tensors import MAX_HEADER_BYTES, header_bytes
from imgtool.errors import DataError
from imgtool.files import folders_for, remove_abandoned, replacing
from imgtool.units import format_bytes


def pack(
    dataset: ImageDataset,
    out: str | Path,
    image_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Decode every image of `dataset` into one file, which appears when it is complete.

    Args:
        image_size: resize first: pixels of the shorter side.
        progress: called with images done and in all.

    Returns:
        Length of the file in bytes.

    Raises:
        DataError: an image is bad, or the file cannot be written; nothing is left behind.
    """
    out = Path(out)
    sizes = [resized_size(dataset.size(i), image_size) for i in range(len(dataset))]
    if image_size is not None and all(sizes[i] == dataset.size(i) for i in range(len(sizes))):
        image_size = None
    header, begins, total_bytes = _header(dataset, sizes, image_size)
    try:
        with folders_for(out):
            remove_abandoned(out.parent)
            free = shutil.disk_usage(out.parent).free
            if total_bytes > free:
                raise DataError(
                    f"{out}: needs {format_bytes(total_bytes)}, {format_bytes(free)} are free",
                    hint="--image-size makes the file smaller",
                )
            with replacing(out) as temporary, open(temporary, "wb") as stream:
                stream.write(header)
                _write_small(stream, begins, dataset, sizes)
                _write_images(stream, begins, dataset, sizes, progress)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {(error.strerror or str(error)).lower()}",
            hint="check the folder, its permissions and the free space",
        ) from error
    return total_bytes


def packed_bytes(dataset: ImageDataset, image_size: int | None = None) -> int:
    """Length of the file that pack() would write."""
    sizes = [resized_size(dataset.size(i), image_size) for i in range(len(dataset))]
    return _header(dataset, sizes, image_size)[2]


def _header(
    dataset: ImageDataset, sizes: list[Size], image_size: int | None
) -> tuple[bytes, dict[str, int], int]:
    """The file's first bytes, where in it each tensor begins, and its length."""
    num_images = len(dataset)
    fingerprint = dataset.fingerprint
    if image_size is not None:
        key = f"{fingerprint}/image_size={image_size}".encode()
        fingerprint = hashlib.blake2b(key, digest_size=16).hexdigest()
    meta = {
        "format": FORMAT,
        "dataset": "layouts" if "mask" in dataset.targets else "photos",
        "fingerprint": fingerprint,
        "image_size": image_size or getattr(dataset, "image_size", None),
        "names": [dataset.name(i) for i in range(num_images)],
        "groups": [dataset.group(i) for i in range(num_images)],
        "targets": sorted(dataset.targets),
        "mask_names": dataset.mask_names,
        "label_names": dataset.label_names,
        "palette": dataset.palette,
    }
    num_pixels = sum(height * width for height, width in sizes)
    entries, length = packed_entries(num_images, num_pixels, dataset.targets)
    header = header_bytes(META_KEY, meta, entries)
    if len(header) > MAX_HEADER_BYTES:
        raise DataError(
            f"the names of {num_images} images do not fit into one packed file",
            hint="pack subfolders into files of their own",
        )
    begins = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}
    return header, begins, len(header) + length


def _write_small(
    stream: BinaryIO, begins: dict[str, int], dataset: ImageDataset, sizes: list[Size]
) -> None:
    indices = range(len(dataset))
    arrays = {
        "num_bytes": np.array([dataset.num_bytes(i) for i in indices], "<i8").tobytes(),
        "heights": np.array([height for height, _ in sizes], "<i4").tobytes(),
        "widths": np.array([width for _, width in sizes], "<i4").tobytes(),
        "hashes": b"".join(bytes.fromhex(dataset.content_hash(i)) for i in indices),
    }
    for name, raw in arrays.items():
        stream.seek(begins[name])
        stream.write(raw)


def _write_images(
    stream: BinaryIO,
    begins: dict[str, int],
    dataset: ImageDataset,
    sizes: list[Size],
    progress: Callable[[int, int], None] | None,
) -> None:
    def put(position: int, raw: Any) -> None:
        stream.seek(position)
        stream.write(raw)

    pixel = 0
    for index, sample in enumerate(_resized_samples(dataset, sizes)):
        put(begins["pixels"] + 3 * pixel, np.ascontiguousarray(sample.image).data)
        if sample.mask is not None:
            put(begins["masks"] + pixel, np.ascontiguousarray(sample.mask).data)
            unmatched = int(np.count_nonzero(sample.mask == IGNORE))
            put(begins["unmatched"] + 8 * index, struct.pack("<q", unmatched))
        if sample.label is not None:
            put(begins["labels"] + 8 * index, struct.pack("<q", sample.label))
        pixel += sizes[index][0] * sizes[index][1]
        if progress:
            progress(index + 1, len(sizes))


def _resized_samples(dataset: ImageDataset, sizes: list[Size]) -> Iterator[Sample]:
    """Samples in order, decoded by threads that are never more than a few images ahead."""

    def one(index: int) -> Sample:
        return resize_sample(dataset.read(index), sizes[index])

    num_threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[Sample]] = deque()
        try:
            for index in range(len(sizes)):
                ahead.append(pool.submit(one, index))
                if len(ahead) > 2 * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
