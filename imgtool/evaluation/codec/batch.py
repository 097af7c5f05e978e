"""The work on one image of many: from its file to an .hpcm file, and back to a PNG.

Networks come first; what they leave to do, a thread may do beside the next image's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgtool.data.images import decode
from imgtool.errors import DataError
from imgtool.evaluation.codec.codecs import Codecs
from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.evaluation.codec.plan import Job, naming, read_stream, refuse_missing
from imgtool.evaluation.codec.target import Target
from imgtool.files import replacing, write_bytes

Finish = Callable[[], dict[str, Any]]


def compress(
    codecs: Codecs,
    job: Job,
    *,
    verify: bool,
    lmbda: float | None = None,
    target: Target | None = None,
) -> Finish:
    """Begin to compress one image.

    Args:
        verify: decode what was encoded before it is written.
        lmbda, target: as `Codecs.encode`.

    Returns:
        What codes it, writes it and returns its record.

    Raises:
        DataError: the image cannot be read, coded or written.
        NoAnswer: the target is out of reach.
        OutOfMemory: there is too little.
    """
    refuse_missing(job.source)
    image, _ = decode(job.source)
    pixels = torch.tensor(image).permute(2, 0, 1).contiguous()
    decode_sec = None
    with naming(job.source):
        code = codecs.begin(pixels, lmbda=lmbda, target=target)
        if verify:
            chosen = code()
            begin = time.perf_counter()
            decoded = chosen.codec.decode(chosen.encoded.data, max_pixels=None)
            if not torch.equal(decoded, chosen.encoded.reconstruction):
                raise StreamError("decoding gives other pixels than encoding", hint="report this")
            decode_sec = time.perf_counter() - begin
            code = lambda: chosen  # noqa: E731

    def finish() -> dict[str, Any]:
        with naming(job.source):
            chosen = code()
        encoded = chosen.encoded
        _write(job.target, encoded.data)
        _, height, width = pixels.shape
        return {
            **_record(codecs, job, Container.unpack(encoded.data)),
            "estimate_bpp": encoded.estimate_bits / (height * width),
            "psnr": chosen.psnr,
            **chosen.facts,
            "encode_sec": chosen.encode_sec,
            "coding_sec": encoded.coding_sec,
            "decode_sec": decode_sec,
            "verified": verify,
        }

    return finish


def decompress(codecs: Codecs, job: Job, *, max_pixels: int) -> Finish:
    """Begin to decompress one file to a PNG, of one channel where the image is grey.

    Returns:
        What writes it and returns its record; `exact` says whether the picture is the encoder's to
        the bit.

    Raises:
        DataError: the file cannot be read, decoded or written.
        OutOfMemory: there is too little.
    """
    data = read_stream(job.source)
    with naming(job.source):
        container = Container.unpack(data)
        codec = codecs.of(container)
        begin = time.perf_counter()
        decoded = codec.decode_checked(data, max_pixels=max_pixels)
        decode_sec = time.perf_counter() - begin

    def finish() -> dict[str, Any]:
        pixels = decoded.pixels
        shown = pixels[0] if container.grey else pixels.permute(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(shown.numpy()))
        with _writing(job.target), replacing(job.target) as temporary:
            picture.save(temporary, format="PNG", compress_level=4)
        facts = {"exact": decoded.is_exact, "decode_sec": decode_sec}
        return {**_record(codecs, job, container), **facts}

    return finish


def _record(codecs: Codecs, job: Job, container: Container) -> dict[str, Any]:
    paths = {"path": job.target, "source": job.source, "checkpoint": codecs.path}
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
