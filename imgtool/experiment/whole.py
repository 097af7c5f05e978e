"""Whether a file is whole, seen without reading a tensor: this needs no torch.

A safetensors file must be complete to the last byte, a foreign `.pt` a complete zip archive.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class DamagedCheckpoint(CheckpointError):
    """A file that is not whole: cut short, or with a header that contradicts itself."""


def read_metadata(path: Path) -> tuple[object, int]:
    """(the metadata that a safetensors file's header has, its size), once it is seen to be whole.

    Raises:
        DamagedCheckpoint: a byte is missing or too many, or the header contradicts itself.
        CheckpointError: it is something else altogether.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
            raise _no_safetensors(path, start, size)
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path, start, size) from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    end = _check_tensors(path, header)
    expected = 8 + length + end
    if size < expected:
        raise damaged(path, f"it is truncated: {size} of {expected} bytes")
    if size > expected:
        raise damaged(path, f"it has {size - expected} bytes too many")
    return metadata, size


def see_zip_is_whole(path: Path) -> int:
    """The size of a file that torch.save wrote, once it is seen to be whole.

    Raises:
        DamagedCheckpoint, CheckpointError, OSError: as above.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise damaged(path, "it is no complete zip archive, as torch.save writes") from error
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise _foreign(path, "it is a zip archive, but not one of torch.save")
    return size


def _check_tensors(path: Path, tensors: Mapping[str, Any]) -> int:
    """Where the last tensor ends, once all are seen to lie one behind the other."""
    spans = []
    for name, facts in tensors.items():
        try:
            begin, end = facts["data_offsets"]
            shape, dtype = facts["shape"], facts["dtype"]
            numbers = [begin, end, *shape]
            sound = all(type(number) is int and number >= 0 for number in numbers)
            item_bytes = _ITEM_BYTES.get(dtype)
        except (TypeError, KeyError, ValueError):
            sound, item_bytes = False, None
        if not sound:
            raise damaged(path, f"its header describes {name!r} wrongly")
        if item_bytes is not None and end - begin != math.prod(shape) * item_bytes:
            raise damaged(path, f"its header gives {name!r} a wrong size")
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached or end < begin:
            raise damaged(path, "its tensors overlap or leave gaps")
        reached = end
    return reached


def _no_safetensors(path: Path, start: bytes, size: int) -> CheckpointError:
    if start[:4] == b"PK\x03\x04":
        return _foreign(path, "it is a zip archive, as torch.save writes, named .safetensors")
    if start[:1] == b"\x80" and 2 <= int.from_bytes(start[1:2], "little") <= 5:
        return _foreign(path, "it is a Python pickle, which is never loaded")
    length = int.from_bytes(start, "little")
    if size < 8:
        return damaged(path, f"it is cut short, {size} bytes" if size else "it is empty")
    if 2 <= length <= MAX_HEADER_BYTES and 8 + length > size:
        return damaged(path, f"it is truncated: {size} bytes, its header alone needs {8 + length}")
    return damaged(path, "its header is not one of safetensors")


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a usable checkpoint: {why}", hint="give a checkpoint that imgtool wrote"
    )


def damaged(path: Path, why: str) -> DamagedCheckpoint:
    """The error for a file that is not what was written."""
    return DamagedCheckpoint(
        f"{path} is not a usable checkpoint: {why}",
        hint="use another one; training goes on from the newest valid one by itself",
    )
