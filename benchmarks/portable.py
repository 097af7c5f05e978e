"""What a portable codec costs: the same checkpoint exported with --portable and without.

    python benchmarks/portable.py CKPT... --images DIR [--calibrate DIR] [--threads 1]

One record a checkpoint and direction, of all images of the folder: ours (integers) / baseline
(floating point) of the processor time, each side in a process of its own, every image the quicker
of `--repeat` times. Beside it the bytes, the estimated bits, PSNR and the codecs' own sizes.
The bound on time is 1.3 where int8 products are quick (a processor with VNNI), 2.5 elsewhere; the
goal for bits is 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs

BOUNDS = {"limbs": "<= 1.3", "float64": "<= 2.5"}  # by how products are taken


def main() -> None:
    """Export both, then run the pairs; or one side when called for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpts", nargs="+", metavar="CKPT")
    parser.add_argument("--images", required=True, metavar="DIR")
    parser.add_argument("--calibrate", metavar="DIR", help="the training's images when left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="after one that does not count")
    parser.add_argument("--part", choices=["encode", "decode"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(one_side(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, ckpt in enumerate(options.ckpts):
            files = [
                Path(folder) / f"{number}_{kind}.safetensors" for kind in ("portable", "plain")
            ]
            calibrate = ["--calibrate", options.calibrate] if options.calibrate else []
            export(ckpt, files[0], "--portable", *calibrate)
            export(ckpt, files[1])
            compare(ckpt, files, options)


def export(ckpt: str, file: Path, *words: str) -> None:
    """`imgtool export`."""
    command = [sys.executable, "-m", "imgtool", "export", ckpt, str(file), *words, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def compare(ckpt: str, files: list[Path], options: argparse.Namespace) -> None:
    """Two records of a checkpoint."""
    words = ["--images", options.images, "--threads", str(options.threads)]
    words += ["--repeat", str(options.repeat)]
    for part in ("encode", "decode"):
        ours, baseline = (
            [sys.executable, __file__, str(file), *words, "--part", part] for file in files
        )
        pairs = run_pairs(ours, baseline, options.pairs, rate=True).as_seconds()
        made, plain = pairs.details["ours"], pairs.details["baseline"]
        pairs.details.clear()
        facts = {
            "bpp": round(plain["bytes"] * 8 / plain["pixels"], 4),
            "bytes_ratio": round(made["bytes"] / plain["bytes"], 5),
            "estimate_bits_ratio": round(made["bits"] / plain["bits"], 5),
            "psnr_difference": round(made["psnr"] - plain["psnr"], 4),
            "psnr": round(plain["psnr"], 3),
            "codec_bytes": [file.stat().st_size for file in files],
            "products": made["products"],
        }
        about = {key: plain[key] for key in ("model_name", "lmbda", "iteration")}
        bound = BOUNDS[made["products"]]
        report(
            f"portable_{part}", pairs, bound, ckpt=ckpt, threads=options.threads, **about, **facts
        )


def one_side(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of processor time, and what became of them."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.data.images import SUFFIXES, decode
    from imgtool.evaluation.codec.export import open_codec
    from imgtool.evaluation.codec.integer.products import CHOSEN
    from imgtool.nn.quality import mse, psnr

    torch.set_num_threads(options.threads)
    codec = open_codec(options.ckpts[0], device="cpu", threads=options.threads)
    paths = sorted(p for p in Path(options.images).iterdir() if p.suffix.lower() in SUFFIXES)
    seconds, found = 0.0, {"bytes": 0, "bits": 0.0, "pixels": 0, "psnr": 0.0}
    with torch.no_grad():
        for path in paths:
            image = torch.tensor(decode(path)[0]).permute(2, 0, 1).contiguous()
            made = codec.encode(image)
            times = []
            for _ in range(options.repeat):
                begin = time.process_time()
                codec.encode(image) if options.part == "encode" else codec.decode(made.data)
                times.append(time.process_time() - begin)
            seconds += min(times)
            found["bytes"] += len(made.data)
            found["bits"] += made.estimate_bits
            found["pixels"] += image[0].numel()
            error = mse(image.double()[None] / 255, made.reconstruction.double()[None] / 255)
            found["psnr"] += float(psnr(error)) / len(paths)
    facts = codec.facts
    return {
        "rate": len(paths) / seconds,
        "model_name": facts.model_name,
        "lmbda": facts.lmbda,
        "iteration": facts.iteration,
        "products": CHOSEN.way(codec.device),
        **found,
    }


if __name__ == "__main__":
    main()
