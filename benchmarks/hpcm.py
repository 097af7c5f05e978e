"""HPCM's partition, table search and training step against the published code's ways.

Baselines are written down in tests/models/hpcm/transcription.py:

    partition   y into eleven packed steps and together again: slices, against boolean gathers
                and scatters and full-grid float masks; in channels_last and with freed memory
                kept, as the training runs, against NCHW as it comes (bound: 5x)
    index       scale table indices of all latents, scales drawn log-uniformly (the worst case of
                a search), against comparing each with 59 entries (bound: 10x)
    tiny, base  a training iteration on the CPU: `imgtool train hpcm` as users get it (checks and
                logs included, channels_last, freed memory kept), against the same step with the
                transcribed forward in NCHW and the allocator as it comes; the same photos, crop,
                batch, threads and optimizer. No bound: measured and reported.

The first two take the y of one image of `--size`: crop (16 training crops of 256 pixels), kodak
or 4k. `--profile tiny|base` says where our iteration's time goes, and the floor: the network's
multiply-accumulates at the rate of a large matrix product on this machine. `--phase2 tiny|base`
says what phase 2 adds: its Haar transforms, its whole term and the memory kept for backward.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs
from _profile import profile_step

SIZES = {"crop": (16, 320, 16, 16), "kodak": (1, 320, 32, 48), "4k": (1, 320, 136, 240)}
LAMBDA = 0.013
# Part of the benchmark: model, crop, batch, learning rate, warm-up and timed iterations.
STEPS: dict[str, tuple[str, int, int, float, int, int]] = {
    "tiny": ("HPCM_Tiny", 128, 4, 5e-4, 5, 20),
    "base": ("HPCM_Base", 256, 2, 5e-5, 1, 2),
}
BOUNDS = {"partition": ">= 5", "index": ">= 10"}
PARTS = (*BOUNDS, *STEPS)


def transcription() -> Any:
    """The baseline's module."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.models.hpcm import transcription as found

    return found


def rate_of(function: Callable[[], object], *, least_sec: float = 1.5) -> float:
    """Calls a second, after a few that do not count."""
    for _ in range(3):
        function()
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < least_sec or calls < 3:
        function()
        calls += 1
    return calls / spent


def partition(side: str, options: argparse.Namespace) -> float:
    """Partitions and merges a second; ours as the network does it, in channels_last."""
    if side == "ours":
        from imgtool.training.environment import prepare

        prepare(deterministic=False)
    import torch

    from imgtool.models.hpcm.partition import merge, split
    from imgtool.models.hpcm.steps import steps
    from imgtool.models.hpcm.variants import VARIANTS

    torch.set_num_threads(options.threads)
    y = torch.randn(SIZES[options.size])
    rows = y.to(memory_format=torch.channels_last)
    found = steps(VARIANTS["HPCM_Base"])
    masks = transcription().Partition()
    with torch.no_grad():
        return rate_of(
            (lambda: merge(split(rows, found), found)) if side == "ours" else lambda: masks(y)
        )


def index(side: str, options: argparse.Namespace) -> float:
    """Searches a second."""
    import torch

    from imgtool.models.hpcm.entropy import SCALE_TABLE, table_index

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    alpha = torch.rand(SIZES[options.size], generator=generator).mul(7).exp().mul(0.1)
    table = torch.tensor(SCALE_TABLE)
    broadcast = transcription().search_by_broadcasting
    return rate_of(
        (lambda: table_index(alpha)) if side == "ours" else lambda: broadcast(alpha, table)
    )


def settings(part: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Overrides for our side."""
    name, crop, batch, lr, warm_up, timed = STEPS[part]
    return [
        f"model.model_name={name}",
        f"data.root={folder}",
        f"data.crop={crop}",
        "data.num_workers=0",
        "data.cache=none",
        f"loss.lmbda={LAMBDA}",
        f"train.batch_size={batch}",
        f"train.lr={lr}",
        f"train.max_iter={warm_up + timed}",
        "train.val_every=100000",
        "train.save_every=100000",
        "train.sample_every=100000",
        f"train.threads={options.threads}",
        "train.device=cpu",
    ]


def step_ours(part: str, options: argparse.Namespace) -> float:
    """Iterations a second of `imgtool.training.run.train`."""
    from imgtool.config.load import load
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare
    from imgtool.training.report import Silence

    prepare(deterministic=False)
    from imgtool.training.run import train

    warm_up, timed = STEPS[part][-2:]
    times: dict[int, float] = {}

    class Clock(Silence):
        def progress(self, progress: Any) -> None:
            times.setdefault(progress.iteration, time.perf_counter())

    sets = settings(part, options.folder, options)
    loaded = load(None, family="hpcm", schema_of=schema, sets=sets)
    with tempfile.TemporaryDirectory() as folder:
        directory = ExperimentDir(folder)
        directory.create()
        train(loaded, directory, stop=StopRequest(), reporter=Clock())
    return timed / (times[warm_up + timed] - times[warm_up])


def step_plain(part: str, options: argparse.Namespace) -> float:
    """Iterations a second of the transcription."""
    import numpy as np
    import torch
    from PIL import Image

    from imgtool.models.hpcm.network import HPCM
    from imgtool.models.hpcm.variants import VARIANTS

    T = transcription()
    torch.set_num_threads(options.threads)
    name, crop, batch, lr, warm_up, timed = STEPS[part]
    variant = VARIANTS[name]
    weights = {
        key: value.detach().clone().requires_grad_(True)
        for key, value in T.weights_of(dict(HPCM(variant).named_parameters())).items()
    }
    reference = T.Reference(
        weights,
        legacy=True,
        window_sides=variant.windows,
        heads=variant.num_heads,
        merged=6 // variant.s3_steps,
    )
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    rng = np.random.default_rng(0)
    files = sorted(options.folder.rglob("*.png"))

    def read() -> torch.Tensor:
        with Image.open(files[rng.integers(len(files))]) as image:
            pixels = np.asarray(image.convert("RGB"))
        top, left = (int(rng.integers(side - crop + 1)) for side in pixels.shape[:2])
        cut = pixels[top : top + crop, left : left + crop]
        cut = cut[:: int(rng.choice((1, -1))), :: int(rng.choice((1, -1)))]
        return torch.from_numpy(cut.copy()).permute(2, 0, 1).float() / 255

    begin = 0.0
    for iteration in range(warm_up + timed):
        if iteration == warm_up:
            begin = time.perf_counter()
        x = torch.stack([read() for _ in range(batch)])
        made = reference.forward(x, lambda like: torch.empty_like(like).uniform_(-0.5, 0.5))
        bits = -made["likelihood_y"].log2().sum() - made["likelihood_z"].log2().sum()
        mse = (made["x_hat"] - x).square().mean()
        loss = LAMBDA * 255**2 * mse + bits / (batch * crop * crop)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        loss.item()
    return timed / (time.perf_counter() - begin)


def profile(part: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Where an iteration's time goes, in parts of it, and the floor."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.config.load import load
    from imgtool.data.base import DataInfo
    from imgtool.models.base import Noise
    from imgtool.models.registry import family, schema

    torch.set_num_threads(options.threads)
    _, crop, batch, *_ = STEPS[part]
    sets = settings(part, folder, options)
    loaded = load(None, family="hpcm", schema_of=schema, sets=sets)
    info = DataInfo(targets=frozenset(), image_size=(crop, crop), num_train_images=1)
    task = family("hpcm").build(loaded.experiment, info)
    task.modules.to(memory_format=torch.channels_last)
    image = torch.randint(0, 256, (batch, crop, crop, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def step() -> None:
        for update in task.updates(1):
            update({"image": image, "noise": Noise(0, 1)})["loss"].backward()

    return {"part": part, "num_threads": options.threads, **profile_step(step)}


def phase2(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What phase 2 costs: its Haar transforms, its whole term, and what it keeps for backward."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.models.hpcm.interscale import InterScale, haar
    from imgtool.models.hpcm.schema import Loss
    from imgtool.models.hpcm.variants import VARIANTS

    torch.set_num_threads(options.threads)
    name, crop, batch, *_ = STEPS[part]
    M = VARIANTS[name].M
    latents = [
        torch.randn(batch, M, crop // side, crop // side).to(memory_format=torch.channels_last)
        for side in (64, 32, 16)
    ]
    interscale = InterScale(M, Loss(phase2_reg=True))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def term() -> None:
        found = [latent.requires_grad_() for latent in latents]
        regulariser, error, _ = interscale(found)
        (regulariser + error).backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        term()
    own = {latent.untyped_storage().data_ptr() for latent in latents}
    own |= {p.untyped_storage().data_ptr() for p in interscale.parameters()}
    with torch.no_grad():
        transforms = rate_of(lambda: [haar(latent) for latent in latents[1:]])
    return {
        "part": part,
        "batch_size": batch,
        "crop": crop,
        "num_threads": options.threads,
        "haar_ms": round(1e3 / transforms, 3),
        "term_ms": round(1e3 / rate_of(term), 3),
        "kept_mb": round(sum(b for at, b in kept.items() if at not in own) / 1e6, 2),
        "parameters_mb": round(sum(p.nbytes for p in interscale.parameters()) / 1e6, 2),
    }


def one_side(options: argparse.Namespace) -> float:
    """The rate of the part and side that this process was started for."""
    if options.part == "partition":
        return partition(options.side, options)
    if options.part == "index":
        return index(options.side, options)
    return (step_ours if options.side == "ours" else step_plain)(options.part, options)


def main() -> None:
    """Run both sides of each part in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", choices=[*SIZES], default="kodak", help="of partition and index")
    parser.add_argument("--profile", choices=list(STEPS), help="where our time goes")
    parser.add_argument("--phase2", choices=list(STEPS), help="what phase 2 adds to an iteration")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"rate": one_side(options)}))
        return
    if options.phase2:
        print(json.dumps(phase2(options.phase2, options)))
        return
    from imgtool.data.synthetic.make import make_photos

    with tempfile.TemporaryDirectory() as folder:
        make_photos(folder, 16, seed=0)
        if options.profile:
            print(json.dumps(profile(options.profile, Path(folder), options)))
            return
        for part in options.parts:
            words = [sys.executable, __file__, "--folder", folder, "--part", part]
            words += ["--threads", str(options.threads), "--size", options.size, "--side"]
            pairs = run_pairs([*words, "ours"], [*words, "plain"], options.pairs, rate=True)
            facts: dict[str, Any] = {"num_threads": options.threads}
            if part in STEPS:
                facts |= dict(zip(("model_name", "crop", "batch_size"), STEPS[part], strict=False))
            else:
                facts["size"] = options.size
            report(f"hpcm_{part}", pairs, BOUNDS.get(part), **facts)


if __name__ == "__main__":
    main()
