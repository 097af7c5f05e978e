"""Encoding a data set, against the encoder by itself.

Ours: `imgtool encode` as the command runs it: packed images or PNG files are loaded, encoded,
brought back, and written as float16 by a thread; the clock runs from the first image asked for to
the last row on the disk, statistics and fingerprint left out.

Baseline: `Task.encode` of the same autoencoder on one batch that is ready on the device, over and
over: as many images.

One process a side, sides in turn, median of the pairs' ratios; the processor time of an image
(without that of loader processes) says what a busy machine hides. `bound` is 0.95 for packed images,
which cost no decoding; PNG is told without one, since without a core to spare decoding costs what
it costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from _pairs import report, run_pairs


def main() -> None:
    """Make images and an autoencoder, run both comparisons, print a JSON record each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=32, help="base_channels of the encoder")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, help="loader processes; chosen by the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["packed", "png"])
    parser.add_argument("--side", choices=["ours", "encoder"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        rate, cpu_sec = _rate(args)
        print(json.dumps({"rate": rate, "cpu_sec_per_image": cpu_sec / args.images}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = _make(folder, args)
        for kind, bound in (("packed", ">= 0.95"), ("png", None)):
            if args.only not in (None, kind):
                continue
            words = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
            words += ["--data", str(sources[kind])]
            pairs = run_pairs(
                [*words, "--side", "ours"], [*words, "--side", "encoder"], args.pairs, rate=True
            )
            facts = {"images": args.images, "size_px": args.size, "channels": args.channels}
            report(f"encode_{kind}", pairs, bound, device=args.device, **facts)


def _make(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    from imgtool.data.packing import pack
    from imgtool.data.photos import PhotoFolder
    from imgtool.data.synthetic.make import make_photos

    make_photos(folder / "photos", args.images, size=args.size, seed=0)
    pack(PhotoFolder(folder / "photos"), folder / "photos.safetensors")
    _train(folder, args)
    return {"packed": folder / "photos.safetensors", "png": folder / "photos"}


def _train(folder: Path, args: argparse.Namespace) -> None:
    """An autoencoder after one iteration: as quick as a good one."""
    from commands.main import main as imgtool

    words = (
        *("train", "autoencoder", "--heads", "rgb", "--downsampling-steps", "3"),
        *("--base-channels", str(args.channels), "--crop", "64", "--batch-size", "2"),
        *("--max-iter", "1", "--no-final-validation", "--device", "cpu", "--num-workers", "0"),
        *("--data-root", str(folder / "photos"), "--exp-dir", str(folder / "ae"), "--quiet"),
    )
    try:
        imgtool(list(words))
    except SystemExit as end:
        if end.code:
            raise


def _rate(args: argparse.Namespace) -> tuple[float, float]:
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.evaluation.encoding.encode import Options, Plan, encode_own, make_plan
    from imgtool.process.stopping import StopRequest
    from imgtool.training.ranks import Ranks

    options = Options(
        dtype="float16",
        image_size=0,
        crop=args.size,
        device=args.device,
        num_workers=args.workers,
    )
    plan = make_plan(str(args.folder / "ae"), args.data, options, Ranks())

    def wait() -> None:
        if plan.device.type == "cuda":
            torch.cuda.synchronize()

    def encoder(plan: Plan) -> tuple[float, float]:
        from imgtool.training.environment import cpu_threads

        torch.set_num_threads(cpu_threads(1, 0))
        size = (plan.batch_size, *plan.size, 3)
        images = torch.randint(0, 256, size, dtype=torch.uint8).permute(0, 3, 1, 2)
        images = images.to(plan.device)
        images = images if plan.nhwc else images.contiguous()
        with torch.no_grad():
            plan.task.encode(images)
            wait()
            start, cpu = time.perf_counter(), time.process_time()
            for rows in plan.batches():
                plan.task.encode(images[: len(rows)])
            wait()
        rate = len(plan.images) / (time.perf_counter() - start)
        return rate, time.process_time() - cpu

    def ours(plan: Plan) -> tuple[float, float]:
        from imgtool.data.latent_writing import beginning

        blank = torch.zeros((plan.batch_size, 3, *plan.size), dtype=torch.uint8)
        with torch.no_grad():
            plan.task.encode(blank.to(plan.device))
        wait()
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "x.safetensors"
            with beginning(out, plan.contents):
                start, cpu = time.perf_counter(), time.process_time()
                encode_own(plan, out, Ranks(), StopRequest())
                rate = len(plan.images) / (time.perf_counter() - start)
                return rate, time.process_time() - cpu

    return {"ours": ours, "encoder": encoder}[args.side](plan)


if __name__ == "__main__":
    main()
