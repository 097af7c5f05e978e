"""Checksums of a checkpoint: XXH3 (64 bits) of each tensor's bytes, and of the header with them.

They are found while the file is being written, and put into room that its header has for them,
so that they cost next to nothing. Files of before have a CRC-32 of each tensor, or nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgtool.experiment.whole import Structure, damaged

if TYPE_CHECKING:
    from torch import Tensor

KEY = "imgtool-xxh3"  # in the metadata: one number a tensor, by name, then that of the header
DIGITS = 16
CHUNK_BYTES = 1 << 24
_START = f'"{KEY}":"'.encode()


@dataclass(frozen=True)
class Checksums:
    """Those of a file's stored tensors by name; empty where it has none."""

    values: Mapping[str, int] = field(default_factory=dict)
    kind: Literal["xxh3", "crc32"] = "xxh3"

    def agree(self, name: str, parts: Iterable[Any]) -> bool:
        """Whether these bytes, one part behind the other, are what was written as `name`."""
        if self.kind == "crc32":
            number = 0
            for part in parts:
                number = zlib.crc32(part, number)
            return number == self.values[name]
        import xxhash

        digest = xxhash.xxh3_64()
        for part in parts:
            digest.update(part)
        return digest.intdigest() == self.values[name]


def room(num_tensors: int) -> str:
    """What the metadata has under KEY while the file is being written."""
    return "0" * (DIGITS * (num_tensors + 1))


@contextmanager
def finding(tensors: Mapping[str, Tensor]) -> Iterator[Future[dict[str, int]]]:
    """Find the checksums of contiguous CPU tensors beside what the block does."""
    import xxhash

    def find() -> dict[str, int]:
        return {name: xxhash.xxh3_64_intdigest(raw(tensor)) for name, tensor in tensors.items()}

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(find)


def fill(path: Path, found: Mapping[str, int]) -> None:
    """Put the checksums into the room that a file's header has for them."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = bytearray(file.read(length))
        begin = header.index(_START) + len(_START)
        end = begin + DIGITS * len(found)
        header[begin:end] = "".join(_digits(found[name]) for name in sorted(found)).encode()
        header[end : end + DIGITS] = _digits(_of_header(header, end)).encode()
        file.seek(8 + begin)
        file.write(header[begin : end + DIGITS])


def read(path: Path, structure: Structure) -> Checksums | None:
    """Those that a header has, once it is seen to be what was written; None of files of before.

    Raises:
        DamagedCheckpoint: the header is another.
    """
    metadata = structure.metadata
    if not isinstance(metadata, dict) or KEY not in metadata:
        return None
    names = sorted(structure.spans)
    try:
        begin = structure.header.index(_START) + len(_START)
        end = begin + DIGITS * len(names)
        numbers = [
            int(structure.header[at : at + DIGITS], 16) for at in range(begin, end + DIGITS, DIGITS)
        ]
        sound = metadata[KEY] == "".join(map(_digits, numbers))
        sound = sound and numbers.pop() == _of_header(structure.header, end)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise damaged(path, "its header is not what was written")
    return Checksums(dict(zip(names, numbers, strict=True)))


def check(path: Path, structure: Structure, checksums: Checksums) -> None:
    """Hold every tensor on the disk against its checksum; needs no torch.

    Raises:
        DamagedCheckpoint: one is another.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        for name, (begin, end) in structure.spans.items():
            if name in checksums.values and not checksums.agree(name, _chunks(file, begin, end)):
                raise not_as_written(path, name)


def not_as_written(path: Path, name: str) -> Exception:
    """The error for a tensor that is another than the one that was written."""
    return damaged(path, f"{name} is not what was written")


def raw(tensor: Tensor) -> Any:
    """The bytes of a contiguous CPU tensor."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _digits(number: int) -> str:
    return f"{number:0{DIGITS}x}"


def _chunks(file: Any, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end:
        part = file.read(min(CHUNK_BYTES, end - begin))
        if not part:
            return
        yield part
        begin += len(part)


def _of_header(header: bytes | bytearray, own: int) -> int:
    """Of all of it but the number itself, which begins at `own`."""
    import xxhash

    digest = xxhash.xxh3_64(bytes(header[:own]))
    digest.update(bytes(header[own + DIGITS :]))
    return digest.intdigest()
