"""Images a second of the engine, against a bare PyTorch loop on the same model, batch and data.

Both sides train the autoencoder of the README (128 px crops, batch 8) on the CPU from images
that are already decoded in memory, with the same number of threads, channels_last weights, a
fused AdamW, and the same allocator settings. The bare side is what a researcher writes by
hand: a loop over random crops, forward, backward, step; it checks nothing and logs nothing.
The engine's side is `imgtool train` as users get it, its checks and logs included, but no
validation or checkpoint inside the measured iterations. The first iterations are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from _pairs import report, run_pairs

WARM_UP, MEASURED, BATCH, CROP = 10, 60, 8, 128
SETTINGS = [
    "model.latent_channels=8",
    "model.downsampling_steps=3",
    "model.base_channels=16",
    "model.heads=[rgb]",
    f"data.crop={CROP}",
    "data.num_workers=0",
    f"train.batch_size={BATCH}",
    "train.lr=1e-3",
    "train.val_every=100000",
    "train.save_every=100000",
    "train.sample_every=100000",
    "train.device=cpu",
]


def loaded(root: Path, *more: str):
    """The experiment that both sides train."""
    from imgtool.config.load import load
    from imgtool.models.registry import schema

    sets = [*SETTINGS, f"data.root={root}", *more]
    return load(None, family="autoencoder", schema_of=schema, sets=sets)


def engine(root: Path, threads: int) -> float:
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
        last = WARM_UP + MEASURED
        experiment = loaded(root, f"train.max_iter={last}", f"train.threads={threads}")
        train(experiment, directory, stop=StopRequest(), reporter=Clock())
    return MEASURED * BATCH / (times[last] - times[WARM_UP])


def bare(root: Path, threads: int) -> float:
    """Images a second of a loop written by hand."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import numpy as np
    import torch
    from PIL import Image

    from imgtool.models.autoencoder.network import Autoencoder

    torch.set_num_threads(threads)
    torch.manual_seed(42)
    network = Autoencoder(loaded(root).experiment.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(root.iterdir())]
    rng = np.random.default_rng(42)

    def crop() -> np.ndarray:
        image = images[rng.integers(len(images))]
        top, left = (int(rng.integers(side - CROP + 1)) for side in image.shape[:2])
        patch = image[top : top + CROP, left : left + CROP]
        return patch[:, ::-1] if rng.integers(2) else patch

    begin = 0.0
    for iteration in range(WARM_UP + MEASURED):
        if iteration == WARM_UP:
            begin = time.perf_counter()
        batch = torch.from_numpy(np.stack([crop() for _ in range(BATCH)])).permute(0, 3, 1, 2)
        x = batch.float() / 127.5 - 1
        x_hat = network.decode(network.encode(x).z)["rgb"]
        loss = torch.nn.functional.mse_loss(x_hat, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return MEASURED * BATCH / (time.perf_counter() - begin)


def main() -> None:
    """Run both sides in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["engine", "bare"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if options.side:
        side = engine if options.side == "engine" else bare
        print(json.dumps({"rate": side(options.root, options.threads)}))
        return
    from imgtool.data.synthetic.make import make_photos

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        make_photos(root, 16, size=512, seed=0)
        (root / "made.json").unlink()
        side = [sys.executable, __file__, "--root", str(root), "--threads", str(options.threads)]
        pairs = run_pairs(
            [*side, "--side", "engine"], [*side, "--side", "bare"], options.pairs, rate=True
        )
    report("engine", pairs, bound=">= 0.97", num_threads=options.threads)


if __name__ == "__main__":
    main()
