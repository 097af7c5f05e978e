"""Images a second with `--compile`, against the same training without it, family by family.

Both sides are `imgtool train` on the CPU as users get it, without validation or checkpoint in the
measured iterations, which begin when everything has been compiled. The record has the seconds of
the iterations before them (much less where an earlier process left its kernels in torch's cache).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs

WARM_UP = 3
SETTINGS = {
    "autoencoder": [
        "model.latent_channels=8",
        "model.downsampling_steps=3",
        "model.base_channels=16",
        "model.heads=[rgb]",
        "data.crop=128",
        "train.batch_size=8",
    ],
    "genegan": [
        "model.base_channels=32",
        "data.image_sizes=[64, 96]",
        "data.image_size=96",
        "loss.critic_burst=1",
        "train.batch_size=4",
    ],
    "hpcm": ["model.model_name=HPCM_Tiny", "data.crop=128", "train.batch_size=4"],
}
MEASURED = {"autoencoder": 30, "genegan": 6, "hpcm": 12}


def train_(family: str, root: Path, threads: int, *, compiled: bool) -> dict[str, Any]:
    """Images a second between two iterations, and the seconds before the first of them."""
    from imgtool.config.load import load
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.report import Silence

    prepare(deterministic=False)
    from imgtool.training.run import train

    times: dict[int, float] = {}

    class Clock(Silence):
        def progress(self, progress: Any) -> None:
            times.setdefault(progress.iteration, time.perf_counter())

    last = WARM_UP + MEASURED[family]
    never = (f"train.{what}_every=100000" for what in ("val", "save", "sample"))
    run = (f"data.root={root}", f"train.max_iter={last}", f"train.threads={threads}")
    fixed = ("data.num_workers=0", "train.device=cpu", f"train.compile={str(compiled).lower()}")
    sets = [*SETTINGS[family], *never, *run, *fixed]
    loaded = load(None, family=family, schema_of=schema, sets=sets)
    with tempfile.TemporaryDirectory() as folder:
        directory = ExperimentDir(folder)
        directory.create()
        begin = time.perf_counter()
        train(loaded, directory, stop=StopRequest(), reporter=Clock())
    images = MEASURED[family] * loaded.experiment.train.batch_size
    rate = images / (times[last] - times[WARM_UP])
    return {"rate": rate, "first_iterations_sec": round(times[WARM_UP] - begin, 1)}


def main() -> None:
    """Run both sides in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=[*SETTINGS], action="append", help="all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=["compiled", "eager"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    families = options.family or [*SETTINGS]
    if options.side:
        compiled = options.side == "compiled"
        print(json.dumps(train_(families[0], options.root, options.threads, compiled=compiled)))
        return
    from imgtool.data.synthetic.make import make_faces, make_photos

    with tempfile.TemporaryDirectory() as folder:
        photos, faces = Path(folder) / "photos", Path(folder) / "faces"
        make_photos(photos, 16, size=256, seed=0)
        (photos / "made.json").unlink()
        make_faces(faces, 64, seed=0)
        for family in families:
            root = faces if family == "genegan" else photos
            words = [sys.executable, __file__, "--family", family, "--root", str(root)]
            words += ["--threads", str(options.threads), "--side"]
            pairs = run_pairs([*words, "compiled"], [*words, "eager"], options.pairs, rate=True)
            report(f"compile_{family}", pairs, num_threads=options.threads)


if __name__ == "__main__":
    main()
