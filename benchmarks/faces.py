"""Reading faces at 64, 96 and 128 px: one decode, against one whole pipeline a size.

Ours: `CelebA.read`, which opens and decodes a file once and resizes it to every size, uint8.

Baseline: for each size its own pipeline, as in the system that seed 003 describes: open, convert
to RGB, resize (bilinear), and an array of 0..255 float32 in CHW order.

Both: 178x218 JPEG faces made on the spot, one process a side, sides in turn, the first images
left out, median of the pairs' ratios. Pillow decodes for both; ours resizes with torch.
Both have one thread, and the processor's time is counted, so that other programs matter less.
`--profile` says where our time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs

SIZES = (64, 96, 128)
WARM_UP = 20
BOUND = ">= 2.5"


def main() -> None:
    """Make faces, run both sides in turn, print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--reads", type=int, default=2000, help="timed, each side")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="parts of our time, in ms an image")
    parser.add_argument("--side", choices=["ours", "pipelines"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.side:
        read, count = (_ours if args.side == "ours" else _pipelines)(args.folder)
        print(json.dumps({"rate": _rate(read, count, args.reads)}))
        return
    from imgtool.data.synthetic import make

    with tempfile.TemporaryDirectory() as folder:
        make.make_faces(folder, args.images, seed=0)
        if args.profile:
            print(json.dumps(_parts(Path(folder), args.reads)))
            return

        def side(name: str) -> list[str]:
            words = ["--side", name, "--folder", folder, "--reads", str(args.reads)]
            return [sys.executable, __file__, *words]

        pairs = run_pairs(side("ours"), side("pipelines"), args.pairs, rate=True)
        report("faces_three_sizes", pairs, BOUND, image_sizes=SIZES, num_images=args.images)


def _rate(read: Callable[[int], Any], count: int, reads: int) -> float:
    """Images a second of the processor, each at all sizes."""
    for index in range(WARM_UP):
        read(index % count)
    start = time.process_time()
    for index in range(reads):
        read(index % count)
    return reads / (time.process_time() - start)


def _ours(folder: Path) -> tuple[Callable[[int], Any], int]:
    from imgtool.data.celeba import CelebA

    faces = CelebA(folder, "Smiling", image_sizes=SIZES)
    return faces.read, len(faces)


def _pipelines(folder: Path) -> tuple[Callable[[int], Any], int]:
    import numpy as np
    from PIL import Image

    paths = sorted((folder / "img_align_celeba").iterdir())

    def one(path: Path, size: int) -> Any:
        with Image.open(path) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.array(square, np.float32).transpose(2, 0, 1).copy()

    return lambda index: [one(paths[index], size) for size in SIZES], len(paths)


def _parts(folder: Path, reads: int) -> dict[str, float]:
    """Milliseconds of decoding, and of the rest."""
    from imgtool.data.celeba import resize_squares
    from imgtool.data.images import decode

    paths = sorted((folder / "img_align_celeba").iterdir())
    image = decode(paths[0])[0]
    return {
        "decode_ms": 1e3 / _rate(lambda i: decode(paths[i]), len(paths), reads),
        "resize_ms": 1e3 / _rate(lambda i: resize_squares(image, SIZES), len(paths), reads),
        "read_ms": 1e3 / _rate(*_ours(folder), reads),
    }


if __name__ == "__main__":
    main()
