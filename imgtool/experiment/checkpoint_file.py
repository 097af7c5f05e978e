"""The format of a checkpoint: one safetensors file with everything that a resumed run needs.

No pickle. Tensors are stored contiguous, shared ones once. One JSON value in the file's header
holds the rest: whose experiment it is, how far it had come, and what each part of a training
remembers. Beside it are checksums of every tensor and of the header itself, which is read without
torch, in about a millisecond.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.errors import CheckpointError
from imgtool.experiment import checksums
from imgtool.experiment.checksums import Checksums
from imgtool.experiment.whole import (
    Structure,
    damaged,
    read_structure,
    see_zip_is_intact,
    see_zip_is_whole,
)
from imgtool.files import followed, pointer_of, replacing_through_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 1
METADATA_KEY = "imgtool"
CHECKPOINT_NAME = re.compile(
    r"iter_(?P<iteration>\d+)(?:\.pt|(?:_update_(?P<update>\d+))?\.safetensors)", re.ASCII
)

_RECORDED = (
    *("iteration", "epoch", "name", "family", "identity", "data_fingerprint", "metrics", "finite"),
    *("elapsed_sec", "horizon", "config"),
)
_OF_THE_FILE = ("format", "aliases", "hashed")
_OF_BEFORE = ("checksums",)


@dataclass(frozen=True)
class CheckpointHeader:
    """What a whole checkpoint says of itself; what a file does not say has its default.

    Attributes:
        iteration, epoch: how far training had come; epoch is None in foreign files.
        name, family, config: of the experiment; None in foreign files.
        identity, data_fingerprint: hashes of the experiment and its data; None in foreign files.
        metrics: values by name, `loss` among them; empty in foreign files.
        finite: whether the weights were finite when written; None in foreign files.
        elapsed_sec: time trained so far, over all starts.
        horizon: where the schedule ends, as the schedule puts it: any JSON value.
        parts: what each part of a training remembers, by its name: any JSON values.
        path, num_bytes: the file, once there is one.
        aliases: names of tensors that are stored once, under another name -> that name.
        checksums: of the stored tensors.
    """

    iteration: int
    epoch: float | None = None
    name: str | None = None
    family: str | None = None
    identity: str | None = None
    data_fingerprint: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    finite: bool | None = True
    elapsed_sec: float = 0.0
    horizon: Any = None
    config: dict[str, Any] | None = field(default=None, repr=False)
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path = Path()
    num_bytes: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)
    checksums: Checksums = field(default=Checksums(), repr=False)

    @property
    def loss(self) -> float | None:
        """The last one logged; None where the file does not say, or it was not finite."""
        return self.metrics.get("loss")

    @property
    def world_size(self) -> int | None:
        """How many processes trained; None where the file does not say."""
        return self._position("world_size")

    @property
    def reached(self) -> tuple[int, int]:
        """(complete iterations, updates done of the next one)."""
        return self.iteration, self._position("update") or 0

    def _position(self, key: str) -> int | None:
        position = self.parts.get("position")
        number = position.get(key) if isinstance(position, dict) else None
        return number if type(number) is int else None


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a file.

    Attributes:
        tensors: by full name (`model.…`, `optimizer.…`, `ema.…`, `rng.…`, `meter.…`), on the CPU.
        header: what it says of itself.
    """

    tensors: dict[str, Tensor]
    header: CheckpointHeader

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, with it taken off."""
        start = prefix + "."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


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
    if pointer_of(path) is not None:
        path = followed(path)
    with _told(path):
        if path.suffix == ".pt":
            size = see_zip_is_whole(path)
            match = CHECKPOINT_NAME.fullmatch(path.name)
            iteration = int(match["iteration"]) if match else 0
            return CheckpointHeader(iteration, finite=None, path=path, num_bytes=size)
        return _own_header(path, read_structure(path))


def read_intact(path: str | os.PathLike[str]) -> CheckpointHeader:
    """As `read_header`, once every byte is seen to be what was written; needs no torch either.

    Raises:
        DamagedCheckpoint, CheckpointError: as `read_header`; or a byte is another.
    """
    header = read_header(path)
    with _told(header.path):
        if header.path.suffix == ".pt":
            see_zip_is_intact(header.path)
        elif header.checksums.values:
            checksums.check(header.path, read_structure(header.path), header.checksums)
    return header


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of which file the system's errors are."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def read(
    path: str | os.PathLike[str],
    parts: Collection[str] | None = None,
    *,
    must_be_finite: bool = False,
) -> Checkpoint:
    """Read a checkpoint onto the CPU, and hold what is read against its checksums.

    Args:
        parts: read these parts' tensors alone, such as `("model", "ema")`; None reads all.
        must_be_finite: refuse one that says, or whose tensors say, that training had diverged.

    Raises:
        DamagedCheckpoint: it is not what was written.
        CheckpointError: not there, unreadable, no checkpoint of imgtool, or not finite.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    if must_be_finite and header.finite is False:
        raise _not_finite(header.path, "its weights were not finite when it was written")
    try:
        with safe_open(header.path, framework="pt", device="cpu") as handle:
            names = list(handle.keys())
            _check_names(header, names)
            # Of shared tensors the file has one, under the first of their names.
            meant = {name: name for name in names} | {
                name: stored for name, stored in header.aliases.items() if stored in names
            }
            if parts is not None:
                meant = {k: v for k, v in meant.items() if k.partition(".")[0] in parts}
            tensors = {name: handle.get_tensor(name) for name in dict.fromkeys(meant.values())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    for name, tensor in tensors.items():
        if header.checksums.values and not header.checksums.agree(name, [checksums.raw(tensor)]):
            raise checksums.not_as_written(header.path, name)
    if must_be_finite and not all_finite(tensors):
        spoilt = next(name for name in tensors if not all_finite({name: tensors[name]}))
        raise _not_finite(header.path, f"{spoilt} is not finite")
    return Checkpoint({name: tensors[stored] for name, stored in meant.items()}, header)


def write(path: Path, tensors: Mapping[str, Tensor], header: CheckpointHeader) -> None:
    """Write a checkpoint atomically.

    Args:
        tensors: by full name; what comes before the first dot is their part.
        header: what is about the file itself (`path`, `aliases`, …) is found here.

    Raises:
        CheckpointError: the disk is full or refuses; `path` is what it was before.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    unique, aliases = _alias_shared(tensors)
    flat = {name: t.detach().to("cpu").contiguous() for name, t in unique.items()}
    document = {
        "format": FORMAT,
        **{key: getattr(header, key) for key in _RECORDED},
        "metrics": {key: _finite_or_none(value) for key, value in header.metrics.items()},
        **header.parts,
        "aliases": aliases,
        "hashed": True,
    }
    if len(document) != len(_RECORDED) + len(header.parts) + len(_OF_THE_FILE):
        raise AssertionError(f"a part has a name of the header's own: {list(header.parts)}")
    text = json.dumps(document, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_through_folder(path) as temporary:
            metadata = {METADATA_KEY: text, checksums.KEY: checksums.room(len(flat))}
            with checksums.finding(flat) as found:
                save_file(flat, temporary, metadata=metadata)
            checksums.fill(temporary, found.result())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {_reason(error)}",
            hint="earlier checkpoints are untouched; free some space and run the command again",
        ) from error


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is finite; where all are, one synchronisation a device."""
    import torch

    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    # Whatever is not finite spoils a sum, which is many times as quick as a look at each value.
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in floating:
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        sums.setdefault(tensor.device, []).append(tensor.sum(dtype=wide).to(torch.float32))
    if all(bool(torch.isfinite(torch.stack(group)).all()) for group in sums.values()):
        return True
    # So do values that are large.
    return all(bool(torch.isfinite(tensor).all()) for tensor in floating)


def _check_names(header: CheckpointHeader, names: Collection[str]) -> None:
    known = header.checksums.values
    if not known:
        return
    for differing, words in (
        (known.keys() - set(names), "it lacks"),
        (set(names) - known.keys(), "it was written without"),
    ):
        if differing:
            raise damaged(header.path, f"{words} {min(differing)}")


def _alias_shared(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split into tensors stored once and names that mean one of them."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and memory in seen:
            aliases[name] = seen[memory]
            continue
        seen[memory] = name
        unique[name] = tensor
    return unique, aliases


def _finite_or_none(value: float | None) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())


def _own_header(path: Path, structure: Structure) -> CheckpointHeader:
    metadata, written = structure.metadata, checksums.read(path, structure)
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of imgtool",
            hint="weights alone cannot be resumed; give a file from an exp_dir's checkpoints",
        )
    try:
        document = json.loads(text)
        number = document["format"]
        if type(number) is not int:
            raise TypeError("format")
        if number != FORMAT:
            raise _other_format(path, number)
        if written is None:
            if document.get("hashed") is True:
                raise KeyError(checksums.KEY)
            written = _crc32s(document)
        config = document.get("config")
        known = {*_RECORDED, *_OF_THE_FILE, *_OF_BEFORE}
        return CheckpointHeader(
            iteration=int(document["iteration"]),
            epoch=float(document["epoch"]),
            name=str(document.get("name", "")),
            family=str(document.get("family", "")),
            identity=str(document["identity"]),
            data_fingerprint=str(document.get("data_fingerprint", "")),
            metrics={str(k): _number(v) for k, v in dict(document["metrics"]).items()},
            finite=bool(document["finite"]),
            elapsed_sec=float(document.get("elapsed_sec", 0.0)),
            horizon=document.get("horizon"),
            config=config if isinstance(config, dict) else None,
            parts={key: value for key, value in document.items() if key not in known},
            path=path,
            num_bytes=structure.num_bytes,
            aliases={str(k): str(v) for k, v in dict(document.get("aliases", {})).items()},
            checksums=written,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise damaged(path, f"its header lacks or spoils a value ({error})") from error


def _crc32s(document: Mapping[str, Any]) -> Checksums:
    found = {str(k): int(v) for k, v in dict(document.get("checksums", {})).items()}
    return Checksums(found, "crc32")


def _other_format(path: Path, number: int) -> CheckpointError:
    newer = number > FORMAT
    return CheckpointError(
        f"{path} was written by {'a newer' if newer else 'another'} imgtool (format {number})",
        hint="update imgtool" if newer else "read it with the version of imgtool that wrote it",
    )


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _not_finite(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a usable checkpoint: {why}", hint="take an earlier checkpoint"
    )
