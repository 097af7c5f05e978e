"""Checkpoint files from the outside: what is there, whether it is whole, what it says.

Only names and headers are read, never a tensor, so this needs no torch and takes about a
millisecond a file. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError
from imgtool.files import TEMPORARY_MARK, remove_temporary

FORMAT = 1
METADATA_KEY = "imgtool"
MAX_HEADER_BYTES = 100_000_000

CHECKPOINT_NAME = re.compile(r"iter_(\d+)\.(safetensors|pt)", re.ASCII)
_OWN_NAME = (
    r"iter_\d+\.(?:safetensors|pt)|(?:latest|best)\.(?:safetensors|pt)"
    r"|(?:status|provenance|split)\.json|config\.yaml|metrics\.jsonl|.+_metrics\.csv|probe"
    r"|iter_\d+_\w+\.png"
)
_LEFTOVER = re.compile(rf"\.(?:{_OWN_NAME}){re.escape(TEMPORARY_MARK)}\d+", re.ASCII)
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class DamagedCheckpoint(CheckpointError):
    """A file that is not whole: cut short, or with a header that contradicts itself."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint by its name alone; it may be damaged.

    Attributes:
        path: where it lies.
        iteration: the number in its name.
        num_bytes: its size.
        modified: its modification time, seconds since the epoch.
    """

    path: Path
    iteration: int
    num_bytes: int
    modified: float


@dataclass(frozen=True)
class CheckpointHeader:
    """What a whole checkpoint says of itself.

    Attributes:
        path: where it lies.
        iteration, epoch: how far training had come; epoch is None in foreign files.
        metrics: values by name, `loss` among them; empty in foreign files.
        finite: whether the weights were finite when written; None in foreign files.
        identity: the hash of the experiment; None in foreign files.
        raw: the whole JSON value of the header.
        num_bytes: size of the file.
    """

    path: Path
    iteration: int
    epoch: float | None
    metrics: dict[str, float | None]
    finite: bool | None
    identity: str | None
    num_bytes: int
    raw: dict[str, Any] = field(repr=False)

    @property
    def loss(self) -> float | None:
        return self.metrics.get("loss")


def read_header(path: str | os.PathLike[str]) -> CheckpointHeader:
    """Check a checkpoint's structure and read its header.

    A .safetensors file must be ours and complete to the last byte. A foreign .pt file must
    be a complete zip archive, as torch.save writes; its iteration comes from its name.

    Raises:
        DamagedCheckpoint: it is not whole.
        CheckpointError: it cannot be read, or is whole but nothing of ours.
        Either names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        if path.suffix == ".pt":
            return _read_foreign(path)
        return _read_own(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def list_checkpoints(directory: str | os.PathLike[str]) -> list[Entry]:
    """The regular files iter_N.safetensors and iter_N.pt, by iteration.

    Symlinks, temporaries and other people's files are left out, and so is a file that
    vanishes meanwhile. A directory that does not exist has none.
    """
    entries = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as items:
        for item in items:
            match = CHECKPOINT_NAME.fullmatch(item.name)
            with suppress(FileNotFoundError):
                if match and item.is_file(follow_symlinks=False):
                    facts = item.stat(follow_symlinks=False)
                    path = Path(directory) / item.name
                    entries.append(Entry(path, int(match[1]), facts.st_size, facts.st_mtime))
    return sorted(entries, key=lambda entry: (entry.iteration, entry.path.name))


def newest_valid(
    directory: str | os.PathLike[str], *, foreign: bool = False
) -> CheckpointHeader | None:
    """The whole checkpoint of the highest iteration, or None.

    Args:
        directory: the checkpoints folder.
        foreign: whether .pt files count too.
    """
    for entry in reversed(list_checkpoints(directory)):
        if foreign or entry.path.suffix != ".pt":
            with suppress(CheckpointError):
                return read_header(entry.path)
    return None


def remove_temporaries(directory: str | os.PathLike[str]) -> list[Path]:
    """Delete what a killed writer left half-written; call it only while holding the lock.

    Works on an experiment's directory and on its checkpoints folder. Only names that this
    program writes are taken.

    Returns:
        what was removed.
    """
    removed = []
    for path in Path(directory).glob(f".*{TEMPORARY_MARK}*"):
        if _LEFTOVER.fullmatch(path.name):
            remove_temporary(path)
            if not os.path.lexists(path):
                removed.append(path)
    return removed


def _read_own(path: Path) -> CheckpointHeader:
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
        raise _damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    end = _check_tensors(path, header)
    expected = 8 + length + end
    if size < expected:
        raise _damaged(path, f"it is truncated: {size} of {expected} bytes")
    if size > expected:
        raise _damaged(path, f"it has {size - expected} bytes too many")
    return _own_header(path, metadata, size)


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
            raise _damaged(path, f"its header describes {name!r} wrongly")
        if item_bytes is not None and end - begin != math.prod(shape) * item_bytes:
            raise _damaged(path, f"its header gives {name!r} a wrong size")
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached or end < begin:
            raise _damaged(path, "its tensors overlap or leave gaps")
        reached = end
    return reached


def _own_header(path: Path, metadata: object, size: int) -> CheckpointHeader:
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of imgtool",
            hint="weights alone cannot be resumed; give a file from an exp_dir's checkpoints",
        )
    try:
        raw = json.loads(text)
        number = raw["format"]
        if type(number) is not int:
            raise TypeError("format")
        if number > FORMAT:
            raise CheckpointError(
                f"{path} was written by a newer imgtool (format {number})", hint="update imgtool"
            )
        return CheckpointHeader(
            path=path,
            iteration=int(raw["iteration"]),
            epoch=float(raw["epoch"]),
            metrics={str(key): _number(value) for key, value in dict(raw["metrics"]).items()},
            finite=bool(raw["finite"]),
            identity=str(raw["identity"]),
            num_bytes=size,
            raw=raw,
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"its header lacks or spoils a value ({error})") from error


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _read_foreign(path: Path) -> CheckpointHeader:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(path, "it is no complete zip archive, as torch.save writes") from error
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise _foreign(path, "it is a zip archive, but not one of torch.save")
    match = CHECKPOINT_NAME.fullmatch(path.name)
    return CheckpointHeader(
        path=path,
        iteration=int(match[1]) if match else 0,
        epoch=None,
        metrics={},
        finite=None,
        identity=None,
        num_bytes=size,
        raw={},
    )


def _no_safetensors(path: Path, start: bytes, size: int) -> CheckpointError:
    if start[:4] == b"PK\x03\x04":
        return _foreign(path, "it is a zip archive, as torch.save writes, named .safetensors")
    if start[:1] == b"\x80" and 2 <= int.from_bytes(start[1:2], "little") <= 5:
        return _foreign(path, "it is a Python pickle, which is never loaded")
    length = int.from_bytes(start, "little")
    if size < 8:
        return _damaged(path, f"it is cut short, {size} bytes" if size else "it is empty")
    if 2 <= length <= MAX_HEADER_BYTES and 8 + length > size:
        return _damaged(path, f"it is truncated: {size} bytes, its header alone needs {8 + length}")
    return _damaged(path, "its header is not one of safetensors")


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a usable checkpoint: {why}", hint="give a checkpoint that imgtool wrote"
    )


def _damaged(path: Path, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path} is not a usable checkpoint: {why}",
        hint="use another one; training goes on from the newest valid one by itself",
    )
