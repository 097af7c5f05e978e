"""An iteration of GeneGAN training (one critic and one generator update) against the plain step.

Both sides train the full-width GeneGAN at 64, 96 and 128 px on the CPU, from the same JPEG faces,
with the same batch, threads and optimizer.

Baseline: the reference's step as it is written down in tests/models/genegan/transcription.py:
splitter and joiner called for every face by themselves, four joiner passes in critic steps as
well, gradients into the critics in generator steps, NCHW, a decode for every size, all sizes'
graphs at once, and the allocator as it comes. `--tuned` gives it channels_last weights and images
and our allocator's settings.

Ours: `imgtool train genegan` as users get it, checks and logs included, without validation or
checkpoint in the measured iterations. `--precision bf16-mixed` measures it in bfloat16, against
the same float32 baseline; its bound is for processors that multiply bfloat16 (AVX-512 BF16, AMX).
`--memory` compares the peak resident memory of both processes instead of their time (bound: no
more than the baseline's). `--profile` says where our time goes, and the floor: the
multiply-accumulates of a step at the rate of a large matrix product on this machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs
from _profile import profile_step

SIZES = (64, 96, 128)
WARM_UP = 1
BOUNDS = {"32": ">= 1.67", "bf16-mixed": ">= 3.57"}
MEMORY_BOUND = "<= 1.0"


def settings(folder: Path, options: argparse.Namespace) -> list[str]:
    """Overrides for our side: bursts of the critics are left out, one update of each is timed."""
    return [
        f"data.root={folder}",
        "data.num_workers=0",
        "data.cache=none",
        "loss.critic_burst=1",
        f"train.batch_size={options.batch}",
        f"train.max_iter={WARM_UP + options.iterations}",
        f"train.precision={options.precision}",
        f"train.threads={options.threads}",
        "train.device=cpu",
    ]


def ours(folder: Path, options: argparse.Namespace) -> float:
    """Iterations a second of `imgtool.training.run.train`."""
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

    loaded = load(None, family="genegan", schema_of=schema, sets=settings(folder, options))
    with tempfile.TemporaryDirectory() as folder:
        directory = ExperimentDir(folder)
        directory.create()
        train(loaded, directory, stop=StopRequest(), reporter=Clock())
    return options.iterations / (times[WARM_UP + options.iterations] - times[WARM_UP])


def plain(folder: Path, options: argparse.Namespace) -> float:
    """Iterations a second of the transcription."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if options.tuned:
        from imgtool.training.environment import prepare

        prepare(deterministic=False)
    import numpy as np
    import torch
    from PIL import Image

    from tests.models.genegan.transcription import Reference

    task = make_task(folder, options)
    layout = torch.channels_last if options.tuned else torch.contiguous_format
    state = task.modules.to(memory_format=layout).state_dict()
    reference = Reference(state, SIZES, 128)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    files = sorted((folder / "img_align_celeba").iterdir())
    trained = {"lr": 5e-5, "alpha": 0.8}
    critic = torch.optim.RMSprop(reference.critic_parameters(), **trained)
    generator = torch.optim.RMSprop(reference.generator_parameters(), **trained)
    weights = dict.fromkeys(SIZES, 1 / 3)

    def read(file: Path, size: int) -> torch.Tensor:
        with Image.open(file) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float()

    def draw() -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        chosen = rng.choice(len(files), (2, options.batch))
        images = {s: [torch.stack([read(files[i], s) for i in h]) for h in chosen] for s in SIZES}
        return {s: tuple(x.contiguous(memory_format=layout) for x in images[s]) for s in SIZES}

    begin = 0.0
    for iteration in range(WARM_UP + options.iterations):
        if iteration == WARM_UP:
            begin = time.perf_counter()
        for optimizer, loss_of in (
            (critic, reference.critic_loss),
            (generator, reference.generator_loss),
        ):
            loss = loss_of(draw(), weights)
            critic.zero_grad()
            generator.zero_grad()
            loss.backward()
            optimizer.step()
            if optimizer is critic:
                reference.clip()
            loss.item()
    return options.iterations / (time.perf_counter() - begin)


def make_task(folder: Path, options: argparse.Namespace) -> Any:
    """The task of our side, with fresh weights."""
    from imgtool.config.load import load
    from imgtool.data.base import DataInfo
    from imgtool.models.registry import family, schema

    loaded = load(None, family="genegan", schema_of=schema, sets=settings(folder, options))
    info = DataInfo(targets=frozenset({"label"}), image_size=(128, 128), num_train_images=1)
    return family("genegan").build(loaded.experiment, info)


def profile(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Where an iteration's time goes, in parts of it, and the floor."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.data.pyramid import pyramid_size
    from imgtool.models.base import Noise

    torch.set_num_threads(options.threads)
    task = make_task(folder, options)
    task.modules.to(memory_format=torch.channels_last)
    rows, _ = pyramid_size(SIZES)
    image = torch.randint(0, 256, (2 * options.batch, rows, 1, 3), dtype=torch.uint8)
    batch = {"image": image.permute(0, 3, 1, 2), "noise": Noise(0, 2)}

    def step() -> None:
        for update in task.updates(2):
            update(batch)["loss"].backward()

    return profile_step(step)


def main() -> None:
    """Run both sides in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4, help="images of each set")
    parser.add_argument("--iterations", type=int, default=2, help="timed, each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--precision", choices=[*BOUNDS], default="32", help="of our side")
    parser.add_argument("--tuned", action="store_true", help="the baseline in NHWC, memory kept")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = ours if options.side == "ours" else plain
        rate = side(options.folder, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"rate": peak} if options.memory else {"rate": rate, "peak_bytes": peak}
        print(json.dumps(found))
        return
    from imgtool.data.synthetic.make import make_faces

    with tempfile.TemporaryDirectory() as folder:
        make_faces(folder, 64, seed=0)
        if options.profile:
            print(json.dumps(profile(Path(folder), options)))
            return
        words = [sys.executable, __file__, "--folder", folder]
        for name in ("batch", "iterations", "threads", "precision"):
            words += [f"--{name}", str(getattr(options, name))]
        words += [f"--{name}" for name in ("tuned", "memory") if getattr(options, name)]
        pairs = run_pairs(
            [*words, "--side", "ours"], [*words, "--side", "plain"], options.pairs, rate=True
        )
    # A tuned baseline is there to be seen; the bounds are against the earlier system as it was.
    bound = MEMORY_BOUND if options.memory else BOUNDS[options.precision]
    report(
        "genegan_memory" if options.memory else "genegan_iteration",
        replace(pairs, unit="bytes") if options.memory else pairs,
        None if options.tuned else bound,
        tuned=options.tuned,
        batch_size=options.batch,
        precision=options.precision,
        num_threads=options.threads,
    )


if __name__ == "__main__":
    main()
