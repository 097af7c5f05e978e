"""FID: distances, features and memory, each against what pytorch-fid does by default.

`distance`, `distance_cached`: the trace term at d = 2048 from two covariances of 5000 features,
against `scipy.linalg.sqrtm(sigma1 @ sigma2)`; with `cached` the factor of the real side has been
computed before, as it is for the ten blocks of the standard error and further checkpoints.

`inception`: uint8 images of 128 px to features: ours as `eval-fid` runs it (channels_last,
glibc's allocator kept from unmapping, resize included); the baseline is the same network in NCHW
order with the default allocator, images as floats in [0, 1], resized and scaled as pytorch-fid
does it. Batches of 8 on both sides; random weights; rates are of separate processes in turn.

`memory`: peak of ours for the statistics and FID of n and 4 n features, less the features.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from _pairs import report, run_pairs

BOUNDS = {"distance": 8.0, "distance_cached": 14.0, "inception": 1.6}
WIDTH = 2048
NUM_FEATURES = 5000


def main() -> None:
    """Run every comparison, print one JSON record each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="timed, each side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=[*BOUNDS, "memory"])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=NUM_FEATURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    words = ["--images", str(args.images), "--batch", str(args.batch)]
    baselines = {"distance": "sqrtm", "distance_cached": "sqrtm", "inception": "plain_inception"}
    for name, bound in BOUNDS.items():
        if args.only in (None, name):
            side = {"inception": "our_inception"}.get(name, name)
            commands = [
                [sys.executable, __file__, "--side", one, *words] for one in (side, baselines[name])
            ]
            pairs = run_pairs(*commands, args.pairs, rate=True)
            report(name, pairs, f">= {bound}", width=WIDTH, batch_size=args.batch)
    if args.only in (None, "memory"):
        _report_memory()


def _report_memory() -> None:
    used = {}
    for count in (NUM_FEATURES, 4 * NUM_FEATURES):
        command = [sys.executable, __file__, "--side", "memory", "--count", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        used[count] = json.loads(done.stdout.splitlines()[-1])["mb_without_features"]
    few, many = used.values()
    ratio = round(many / few, 3)
    record = {"schema": "imgtool/1", "kind": "benchmark", "name": "memory", "ratio": ratio}
    bound = {"bound": "<= 1.1", "within_bound": ratio <= 1.1, "mb_without_features": used}
    print(json.dumps({**record, **bound}))


def _features(seed: int, count: int) -> Any:
    """(count, 2048) float32 with correlations and a long tail of small variances."""
    import numpy as np

    mix = np.random.default_rng(9).standard_normal((256, WIDTH)).astype(np.float32)
    mix *= np.exp(-np.arange(256, dtype=np.float32) / 40)[:, None] / 16
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, WIDTH), np.float32)
    found *= 0.05
    for start in range(0, count, 1000):
        rows = found[start : start + 1000]
        rows += rng.standard_normal((len(rows), 256), np.float32) @ mix + np.float32(0.4)
        np.maximum(rows, 0, out=rows)
    return found


def _two(count: int) -> list[Any]:
    from imgtool.evaluation.fid.statistics import Statistics

    return [Statistics.of(_features(seed, count)) for seed in (1, 2)]


def _per_sec(work: Callable[[], float], repeats: int = 3) -> dict[str, float]:
    seconds, value = [], 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - begin)
    return {"rate": 1 / min(seconds), "fid": round(value, 6)}


def _distance(args: argparse.Namespace) -> dict[str, float]:
    from dataclasses import replace

    from imgtool.evaluation.fid.statistics import frechet_distance

    real, fake = _two(args.count)
    return _per_sec(lambda: frechet_distance(replace(real), replace(fake)))


def _distance_cached(args: argparse.Namespace) -> dict[str, float]:
    from dataclasses import replace

    from imgtool.evaluation.fid.statistics import frechet_distance

    real, fake = _two(args.count)
    fakes = [replace(fake) for _ in range(3)]
    assert real.cholesky is not None
    return _per_sec(lambda: frechet_distance(real, fakes.pop()))


def _sqrtm(args: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    from scipy import linalg

    real, fake = _two(args.count)

    def work() -> float:
        root = linalg.sqrtm(real.sigma @ fake.sigma)
        shift = real.mu - fake.mu
        spread = np.trace(real.sigma) + np.trace(fake.sigma)
        return float(shift @ shift + spread - 2 * np.trace(root).real)

    return _per_sec(work, repeats=1)


def _images(args: argparse.Namespace) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (args.images, 3, 128, 128)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).split(args.batch)


def _our_inception(args: argparse.Namespace) -> dict[str, float]:
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    extractor = _extractor("clean")
    batches = _images(args)
    extractor(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        extractor(batch)
    return {"rate": args.images / (time.perf_counter() - begin)}


def _plain_inception(args: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    network = _extractor("pytorch-fid").network.to(memory_format=torch.contiguous_format)

    def features(batch: Any) -> Any:
        x = F.interpolate(batch.float() / 255, (299, 299), mode="bilinear", align_corners=False)
        with torch.no_grad():
            return network(2 * x - 1)

    batches = _images(args)
    features(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        features(batch)
    return {"rate": args.images / (time.perf_counter() - begin)}


def _extractor(resize: str) -> Any:
    import torch

    from imgtool.evaluation.fid.extractor import Extractor
    from imgtool.published import Weights

    weights = Weights(None, "random", verified=False)
    return Extractor("inception-fid", weights, resize=resize, device=torch.device("cpu"))


def _memory(args: argparse.Namespace) -> dict[str, float]:
    from imgtool.evaluation.fid.kernel import kernel_distance
    from imgtool.evaluation.fid.statistics import Statistics, extrapolate, frechet_distance
    from imgtool.evaluation.fid.uncertainty import Replicates

    features = [_features(seed, args.count) for seed in (1, 2)]
    real, fake = (Statistics.of(some) for some in features)
    frechet_distance(real, fake)
    Replicates.of(real, fake, 0)
    extrapolate(real, fake)
    kernel_distance(real, fake, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"mb_without_features": round((peak - sum(f.nbytes for f in features)) / 1e6, 1)}


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "distance": _distance,
    "distance_cached": _distance_cached,
    "sqrtm": _sqrtm,
    "our_inception": _our_inception,
    "plain_inception": _plain_inception,
    "memory": _memory,
}


if __name__ == "__main__":
    main()
