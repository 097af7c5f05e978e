"""Images a second of the engine, against a bare PyTorch loop on the same model, batch and data.

Both sides train the autoencoder of the README (128 px crops, batch 8) on the CPU from images
that are already decoded in memory, with the same number of threads, NCHW weights (the quicker
order on a CPU), a fused AdamW, and the same allocator settings. The bare side is what a researcher writes by
hand: a loop over random crops, forward, backward, step; it checks nothing and logs nothing.
The engine's side is `imgtool train` as users get it, its checks and logs included, but no
validation or checkpoint inside the measured iterations. The first iterations are not counted.

A second comparison has a model, crops and batches so small that what the engine itself takes
for an iteration stands out: `own_ms`, the difference of the two sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _pairs import Pairs, report, run_pairs

WARM_UP = 10
OWN_MS = 0.5  # an iteration's limit


@dataclass(frozen=True)
class Work:
    """What both sides train; `blocks` of so many iterations are timed, and the median counts."""

    iterations: int
    blocks: int
    batch: int
    crop: int
    steps: int

    @property
    def last(self) -> int:
        """The last iteration that is timed."""
        return WARM_UP + self.iterations * self.blocks

    def rate(self, times: dict[int, float]) -> float:
        """Images a second, from the time at the end of each iteration."""
        ends = range(WARM_UP, self.last + 1, self.iterations)
        spans = [times[b] - times[a] for a, b in zip(ends, ends[1:], strict=False)]
        return self.iterations * self.batch / statistics.median(spans)


WORKS = {
    "engine": Work(iterations=60, blocks=1, batch=8, crop=128, steps=3),
    "engine_tiny": Work(iterations=50, blocks=20, batch=2, crop=32, steps=2),
}
SETTINGS = [
    "model.latent_channels=8",
    "model.base_channels=16",
    "model.heads=[rgb]",
    "data.num_workers=0",
    "train.lr=1e-3",
    "train.val_every=100000",
    "train.save_every=100000",
    "train.sample_every=100000",
    "train.device=cpu",
]


def loaded(work: Work, root: Path, *more: str):
    """The experiment that both sides train."""
    from imgtool.config.load import load
    from imgtool.models.registry import schema

    sizes = [
        f"data.crop={work.crop}",
        f"train.batch_size={work.batch}",
        f"model.downsampling_steps={work.steps}",
    ]
    sets = [*SETTINGS, *sizes, f"data.root={root}", *more]
    return load(None, family="autoencoder", schema_of=schema, sets=sets)


def engine(work: Work, root: Path, threads: int) -> float:
    """Images a second of `imgtool.training.run.train` between two iterations."""
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.report import Silence

    prepare(deterministic=False)
    from imgtool.training.run import train

    times: dict[int, float] = {}

    class Clock(Silence):
        def progress(self, progress):
            times.setdefault(progress.iteration, time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        directory = ExperimentDir(folder)
        directory.create()
        more = f"train.max_iter={work.last}", f"train.threads={threads}"
        experiment = loaded(work, root, *more)
        train(experiment, directory, stop=StopRequest(), reporter=Clock())
    return work.rate(times)


def bare(work: Work, root: Path, threads: int) -> float:
    """Images a second of a loop written by hand."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import numpy as np
    import torch
    from PIL import Image

    from imgtool.models.autoencoder.network import Autoencoder

    torch.set_num_threads(threads)
    torch.manual_seed(42)
    network = Autoencoder(loaded(work, root).experiment.model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(root.iterdir())]
    rng = np.random.default_rng(42)

    def crop() -> np.ndarray:
        image = images[rng.integers(len(images))]
        top, left = (int(rng.integers(side - work.crop + 1)) for side in image.shape[:2])
        patch = image[top : top + work.crop, left : left + work.crop]
        return patch[:, ::-1] if rng.integers(2) else patch

    times = {}
    for iteration in range(1, work.last + 1):
        crops = np.stack([crop() for _ in range(work.batch)])
        batch = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
        x = batch.float() / 127.5 - 1
        x_hat = network.decode(network.encode(x).z)["rgb"]
        loss = torch.nn.functional.mse_loss(x_hat, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times[iteration] = time.perf_counter()
    return work.rate(times)


def main() -> None:
    """Run both sides in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["engine", "bare"])
    parser.add_argument("--work", choices=list(WORKS), action="append")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if options.side:
        side = engine if options.side == "engine" else bare
        print(json.dumps({"rate": side(WORKS[options.work[0]], options.root, options.threads)}))
        return
    from imgtool.data.synthetic.make import make_photos

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        make_photos(root, 16, size=512, seed=0)
        (root / "made.json").unlink()
        for name in options.work or WORKS:
            side = [sys.executable, __file__, "--root", str(root), "--work", name]
            side += ["--threads", str(options.threads), "--side"]
            pairs = run_pairs([*side, "engine"], [*side, "bare"], options.pairs, rate=True)
            own = own_ms(pairs, WORKS[name].batch)
            if name == "engine":
                facts, bound = {}, ">= 0.98"
            else:
                facts, bound = (
                    {"own_ms_bound": f"<= {OWN_MS}", "own_ms_within": own <= OWN_MS},
                    None,
                )
            report(name, pairs, bound, num_threads=options.threads, own_ms=round(own, 3), **facts)


def own_ms(pairs: Pairs, batch: int) -> float:
    """Milliseconds an iteration that the engine takes beyond the bare loop, the median pair's."""
    rates = zip(pairs.ours, pairs.baseline, strict=True)
    return 1000 * batch * statistics.median(1 / ours - 1 / baseline for ours, baseline in rates)


if __name__ == "__main__":
    main()
