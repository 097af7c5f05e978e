"""Arrays in a safetensors file: its header written, and checked in full before any of it is used.

    length of the header (8 bytes, little-endian) · header (JSON, spaces at its end) · data

The header has for each tensor its dtype, shape and place in the data, and words of ours as text
under `__metadata__`.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.errors import DataError

MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
TYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}

Entries = dict[str, dict[str, Any]]
Layout = Sequence[tuple[str, str, Sequence[int]]]  # name, dtype, shape


def tensor_entries(layout: Layout) -> tuple[Entries, int]:
    """The header's entry of each tensor, one after another, and how long all of them are."""
    entries: Entries = {}
    begin = 0
    for name, dtype, shape in layout:
        end = begin + math.prod(shape) * TYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return entries, begin


def header_bytes(key: str, meta: Mapping[str, Any], entries: Entries, *, room: int = 0) -> bytes:
    """A file's first bytes: the header with its length before it, a multiple of 8.

    Args:
        key: under which the metadata has `meta` as JSON.
        room: bytes that it fills at least.
    """
    text = json.dumps({"__metadata__": {key: json.dumps(meta)}, **entries}).encode()
    text += b" " * (max(0, room - 8 - len(text)))
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path, max_tensors: int) -> tuple[dict[str, Any], int, int]:
    """The header, where the data after it begins, and the file's length.

    Raises:
        ValueError: it is no safetensors file, or truncated, or has more tensors.
        OSError: it cannot be read.
    """
    if path.is_fifo():  # opened, it would wait for a writer
        raise ValueError("it is a pipe")
    with open(path, "rb") as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        if num_bytes < 8:
            raise ValueError(f"it has {num_bytes} bytes")
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(num_bytes - 8, MAX_HEADER_BYTES):
            raise ValueError("it is no safetensors file, or truncated")
        text = stream.read(length)
    if text.count(b'"data_offsets":') > max_tensors:  # parsed, they would fill the memory
        raise ValueError("its tensors are too many")
    header = json.loads(text.decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length, num_bytes


def map_arrays(path: Path, start: int, entries: Entries) -> dict[str, np.ndarray]:
    """The tensors as read-only views of the file, whose length has been seen to fit."""
    mapped = np.memmap(path, np.uint8, mode="r")
    arrays = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        flat = mapped[start + begin : start + end].view(TYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


@contextmanager
def sound(path: Path, what: str, hint: str) -> Iterator[None]:
    """Say of which file it is that the header within makes no sense.

    Raises:
        DataError: for whatever nonsense in a file makes Python raise.
    """
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else (error.strerror or str(error)).lower()
        raise DataError(f"{path}: {reason}") from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a sound file of {what}: {reason}", hint=hint) from error


# --- what both kinds of files say of their images -------------------------------------------


def strings(values: Any, what: str) -> tuple[str, ...]:
    """A list of strings. Raises ValueError."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what}: not a list of strings")
    return tuple(values)


def names_and_groups(meta: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Unique names, at least one, and a group for each. Raises ValueError, KeyError."""
    names, groups = strings(meta["names"], "names"), strings(meta["groups"], "groups")
    if not names or len(set(names)) != len(names):
        raise ValueError("names are missing or not unique")
    if len(groups) != len(names):
        raise ValueError(f"{len(groups)} groups for {len(names)} names")
    return names, groups


def palette_of(values: Any, mask_names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """RGB of each class. Raises ValueError, TypeError."""
    colours = []
    for red, green, blue in values:
        if any(type(level) is not int or not 0 <= level <= 255 for level in (red, green, blue)):
            raise ValueError("palette: a level is out of range")
        colours.append((red, green, blue))
    if len(colours) != len(mask_names) or len(colours) > 255:
        raise ValueError("palette and mask_names do not go together")
    return tuple(colours)
