"""Whether a file is whole, seen without reading a tensor: this needs no torch.

A safetensors file must be complete to the last byte, a foreign `.pt` a complete zip archive.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError

MAX_HEADER_BYTES = 32_000_000
MAX_TENSORS = 100_000

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class DamagedCheckpoint(CheckpointError):
    """A file that is not whole: cut short, or with a header that contradicts itself."""


@dataclass(frozen=True)
class Structure:
    """What the header of a whole safetensors file says.

    Attributes:
        metadata: any JSON value; None where it has none.
        header: its bytes.
        spans: where each tensor begins and ends in the file.
        kinds: each tensor's type, as safetensors spells it, and shape.
        num_bytes: the file's size.
    """

    metadata: object
    header: bytes = field(repr=False)
    spans: Mapping[str, tuple[int, int]] = field(repr=False)
    kinds: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    num_bytes: int


def read_structure(path: Path) -> Structure:
    """The header of a safetensors file, once the file is seen to be whole.

    Raises:
        DamagedCheckpoint: a byte is missing or too many, or the header contradicts itself.
        CheckpointError: it is something else altogether, or far more than a model has.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if MAX_HEADER_BYTES < length <= size - 8:
            raise _foreign(path, f"no model has a header of {length} bytes")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
            raise _no_safetensors(path, start, size)
        text = file.read(length)
    if text.count(b'"data_offsets"') > MAX_TENSORS:  # parsed, they would fill the memory
        raise _foreign(path, f"it has more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path, start, size) from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    spans = _spans(path, header)
    start_of_data = 8 + length
    expected = start_of_data + max((end for _, end in spans.values()), default=0)
    if size < expected:
        raise damaged(path, f"it is truncated: {size} of {expected} bytes")
    if size > expected:
        raise damaged(path, f"it has {size - expected} bytes too many")
    places = {name: (start_of_data + a, start_of_data + b) for name, (a, b) in spans.items()}
    kinds = {name: (facts["dtype"], tuple(facts["shape"])) for name, facts in header.items()}
    return Structure(metadata, text, places, kinds, size)


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


def see_zip_is_intact(path: Path) -> None:
    """Hold what torch.save wrote against the checksums that it left, where it left any.

    Raises:
        DamagedCheckpoint: a byte is another, or the archive is not whole.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(entry.CRC for entry in archive.infolist()):
                return  # torch.serialization.set_crc32_options(False)
            spoilt = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error, EOFError) as error:
        raise damaged(path, f"it is no sound zip archive ({error})") from error
    if spoilt is not None:
        raise damaged(path, f"{spoilt} in it is not what was written")


def _spans(path: Path, tensors: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Where tensors lie among the data, once all are seen to lie one behind the other."""
    spans = {}
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
        spans[name] = (begin, end)
    reached = 0
    for begin, end in sorted(spans.values()):
        if begin != reached or end < begin:
            raise damaged(path, "its tensors overlap or leave gaps")
        reached = end
    return spans


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
