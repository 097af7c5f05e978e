"""The codecs of a file, each opened when it is wanted, and which of them codes what."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor

from imgtool.evaluation.codec.codec import Codec, Encoded
from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.evaluation.codec.export import CodecFile
from imgtool.evaluation.codec.header import index_of
from imgtool.evaluation.codec.memory import Room
from imgtool.evaluation.codec.model import opened
from imgtool.evaluation.codec.target import Measured, Target, search, see_points
from imgtool.nn.quality import mse, psnr
from imgtool.training.device import resolve_device

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """An image as it was coded, and what else was tried.

    Attributes:
        codec: that coded it.
        encode_sec: that it took, without what else was tried.
        psnr: in dB.
        facts: of a search, for the record: the target, and what was measured at which lambda.
    """

    codec: Codec
    encoded: Encoded
    encode_sec: float
    psnr: float
    facts: dict[str, Any]


class Codecs:
    """The codecs of an export or checkpoint, on one device.

    Args:
        source: as in `CodecFile`.
        device: as `train.device`.
        threads: as in `Codec`.

    Attributes:
        path: the file.
        points: of its header, by rising lambda.
        is_export: whether the file has the tables; else they have just been made.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family.
    """

    def __init__(self, source: str, *, device: str = "auto", threads: int | None = None) -> None:
        self._on, self._threads = resolve_device(device), threads
        self._file = CodecFile(source)
        self.path, self.points = self._file.path, self._file.points
        self.is_export = self._file.is_export
        self._opened: dict[int, Codec] = {}
        self._room: Room | None = None

    def at(self, number: int) -> Codec:
        """The codec of a point.

        Raises:
            CheckpointError: its part of the file is damaged.
        """
        if number not in self._opened:
            codec = opened(self._file.read(number), self._on, self._threads, self._room)
            self._opened[number], self._room = codec, codec.room
        return self._opened[number]

    def see(self, lmbda: float | None, target: Target | None) -> None:
        """Before the first image: whether there is what is asked for, and whether it is whole.

        Raises:
            UsageError, CheckpointError: as `encode`; of a target's codecs only while searching.
        """
        see_points(self.points, self.path, lmbda, target)
        if target is None:
            self.at(self._number_of(lmbda))

    def _number_of(self, lmbda: float | None) -> int:
        return 0 if lmbda is None else index_of(self.points, lmbda, self.path)

    def of(self, container: Container) -> Codec:
        """The codec that a stream was encoded with.

        Raises:
            StreamError: it is none of these.
            CheckpointError: as `at`.
        """
        if len(self.points) == 1:
            return self.at(0)  # which says itself what is wrong
        model_hash = container.model_hash.hex()
        for number, point in enumerate(self.points):
            if model_hash in (point.model_hash, point.plain_hash):
                return self.at(number)
        raise StreamError(
            f"compressed with the model {model_hash} (lambda {container.lmbda:.4g}), and "
            f"{self.path} has {', '.join(point.model_hash for point in self.points)}",
            hint="give the --ckpt that it was compressed with",
        )

    def encode(
        self, image: Tensor, *, lmbda: float | None = None, target: Target | None = None
    ) -> Choice:
        """`begin`, to the end."""
        return self.begin(image, lmbda=lmbda, target=target)()

    def begin(
        self, image: Tensor, *, lmbda: float | None = None, target: Target | None = None
    ) -> Callable[[], Choice]:
        """Compress an image, with the codec of a lambda, or the one that comes nearest to a target.

        Args:
            image: as `Codec.encode`.
            lmbda: one of the file's; None where it has but one, or a target chooses.
            target: is searched for by coding the image itself.

        Returns:
            What is left to do: entropy coding, if there is nothing to search for. A thread may do
            it beside the next image.

        Raises:
            UsageError: the file has no such lambda, or several and none is chosen.
            NoAnswer: the target is out of reach.
            DataError, OutOfMemory: as `Codec.encode`.
        """
        see_points(self.points, self.path, lmbda, target)
        if target is None:
            return self._begun(image, self._number_of(lmbda))
        choice = self._searched(image, target)
        return lambda: choice

    def _searched(self, image: Tensor, target: Target) -> Choice:
        coded: dict[int, Choice] = {}
        measured: dict[int, Measured] = {}

        def measure(number: int) -> Measured:
            if number not in measured:
                found = self._begun(image, number)()
                bpp = Container.unpack(found.encoded.data).bpp
                measured[number] = Measured(found.codec.lmbda, bpp, found.psnr)
                if target.is_met(measured[number]):
                    coded.clear()  # each that meets it is nearer than the one before
                    coded[number] = found
            return measured[number]

        number = search(measure, len(self.points), target)
        found = coded[number]
        rows = [asdict(measured[one]) for one in sorted(measured)]
        facts = {f"target_{target.kind}": target.value, "measured": rows}
        return Choice(found.codec, found.encoded, found.encode_sec, found.psnr, facts)

    def _begun(self, image: Tensor, number: int) -> Callable[[], Choice]:
        codec = self.at(number)
        analysed, analysis_sec = _timed(lambda: codec.analyse(image))

        def finish() -> Choice:
            encoded, coding_sec = _timed(lambda: codec.code(analysed))
            psnr = _psnr(image, encoded.reconstruction)
            return Choice(codec, encoded, analysis_sec + coding_sec, psnr, {})

        return finish


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begin


def _psnr(image: Tensor, other: Tensor) -> float:
    """In dB, of uint8 images (3, H, W) of one size."""
    return float(psnr(mse(image.double()[None] / 255, other.double()[None] / 255)))
