"""The work on one image of many: from its file to an .hpcm file, and back to a PNG."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgtool.data.images import decode
from imgtool.errors import DataError
from imgtool.evaluation.codec.codec import Codec
from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.evaluation.codec.plan import Job, naming, read_stream, refuse_missing
from imgtool.files import replacing, write_bytes


def compress(codec: Codec, job: Job, *, verify: bool) -> dict[str, Any]:
    """Compress one image.

    Args:
        verify: decode what was encoded before it is written.

    Returns:
        The record of it.

    Raises:
        DataError: the image cannot be read, coded or written.
        OutOfMemory: there is too little.
    """
    refuse_missing(job.source)
    image, _ = decode(job.source)
    pixels = torch.tensor(image).permute(2, 0, 1).contiguous()
    decode_sec = None
    with naming(job.source):
        begin = time.perf_counter()
        encoded = codec.encode(pixels)
        encode_sec = time.perf_counter() - begin
        if verify:
            begin = time.perf_counter()
            decoded = codec.decode(encoded.data, max_pixels=None)
            if not torch.equal(decoded, encoded.reconstruction):
                raise StreamError("decoding gives other pixels than encoding", hint="report this")
            decode_sec = time.perf_counter() - begin
    _write(job.target, encoded.data)
    _, height, width = pixels.shape
    return {
        **_record(codec, job, Container.unpack(encoded.data)),
        "estimate_bpp": encoded.estimate_bits / (height * width),
        "psnr": psnr(pixels, encoded.reconstruction),
        "encode_sec": encode_sec,
        "coding_sec": encoded.coding_sec,
        "decode_sec": decode_sec,
        "verified": verify,
    }


def decompress(codec: Codec, job: Job, *, max_pixels: int) -> dict[str, Any]:
    """Decompress one file to a PNG, of one channel where the image is grey.

    Returns:
        The record of it; `exact` says whether the picture is the encoder's to the bit.

    Raises:
        DataError: the file cannot be read, decoded or written.
        OutOfMemory: there is too little.
    """
    data = read_stream(job.source)
    with naming(job.source):
        begin = time.perf_counter()
        decoded = codec.decode_checked(data, max_pixels=max_pixels)
        decode_sec = time.perf_counter() - begin
    container = Container.unpack(data)
    pixels = decoded.pixels
    shown = pixels[0] if container.grey else pixels.permute(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(shown.numpy()))
    with _writing(job.target), replacing(job.target) as temporary:
        picture.save(temporary, format="PNG", compress_level=4)
    facts = {"exact": decoded.is_exact, "decode_sec": decode_sec}
    return {**_record(codec, job, container), **facts}


def psnr(image: Tensor, other: Tensor) -> float:
    """In dB, of uint8 images of one size; infinite where they are equal."""
    mse = (image.double() - other.double()).square().mean()
    return float(10 * torch.log10(255**2 / mse))


def _record(codec: Codec, job: Job, container: Container) -> dict[str, Any]:
    paths = {"path": job.target, "source": job.source, "checkpoint": codec.facts.path}
    return {**paths, **container.record()}


def _write(path: Path, data: bytes) -> None:
    with _writing(path):
        write_bytes(path, data)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}", hint="check the disk and permissions"
        ) from error
