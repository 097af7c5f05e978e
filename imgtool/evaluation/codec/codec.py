"""Images to `.hpcm` files and back, by one trained HPCM."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgtool.errors import DataError
from imgtool.evaluation.codec.coding import MAX_RESIDUAL, Alphabet, Decoder, Ints, Part
from imgtool.evaluation.codec.container import MAX_PIXELS, NO_CHECKS, Container, StreamError
from imgtool.evaluation.codec.exact import environment, exact_arithmetic, kernel_of, threads_of
from imgtool.evaluation.codec.integer.path import IntegerPath
from imgtool.evaluation.codec.memory import Room
from imgtool.evaluation.codec.paths import EntropyPath, FloatPath, Trace, checking
from imgtool.models.hpcm.network import HPCM, UNIT
from imgtool.models.hpcm.partition import coarser, gather
from imgtool.models.hpcm.steps import Step
from imgtool.models.hpcm.tables import Tables
from imgtool.nn.convolution import POINTWISE

__all__ = ["MAX_PIXELS", "Codec", "Encoded", "Facts"]
_SMALL_PIXELS = 1 << 20  # up to twice as many, padding is never too much


@dataclass(frozen=True)
class Facts:
    """What an exported model says of itself.

    Attributes:
        path: the file.
        model_name: of its network.
        lmbda: that it was trained with.
        distortion: that it was trained for, `mse` or `ms-ssim`.
        iteration: of its checkpoint.
        model_hash: 16 hexadecimal digits; of the network, its weights and its tables.
        is_export: whether the file has the tables; else they have just been made.
        plain_hash: where its entropy path is in integers: the hash that it has without them, which
            files of version 1 name.
    """

    path: Path
    model_name: str
    lmbda: float
    distortion: str
    iteration: int
    model_hash: str
    is_export: bool
    plain_hash: str | None = None


@dataclass(frozen=True)
class Decoded:
    """What comes of a file.

    Attributes:
        pixels: uint8 (3, H, W) on the CPU.
        is_exact: whether they are what the encoder saw. Else the latents are, and the picture is
            another machine's: a few pixels differ, most of them by one level.
    """

    pixels: Tensor
    is_exact: bool


@dataclass(frozen=True)
class Encoded:
    """An image's file, and what will come of it.

    Attributes:
        data: the file.
        reconstruction: uint8 (3, H, W) on the CPU, what decoding gives here.
        estimate_bits: what the streams should take by the model's integer tables.
        coding_sec: time of the entropy coding alone.
    """

    data: bytes
    reconstruction: Tensor
    estimate_bits: float
    coding_sec: float


@dataclass(frozen=True)
class Analysed:
    """An image of which the networks have made all that they make: coding it is left.

    Attributes:
        container: the file without its streams and checks.
        pixels: uint8 (3, H, W) on the CPU, as in `Encoded.reconstruction`.
        parts: residuals and tables, of z first.
        crcs: of each step, of a codec in integers.
    """

    container: Container
    pixels: Tensor
    parts: list[Part]
    crcs: list[int] | None


class Codec:
    """Codes one image at a time.

    A model whose entropy path is in integers writes files of version 2, which every machine
    decodes to the same latents; their picture is made in float32. Without, decoding repeats the
    encoder's arithmetic bit for bit: on the same device, in float32, with as many threads. Where
    it cannot, it says so: the file knows a CRC of the pixels.

    Args:
        model: with its weights, on `device`, in eval mode.
        tables: of the model.
        facts: of the file that they come from.
        integers: the model's entropy path in integers, on `device`.
        threads: to compute with on a CPU; as many as torch has, when encoding, and as the encoder
            had, when decoding, if None.
        room: of a codec of the same network, with which this one shares the memory.

    Attributes:
        facts, room: as given.
    """

    def __init__(
        self,
        model: HPCM,
        tables: Tables,
        facts: Facts,
        device: torch.device,
        *,
        integers: IntegerPath | None = None,
        threads: int | None = None,
        room: Room | None = None,
    ) -> None:
        self.facts, self.device = facts, device
        # In the order of its channels everywhere: the kernels of NHWC tensors are the quicker ones.
        self._model = model.to(memory_format=torch.channels_last)
        self._plain = FloatPath(self._model)
        self._path: EntropyPath = self._plain if integers is None else integers
        self._alphabet = Alphabet(tables)
        self._num_scales = tables.num_scales
        self.room = room or Room(model.variant, device)
        self._threads = threads

    @property
    def lmbda(self) -> float:
        """Lambda of the model's training."""
        return self.facts.lmbda

    @property
    def model_hash(self) -> str:
        """16 hexadecimal digits that a file and its decoder must share."""
        return self.facts.model_hash

    def encode(self, image: Tensor) -> Encoded:
        """`analyse`, then `code`."""
        return self.code(self.analyse(image))

    def analyse(self, image: Tensor) -> Analysed:
        """What the networks do of compressing an image; one whose channels are equal stays so.

        Args:
            image: uint8 (3, H, W), H and W at least 1, on any device.

        Raises:
            DataError: the model makes of it what cannot be coded.
            OutOfMemory: there is too little.
            TypeError: the image is of another type; a range is never guessed from the values.
        """
        if image.dtype != torch.uint8:
            raise TypeError(f"an image is uint8, not {image.dtype}")
        _, height, width = image.shape
        self.room.make(height, width)
        grey = bool(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]))
        threads = self._threads or threads_of(self.device)
        parts: list[Part] = []
        path, trace = self._path, Trace() if self._path.is_exact else None
        with exact_arithmetic(self.device, threads):
            unit = image[None].to(self.device).float()
            unit = unit.contiguous(memory_format=torch.channels_last).div_(255)
            y, z = self._model.analyse(unit)
            del unit
            means = self._means_of_z(path, *z.shape[2:])
            parts.append(Part(self._tables_of_z(*z.shape[2:]), _rounded(z - means)))
            if trace is not None:
                trace.z(parts[0].residuals)
            s2 = coarser(y, 3)
            grids = {1: coarser(s2, 2), 2: s2, 3: y}

            def code(number: int, step: Step, scales: Tensor, means: Tensor) -> Tensor:
                residuals = _rounded(gather(grids[step.scale], step) - means)
                tables = _tables_of_y(path, scales)
                parts.append(Part(tables, residuals))
                if trace is not None:
                    trace.step(step, tables, means, residuals)
                return self._values(residuals, means)

            z_hat = self._values(parts[0].residuals, means)
            y_hat = path.walk(z_hat, code, trace.hyper if trace is not None else None)
            if trace is not None:
                trace.finish()
            pixels = self._pixels(y_hat, height, width, grey)
        container = Container(
            model_hash=bytes.fromhex(self.model_hash),
            lmbda=self.lmbda,
            height=height,
            width=width,
            grey=grey,
            threads=threads,
            environment=environment(self.device, POINTWISE.of(self.device)),
            z=b"",
            y=b"",
            checks=None if trace is None else NO_CHECKS,
        )
        return Analysed(container, pixels, parts, None if trace is None else trace.crcs)

    def code(self, analysed: Analysed) -> Encoded:
        """The file of an image. May run in a thread beside the next image's `analyse`."""
        parts, pixels = analysed.parts, analysed.pixels
        begin = time.perf_counter()
        streams = self._alphabet.encode(parts[:1]), self._alphabet.encode(parts[1:])
        coding_sec = time.perf_counter() - begin
        container = replace(analysed.container, z=streams[0], y=streams[1])
        container = replace(container, pixels_crc=container.crc_of(pixels.numpy().data))
        if analysed.crcs is not None:
            container = replace(container, checks=container.checks_of(analysed.crcs))
        data = container.pack()
        estimate = sum(self._alphabet.bits(part) for part in parts)
        return Encoded(data, pixels, estimate, coding_sec)

    def decode(self, data: bytes, *, max_pixels: int | None = MAX_PIXELS) -> Tensor:
        """`decode_checked`, less what it says of the pixels."""
        return self.decode_checked(data, max_pixels=max_pixels).pixels

    def decode_checked(self, data: bytes, *, max_pixels: int | None = MAX_PIXELS) -> Decoded:
        """Decompress a file.

        Args:
            max_pixels: larger images are refused before anything is allocated; None, of a file
                that was made just now, takes any.

        Raises:
            StreamError: it is damaged, forged, of another model, too large, or, in version 1, was
                written where arithmetic differs.
            OutOfMemory: there is too little.
        """
        container = Container.unpack(data)
        path = self._path_of(container)
        self._refuse_large(container, max_pixels)
        kernel = kernel_of(container.environment, self.device) or POINTWISE.of(self.device)
        with (
            exact_arithmetic(self.device, self._threads_for(container)),
            POINTWISE.using(kernel, self.device),
        ):
            y_hat = self._latents(container, path)
            pixels = self._pixels(y_hat, container.height, container.width, container.grey)
        is_exact = container.crc_of(pixels.numpy().data) == container.pixels_crc
        if not is_exact and not path.is_exact:
            raise self._inexact(container)
        return Decoded(pixels, is_exact)

    def _latents(self, container: Container, path: EntropyPath) -> Tensor:
        """y_hat of a file."""
        size = -(-container.height // UNIT), -(-container.width // UNIT)
        stream_z = Decoder(self._alphabet, container.z)
        stream_y = Decoder(self._alphabet, container.y)
        residuals = stream_z.read(self._tables_of_z(*size))
        stream_z.finish()  # a wrong size ends here, before the networks see it
        self.room.make(container.height, container.width)
        trace = checking(container) if path.is_exact else None
        if trace is not None:
            trace.z(residuals)

        def code(number: int, step: Step, scales: Tensor, means: Tensor) -> Tensor:
            tables = _tables_of_y(path, scales)
            found = stream_y.read(tables)
            if trace is not None:
                trace.step(step, tables, means, found)
            return self._values(found, means)

        z_hat = self._values(residuals, self._means_of_z(path, *size))
        y_hat = path.walk(z_hat, code, trace.hyper if trace is not None else None)
        if trace is not None:
            trace.finish()
        try:
            stream_y.finish()
        except StreamError as error:
            if path.is_exact:
                raise
            raise self._inexact(container) from error
        return y_hat

    def _threads_for(self, container: Container) -> int:
        """Those of the encoder, unless other ones are asked for and may be taken."""
        if not self._on_cpu:
            return 0
        asked = self._threads if container.checks is not None else None
        return asked or container.threads

    def _path_of(self, container: Container) -> EntropyPath:
        """The path that a file was encoded by.

        Raises:
            StreamError: it is of another model.
        """
        model_hash, facts = container.model_hash.hex(), self.facts
        version = 2 if self._path.is_exact else 1
        if (model_hash, container.version) == (self.model_hash, version):
            return self._path
        if (model_hash, container.version) == (facts.plain_hash, 1):
            return self._plain
        raise StreamError(
            f"compressed with the model {model_hash} (lambda {container.lmbda:.4g}, version "
            f"{container.version}), and {facts.path} is {self.model_hash}",
            hint="give the --ckpt that it was compressed with",
        )

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _same_arithmetic(self, container: Container) -> bool:
        same_kind = (container.threads > 0) == self._on_cpu
        return same_kind and kernel_of(container.environment, self.device) is not None

    def _inexact(self, container: Container) -> StreamError:
        """The error of a whole file of this model, of which something else was computed.

        The tables of z are the model's own, those of y are computed: from there on a difference is
        one of arithmetic, unless somebody made the checksums fit.
        """
        if self._same_arithmetic(container):
            what = "its bytes are whole, but what comes out is not what was encoded"
            hint = (
                "another processor, torch or thread library than the encoder's computes otherwise: "
                "decompress it where it was compressed; else it is forged"
            )
        else:
            what = "it was encoded with another torch, processor or GPU"
            hint = (
                "decompress it where it was compressed, with the same torch and --device; "
                "`imgtool export --portable` makes codecs whose files any machine opens"
            )
        return StreamError(f"cannot be decoded exactly here: {what}", hint=hint)

    def _refuse_large(self, container: Container, max_pixels: int | None) -> None:
        if max_pixels is None:
            return
        height, width = container.height, container.width
        # Networks see whole units: of an image of one row they make 64.
        padded = -(-height // UNIT) * -(-width // UNIT) * UNIT**2
        max_padded = 2 * max(max_pixels, _SMALL_PIXELS)
        if height * width > max_pixels:
            what = f"{width}x{height} is more than {max_pixels} pixels"
        elif padded > max_padded:
            what = f"{width}x{height}, padded to {padded} pixels, is more than {max_padded}"
        else:
            return
        enough = max(height * width, -(-padded // 2) if padded > 2 * _SMALL_PIXELS else 0)
        raise StreamError(what, hint=f"if you trust the file, give --max-pixels {enough}")

    # --- what encoder and decoder share -------------------------------------------------------

    def _means_of_z(self, path: EntropyPath, rows: int, columns: int) -> Tensor:
        return path.means_hyper.expand(-1, -1, rows, columns).contiguous()

    def _tables_of_z(self, rows: int, columns: int) -> NDArray[np.int16]:
        first, num_rows = self._num_scales, len(self._alphabet.tables.rows)
        return np.repeat(np.arange(first, num_rows, dtype=np.int16), rows * columns)

    def _values(self, residuals: Ints, means: Tensor) -> Tensor:
        """What the decoder knows of latents, of the means' shape."""
        whole = torch.from_numpy(residuals).to(self.device, means.dtype)
        return whole.view(means.shape) + means

    def _pixels(self, y_hat: Tensor, height: int, width: int, grey: bool) -> Tensor:
        x_hat = self._model.synthesise(y_hat.float())[0, :, :height, :width]
        if grey:
            x_hat = x_hat.mean(dim=0, keepdim=True).expand(3, -1, -1)
        return (x_hat * 255).round_().clamp_(0, 255).to("cpu", torch.uint8).contiguous()


def _tables_of_y(path: EntropyPath, scales: Tensor) -> NDArray[Any]:
    return path.table_index(scales).to("cpu", torch.uint8).flatten().numpy()


def _rounded(residuals: Tensor) -> Ints:
    """(n,) int32."""
    whole = residuals.round()
    if not bool(whole.abs().amax() <= MAX_RESIDUAL):  # NaN is refused too
        raise DataError(
            "the model makes latents of it that are too large or not finite",
            hint="take a checkpoint that is trained better",
        )
    return whole.to("cpu", torch.int32).flatten().numpy()
