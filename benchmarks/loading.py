"""Loading images of 512 px, against torchvision's usual way, with the same number of workers.

Ours: `open_datasets` + `train_loader` as the engine uses them: whole images, random horizontal
flips for photos, masks and labels for layouts (their mask cache is warm, as after the first
epoch), batches of uint8 in channels_last order; images are decoded again every epoch
(`cache=none`) but in the comparison `packed`, which reads a packed file.

Baseline: `ImageFolder` + `RandomHorizontalFlip` (photos) + `ToTensor` + `Normalize` in a
`DataLoader`: float32 batches in NCHW order; no masks.

Both: batches of 16, arrival in the main process, worker start-up and the first batches left
out, one process a side, sides in turn, median of the pairs' ratios. Images are made on the
spot. `memory` is ours over ten epochs of JPEG photos, main process and workers together
(proportional set size, so that shared pages count once): the last three epochs against the
second to fourth, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs

BATCH = 16
WARM_UP = 4
BOUNDS = {"jpeg_photos": 1.5, "png_layouts": 1.5, "png_photos": 1.15, "packed": 10.0}


def main() -> None:
    """Make images, run every comparison, print one JSON record each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batches", type=int, default=24, help="timed, each side")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=[*BOUNDS, "memory"])
    parser.add_argument("--side", choices=["ours", "torchvision", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = {"ours": _ours, "torchvision": _torchvision, "memory": _memory}[args.side]
        print(json.dumps(side(args.folder, args.batches, args.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(Path(folder), args)


def _compare(folder: Path, args: argparse.Namespace) -> None:
    sources = _make(folder, args.images, args.size)
    facts = {"workers": args.workers, "batch_size": BATCH, "size_px": args.size}

    def side(name: str, source: Path, batches: int) -> list[str]:
        words = ["--side", name, "--folder", str(source), "--batches", str(batches)]
        return [sys.executable, __file__, *words, "--workers", str(args.workers)]

    for name, bound in BOUNDS.items():
        if args.only not in (None, name):
            continue
        ours, theirs = sources[name]
        more = 10 if name == "packed" else 1  # a few batches would be over in milliseconds
        pairs = run_pairs(
            side("ours", ours, args.batches * more),
            side("torchvision", theirs, args.batches),
            args.pairs,
            rate=True,
        )
        report(name, pairs, f">= {bound}", **facts)
    if args.only in (None, "memory"):
        ours, _ = sources["jpeg_photos"]
        done = subprocess.run(side("memory", ours, 0), check=True, capture_output=True, text=True)
        used = json.loads(done.stdout.splitlines()[-1])["epochs_mb"]
        ratio = round(statistics.median(used[-3:]) / statistics.median(used[1:4]), 3)
        record = {"schema": "imgtool/1", "kind": "benchmark", "name": "memory", "ratio": ratio}
        bound = {"bound": "<= 1.1", "within_bound": ratio <= 1.1, "epochs_mb": used}
        print(json.dumps({**record, **bound, **facts}))


def _make(folder: Path, count: int, size: int) -> dict[str, tuple[Path, Path]]:
    """Per comparison: what ours reads, and the ImageFolder with the same pictures."""
    from imgtool.data.check import open_source
    from imgtool.data.packing import pack
    from imgtool.data.synthetic import make

    roots = {}
    for kind in ("jpg", "png"):
        roots[kind] = folder / kind
        make.make_photos(roots[kind] / "all", count, size=size, seed=0, image_format=kind)
    roots["plans"] = folder / "plans"
    made = make.make_layouts(roots["plans"] / "all", count, size=size, seed=0)
    packed = folder / "photos.safetensors"
    pack(open_source(roots["png"], "photos"), packed)
    return {
        "jpeg_photos": (roots["jpg"], roots["jpg"]),
        "png_layouts": (Path(made.path), roots["plans"]),
        "png_photos": (roots["png"], roots["png"]),
        "packed": (packed, roots["png"]),
    }


def _rate(batches: Iterator[Any], count: int) -> float:
    """Images a second after the warm-up."""
    for _ in islice(batches, WARM_UP):
        pass
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    return count * BATCH / (time.perf_counter() - start)


def _open(source: Path, workers: int) -> tuple[Any, Iterator[Any], int]:
    from imgtool.config.schema import Data
    from imgtool.data.datasets import open_datasets
    from imgtool.data.loader import train_loader

    is_plans = source.suffix == ".csv"
    data = Data(
        dataset="layouts" if is_plans else "photos",
        **{"manifest" if is_plans else "root": str(source)},
        val_fraction=0.0,
        test_fraction=0.0,
        cache="none",
        cache_dir=str(source.parent / "masks"),
    )
    datasets = open_datasets(data)
    for index in range(len(datasets.train) if is_plans else 0):
        datasets.train.read(index)  # masks are computed once, in the first epoch
    batches = train_loader(
        datasets.train,
        data,
        seed=0,
        batch_size=BATCH,
        start_batch=0,
        rank=0,
        world_size=1,
        num_workers=workers,
        pin_memory=False,
    )
    return datasets, batches, len(datasets.train)


def _ours(source: Path, count: int, workers: int) -> dict[str, float]:
    _, batches, _ = _open(source, workers)
    return {"rate": _rate(batches, count)}


def _torchvision(source: Path, count: int, workers: int) -> dict[str, float]:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    if source.name != "plans":
        steps.insert(0, transforms.RandomHorizontalFlip())
    folder = ImageFolder(str(source), transforms.Compose(steps))
    loader = DataLoader(
        folder, BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    return {"rate": _rate(endless(), count)}


def _memory(source: Path, count: int, workers: int) -> dict[str, Any]:
    """MB after each of ten epochs."""
    _, batches, num_images = _open(source, workers)
    used = []
    for _ in range(10):
        for _ in islice(batches, -(-num_images // BATCH)):
            pass
        used.append(round(_used_bytes() / 1e6, 1))
    return {"epochs_mb": used}


def _used_bytes() -> int:
    import multiprocessing
    import os

    total = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    main()
