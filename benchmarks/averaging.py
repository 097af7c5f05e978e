"""PSNR of averaged weights (EMA) beside those of the weights themselves, by length of the run.

The autoencoder of the engine's benchmark is trained once from scratch with `--ema-decay 0.999`.
At each length the validation images are reconstructed twice: with the averages, as validation
does, and with the weights as they are. A third row shows what averages without a warm-up of the
decay would give. The bound: at no length are the averages more than 0.5 dB below the weights.

One process, one seed a run: `--seeds` repeats it, and the worst difference counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from engine import loaded

LENGTHS = (5, 10, 20, 50, 100, 250, 500, 1000)
DECAY = 0.999
BOUND_DB = -0.5


def measure(root: Path, threads: int, seed: int, lengths: tuple[int, ...]) -> list[dict]:
    """PSNR in dB at each length, of the weights, the averages, and averages without warm-up."""
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.report import Silence

    prepare(deterministic=False)
    import torch

    from imgtool.training import loop, run

    rows: list[dict] = []

    class Watched(loop.Loop):
        def _iterate(self) -> bool:
            done = super()._iterate()
            stepper, number = self.run.stepper, self.run.position.iteration
            if number == 1:
                self.cold = [tensor.clone() for tensor in first]
            for cold, now in zip(self.cold, stepper.averages.sources, strict=True):
                cold.lerp_(now, 1 - DECAY)
            if number in lengths:
                rows.append({"iteration": number, **self.look()})
            return done

        def look(self) -> dict[str, float]:
            averages, validator = self.run.stepper.averages, self.run.validator
            kept = averages.averages
            found = {"averaged_db": self.psnr(validator)}
            averages.averages = self.cold
            found["without_warm_up_db"] = self.psnr(validator)
            averages.averages = kept
            validator.averages = None
            found["weights_db"] = self.psnr(validator)
            validator.averages = averages
            return found

        def psnr(self, validator) -> float:
            return validator.metrics(lambda tensor: tensor, lambda number: True)["val_psnr"]

        def __call__(self):
            first.extend(tensor.clone() for tensor in self.run.stepper.averages.sources)
            return super().__call__()

    first: list[torch.Tensor] = []
    run.Loop = Watched
    sets = [
        *(f"train.max_iter={max(lengths)}", f"train.threads={threads}", f"train.seed={seed}"),
        *(f"train.ema_decay={DECAY}", "data.val_fraction=0.2"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        directory = ExperimentDir(folder)
        directory.create()
        run.train(loaded(root, *sets), directory, stop=StopRequest(), reporter=Silence())
    return rows


def main() -> None:
    """Train, and print one record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=max(LENGTHS))
    options = parser.parse_args()
    from imgtool.data.synthetic.make import make_photos

    lengths = tuple(length for length in LENGTHS if length <= options.longest)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        make_photos(root, 20, size=256, seed=0)
        (root / "made.json").unlink()
        runs = [measure(root, options.threads, seed, lengths) for seed in range(options.seeds)]
    differences = [[row["averaged_db"] - row["weights_db"] for row in rows] for rows in runs]
    record = {
        "schema": "imgtool/1",
        "kind": "benchmark",
        "name": "averaging",
        "bound": f">= {BOUND_DB} dB",
        "worst_difference_db": round(min(map(min, differences)), 3),
        "within_bound": min(map(min, differences)) >= BOUND_DB,
        "rows": [[{k: round(v, 2) for k, v in row.items()} for row in rows] for rows in runs],
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
