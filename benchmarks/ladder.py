"""A rate ladder of HPCM_Tiny against separate trainings, at several seeds.

    python benchmarks/ladder.py --train ../shared/data/kodak/train --test ../shared/data/kodak/test \\
        --root out/ladder [--iterations 10000] [--part 1/5] [--seeds 0 1 2] [--slots 1]

`--iterations` are those of one lambda, trained by itself. Three ways to four lambdas, all by
`imgtool sweep`: each lambda trained by itself (`separate`); a ladder (`ladder`), whose highest
lambda is the same training; and each by itself for as many iterations as a training of the ladder
has on average (`short`), which is what the ladder's time would buy without it. The same command
goes on where it was ended. Then the codecs are measured on the test images, with the bits of the
likelihoods, and a record for each comparison has the BD-rate over all images and seeds with its
interval (imgtool.evaluation.rate_distortion.compare), and that of each seed's averaged curves; of
short trainings, whose curves do not rise, there is none. The last record has iterations, training
time and points of each way, and at each lambda its own rate-distortion loss, bpp + lambda 255^2 mse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPEC = """\
sweep: {name}
base: hpcm/tiny
matrix: {{loss.lmbda: [{lambdas}]}}
seeds: [{seeds}]
root: {root}
shared_dir: {shared}
set: {{data.root: {train}, data.val_fraction: {val}, train.max_iter: {iterations},
  train.val_every: {every}, train.save_every: {every}, train.sample_every: {iterations},
  train.device: cpu, train.threads: 1, data.num_workers: 0}}
"""
RECORD = {"schema": "imgtool/1", "kind": "benchmark", "name": "ladder"}
IMGTOOL = [sys.executable, "-m", "imgtool"]


def main() -> None:
    """Train what is not trained yet, then measure; one JSON record a comparison, and a last one."""
    args = _arguments()
    root = Path(args.root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    specs = {"full": _spec(args, root, "full", args.iterations)}
    ladder = _plan(specs["full"], args.part)
    total = sum(trial.loaded.experiment.train.max_iter for trial in ladder)
    specs["short"] = _spec(args, root, "short", -(-total // len(ladder)))
    ways = {
        "separate": (specs["full"], []),
        "ladder": (specs["full"], ["--ladder", "--ladder-part", args.part]),
        "short": (specs["short"], []),
    }
    for spec, words in ways.values():
        command = [*IMGTOOL, "sweep", str(spec), *words, "--slots", str(args.slots), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    trials = {
        "separate": _plan(specs["full"], None),
        "ladder": ladder,
        "short": _plan(specs["short"], None),
    }
    curves = {name: _curves(found, args.test) for name, found in trials.items()}
    for test, anchor in (("ladder", "separate"), ("short", "separate"), ("ladder", "short")):
        print(json.dumps({**RECORD, **_compared(test, anchor, curves)}), flush=True)
    facts = {
        "iterations": {name: _sum(found, "iteration") for name, found in trials.items()},
        "training_sec": {name: _sum(found, "elapsed_sec") for name, found in trials.items()},
        "part": args.part,
        "seeds": args.seeds,
        "lambdas": sorted(args.lambdas),
        "points": {name: _points(found) for name, found in curves.items()},
        "rd_losses": {name: _rd_losses(found, args.lambdas) for name, found in curves.items()},
        "load": os.getloadavg()[0],
    }
    print(json.dumps({**RECORD, **facts}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--part", default="1/5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0035, 0.0067, 0.013, 0.0483])
    return parser.parse_args()


def _spec(args: argparse.Namespace, root: Path, name: str, iterations: int) -> Path:
    path = root / f"{name}.yaml"
    text = SPEC.format(
        name=name,
        lambdas=", ".join(map(str, args.lambdas)),
        seeds=", ".join(map(str, args.seeds)),
        root=json.dumps(str(root / name)),
        shared=json.dumps(str(root / "tables" / name)),
        train=json.dumps(str(args.train.absolute())),
        val=0.13,  # of Kodak's eight one
        iterations=iterations,
        every=max(min(50, iterations), iterations // 20),
    )
    path.write_text(text)
    return path


def _plan(spec: Path, part: str | None) -> Sequence[Any]:
    """The trials of a sweep; of a ladder where there is a part."""
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan

    return make_plan(str(spec), schema_of=schema, ladder=part).trials


def _curves(trials: Sequence[Any], test: Path) -> Sequence[Any]:
    """A curve a seed, in the order of the seeds."""
    from imgtool.evaluation.rate_distortion.experiments import curves_of, group

    (study,) = group([trial.directory.path for trial in trials])
    return curves_of([study], data=str(test), device="cpu")[study.name]


def _compared(test: str, anchor: str, curves: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """BD-rates over all images and seeds, and those of the averaged curves of each seed."""
    from imgtool.errors import NoAnswer
    from imgtool.evaluation.rate_distortion.bd_rate import bd_rate
    from imgtool.evaluation.rate_distortion.compare import compare

    try:
        found = compare(curves[anchor], curves[test]).record()
        pairs = zip(curves[anchor], curves[test], strict=True)
        each = [bd_rate(one.mean(), other.mean(), "pchip").percent for one, other in pairs]
    except NoAnswer as error:
        return {"way": test, "anchor": anchor, "problem": str(error)}
    spread = statistics.stdev(each) if len(each) > 1 else None
    more = {"seeds_percent": each, "mean_percent": statistics.fmean(each), "std_percent": spread}
    return {**found, "name": RECORD["name"], "way": test, "anchor": anchor, **more}


def _points(curves: Sequence[Any]) -> list[list[list[float]]]:
    """(bpp, PSNR) of each lambda, a list a seed."""
    return [
        [[round(b, 5), round(q, 3)] for b, q in zip(one.bpp.mean(1), one.quality_db.mean(1), strict=True)]
        for one in curves
    ]  # fmt: skip


def _rd_losses(curves: Sequence[Any], lambdas: Sequence[float]) -> dict[float, list[float]]:
    """Of each lambda, one a seed: by the mean rate and the mean PSNR of the images."""
    points = _points(curves)
    return {
        lmbda: [
            round(seed[number][0] + lmbda * 255**2 * 10 ** (-seed[number][1] / 10), 3)
            for seed in points
        ]
        for number, lmbda in enumerate(sorted(lambdas))
    }


def _sum(trials: Sequence[Any], key: str) -> float:
    from imgtool.sweep.state import read_state

    return round(sum(getattr(read_state(trial.directory), key) or 0 for trial in trials), 1)


if __name__ == "__main__":
    main()
