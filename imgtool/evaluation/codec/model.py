"""A codec as it is stored: its weights, its probability tables, and what makes integers of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgtool.evaluation.codec.codec import Codec, Facts
from imgtool.evaluation.codec.container import HASH_BYTES
from imgtool.evaluation.codec.exact import allow_deterministic_cublas
from imgtool.evaluation.codec.header import Build, Point
from imgtool.evaluation.codec.integer.calibration import calibrate
from imgtool.evaluation.codec.integer.path import IntegerPath, Numbers
from imgtool.evaluation.codec.memory import Room
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.tables import Tables
from imgtool.models.hpcm.variants import VARIANTS
from imgtool.training.weights import load_module


@dataclass(frozen=True)
class Export:
    """A codec that is ready to be written or used.

    Attributes:
        source: the file that it was read from.
        tensors: weights (`codec.*`, float32), tables (`tables.*`, int32), and where it is portable
            what makes integers of the weights (`integer.*`, int32), on the CPU.
        is_export: whether `source` is an export; else its tables have just been made.
        calibration: of a portable one, what it was calibrated with and what became of it.
    """

    source: Path
    build: Build
    lmbda: float
    distortion: str
    iteration: int
    tensors: Mapping[str, Tensor]
    model_hash: str
    is_export: bool
    calibration: Mapping[str, Any] | None = None

    @property
    def is_portable(self) -> bool:
        """Whether the entropy path computes in integers."""
        return any(name.startswith("integer.") for name in self.tensors)

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        return sum(t.numel() for name, t in self.tensors.items() if name.startswith("codec."))

    def facts(self) -> Facts:
        """The same for people."""
        return Facts(
            path=self.source,
            model_name=self.build.model_name,
            lmbda=self.lmbda,
            distortion=self.distortion,
            iteration=self.iteration,
            model_hash=self.model_hash,
            is_export=self.is_export,
            plain_hash=plain_hash_of(self.build, self.tensors) if self.is_portable else None,
        )

    def integers(self, model: HPCM) -> IntegerPath | None:
        """The entropy path in integers on the CPU; None where it is not portable.

        Args:
            model: `network`.

        Raises:
            CheckpointError: it makes no sense, or its sums need not be exact.
        """
        if not self.is_portable:
            return None
        numbers = Numbers.from_tensors(part_of(self.tensors, "integer"), model)
        return IntegerPath(model, numbers)

    def portable(self, images: Iterable[Tensor], named: Mapping[str, Any]) -> Export:
        """The same with an entropy path in integers.

        Args:
            images: to calibrate with, uint8 (3, H, W).
            named: what they are, for the file.

        Raises:
            DataError: there are none, or they cannot be used.
            CheckpointError: sums of this model need not be exact.
        """
        model = self.network()
        numbers = Numbers.of(calibrate(model, images))
        path = IntegerPath(model, numbers)
        own = {f"integer.{name}": value for name, value in numbers.tensors().items()}
        tensors = {**self.tensors, **{k: v.contiguous() for k, v in own.items()}}
        calibration = {**named, "largest_sum_bits": round(path.bound.bits, 2)}
        return replace(
            self,
            tensors=tensors,
            model_hash=hash_of(self.build, tensors),
            calibration=calibration,
        )

    def network(self) -> HPCM:
        """The network with its weights, in eval mode on the CPU.

        Raises:
            CheckpointError: the weights are another network's.
        """
        model = network_of(self.build)
        load_module(model, part_of(self.tensors, "codec"), self.source)
        return model.eval()

    @property
    def point(self) -> Point:
        """What a header says of it."""
        return Point(
            lmbda=self.lmbda,
            iteration=self.iteration,
            model_hash=self.model_hash,
            plain_hash=plain_hash_of(self.build, self.tensors) if self.is_portable else None,
            calibration=self.calibration,
        )


def opened(
    export: Export, on: torch.device, threads: int | None = None, room: Room | None = None
) -> Codec:
    """A codec, ready to code on a device.

    Args:
        threads, room: as in `Codec`.

    Raises:
        CheckpointError: its tensors make no sense.
    """
    if on.type == "cuda":
        allow_deterministic_cublas()
    model, stored = export.network(), part_of(export.tensors, "tables")
    tables = Tables.from_tensors(stored, num_channels=model.variant.N)
    integers = export.integers(model)
    if room is not None:
        parts = [model, *([] if integers is None else [integers])]
        held = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        room.also_holds(sum(tensor.numel() * tensor.element_size() for tensor in held))
    return Codec(
        model.to(on),
        tables,
        export.facts(),
        on,
        integers=None if integers is None else integers.to(on),
        threads=threads,
        room=room,
    )


def network_of(build: Build) -> HPCM:
    """A network with fresh weights."""
    return HPCM(VARIANTS[build.model_name], legacy_s2_hyper=build.legacy_s2_hyper)


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def plain_hash_of(build: Build, tensors: Mapping[str, Tensor]) -> str:
    """Of the model without integers."""
    plain = {name: value for name, value in tensors.items() if not name.startswith("integer.")}
    return hash_of(build, plain)


def hash_of(build: Build, tensors: Mapping[str, Tensor]) -> str:
    """Of a network, its weights and its tables, 16 hexadecimal digits."""
    digest = hashlib.blake2b(json.dumps(asdict(build)).encode(), digest_size=HASH_BYTES)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
