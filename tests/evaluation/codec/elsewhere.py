"""Another machine, as far as an environment makes one: decodes files and says what it found.

    python -m tests.evaluation.codec.elsewhere CODEC FILE [THREADS]

Prints a line of JSON: the CRC of the latents, whether the pixels are the encoder's, or the error.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import torch

from imgtool.errors import DataError
from imgtool.evaluation.codec.codec import Codec
from imgtool.evaluation.codec.export import open_codec


def latents_crc(codec, data):
    """Of y_hat, and whether the picture is the encoder's."""
    seen = []

    class Seeing(Codec):
        def _pixels(self, y_hat, *args):
            seen.append(zlib.crc32(y_hat.contiguous().numpy().data))
            return super()._pixels(y_hat, *args)

    codec.__class__ = Seeing
    try:
        return seen, codec.decode_checked(data).is_exact
    finally:
        codec.__class__ = Codec


def main(path, file, threads=None):
    codec = open_codec(path, device="cpu", threads=threads and int(threads))
    found = []
    for mkldnn in (True, False):
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            try:
                (crc,), is_exact = latents_crc(codec, Path(file).read_bytes())
                found.append({"crc": crc, "exact": is_exact})
            except DataError as error:
                found.append({"error": str(error)})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
