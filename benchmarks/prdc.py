"""Precision, recall, density, coverage and KID: time and peak memory, against the peers' way.

`prdc`: features to the four numbers with their standard errors, against whole matrices of
distances as the package prdc 0.2 makes them (float64 products kept as float32, three of them,
each partitioned at once; no errors). `kid`: KID over all images with its error and over 100
subsets of 1000, against the subsets alone as torch-fidelity does them, in float32.

n images a side, 2048 numbers each, in processes of their own, in turn. `peak_mb` is the highest
resident memory of a process, features and libraries included.

    python benchmarks/prdc.py --n 10000 --pairs 3
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from _pairs import report, run_pairs

WIDTH = 2048
K = 5
MOST_MB = 2000
BOUNDS = {"prdc": "<= 1.0", "kid": "<= 4.0", "both": "<= 1.0"}


def main() -> None:
    """Run both comparisons, print a JSON record each, and fail where memory is beyond 2 GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="images a side")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=list(BOUNDS))
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(_measured(SIDES[args.side], args.n)))
        return
    within = []
    for name, bound in BOUNDS.items():
        if args.only in (None, name):
            commands = [
                [sys.executable, __file__, "--n", str(args.n), "--side", side]
                for side in (name, f"peer_{name}")
            ]
            pairs = run_pairs(*commands, args.pairs, rate=True).as_seconds()
            report(name, pairs, bound, n=args.n, width=WIDTH, bound_mb=MOST_MB)
            within.append(pairs.details["ours"]["peak_mb"] <= MOST_MB)
    raise SystemExit(0 if all(within) else 1)


def _measured(work: Callable[[Any, Any], dict[str, float]], n: int) -> dict[str, Any]:
    real, fake = _features(1, n), _features(2, n)
    begin = time.perf_counter()
    found = work(real, fake)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"rate": 1 / seconds, "peak_mb": round(peak), **found}


def _features(seed: int, n: int) -> Any:
    """(n, 2048) float32 of 40 strong directions, as networks' features have."""
    import numpy as np

    mix = np.random.default_rng(9).standard_normal((40, WIDTH)).astype(np.float32) / 6
    rng = np.random.default_rng(seed)
    found = np.empty((n, WIDTH), np.float32)
    for start in range(0, n, 1000):
        rows = found[start : start + 1000]
        rows[:] = rng.standard_normal((len(rows), 40), np.float32) @ mix
        rows += rng.standard_normal(rows.shape, np.float32) * np.float32(0.02)
        np.maximum(rows + np.float32(0.4), 0, out=rows)
    return found


def _statistics(features: Any) -> Any:
    """Features alone: neither measure looks at moments."""
    import numpy as np

    from imgtool.evaluation.fid.statistics import Statistics

    return Statistics(np.zeros(1), np.zeros((1, 1)), len(features), features)


def _prdc(real: Any, fake: Any) -> dict[str, float]:
    from imgtool.evaluation.fid.neighbourhoods import neighbourhoods

    found = neighbourhoods(_statistics(real), _statistics(fake), K)
    assert found is not None
    return {name: round(value, 6) for name, value in found.values.items()}


def _kid(real: Any, fake: Any) -> dict[str, float]:
    from imgtool.evaluation.fid.kernel import kernel_distance

    found = kernel_distance(_statistics(real), _statistics(fake), 0)
    assert found is not None
    return {"kid": round(found.value, 6), "kid_subsets": round(found.subsets, 6)}


def _both(real: Any, fake: Any) -> dict[str, float]:
    from imgtool.evaluation.fid.kernel import KernelSums
    from imgtool.evaluation.fid.neighbourhoods import Manifolds
    from imgtool.evaluation.fid.products import visit

    sides = _statistics(real), _statistics(fake)
    kernel, manifolds = KernelSums.of(*sides, 0), Manifolds.of(*sides, K)
    assert kernel is not None
    assert manifolds is not None
    visit(real, fake, [kernel, manifolds])
    return {"kid": round(kernel.result().value, 6), **manifolds.result().values}


def _peer_both(real: Any, fake: Any) -> dict[str, float]:
    return {**_peer_prdc(real, fake), **_peer_kid(real, fake)}


def _whole_distances(x: Any, y: Any) -> Any:
    import numpy as np

    found = np.empty((len(x), len(y)), np.float32)
    squares = np.square(y, dtype=np.float64).sum(axis=1)
    for start in range(0, len(x), 2000):  # scikit-learn casts float32 up in pieces
        rows = x[start : start + 2000].astype(np.float64)
        products = -2 * rows @ y.astype(np.float64).T
        products += np.square(rows).sum(axis=1)[:, None] + squares
        found[start : start + 2000] = np.sqrt(np.maximum(products, 0))
    return found


def _peer_prdc(real: Any, fake: Any) -> dict[str, float]:
    import numpy as np

    def radii(features: Any) -> Any:
        distances = _whole_distances(features, features)
        np.fill_diagonal(distances, 0)
        nearest = np.argpartition(distances, K + 1, axis=-1)[..., : K + 1]
        return np.take_along_axis(distances, nearest, axis=-1).max(axis=-1)

    of_real, of_fake = radii(real), radii(fake)
    distances = _whole_distances(real, fake)
    within = distances < of_real[:, None]
    return {
        "precision": round(float(within.any(axis=0).mean()), 6),
        "recall": round(float((distances < of_fake[None]).any(axis=1).mean()), 6),
        "density": round(float(within.sum(axis=0).mean() / K), 6),
        "coverage": round(float((distances.min(axis=1) < of_real).mean()), 6),
    }


def _peer_kid(real: Any, fake: Any) -> dict[str, float]:
    import numpy as np

    rng, found, size = np.random.RandomState(2020), [], min(1000, len(real))
    for _ in range(100):
        x = real[rng.choice(len(real), size, replace=False)]
        y = fake[rng.choice(len(fake), size, replace=False)]
        xx, yy, xy = ((a @ b.T / WIDTH + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        inside = sum(float(k.sum() - np.trace(k)) for k in (xx, yy))
        found.append(inside / (size * (size - 1)) - 2 * float(xy.mean()))
    return {"kid_subsets": round(float(np.mean(found)), 6)}


SIDES: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    "prdc": _prdc,
    "peer_prdc": _peer_prdc,
    "kid": _kid,
    "peer_kid": _peer_kid,
    "both": _both,
    "peer_both": _peer_both,
}


if __name__ == "__main__":
    main()
