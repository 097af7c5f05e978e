"""Peak memory of a training on the CPU, by preset, against its floor.

The floor is what no training of this kind can do without: the weights, their gradients, the
optimizer's state, and what the forward pass of one piece of a batch keeps for its backward pass.
Beside it a process holds Python and its libraries (`imported`, measured before anything is
built). `peak` is the highest resident memory of a process of its own that trains three
iterations as `imgtool train` does, on images drawn on the spot. All in MB (10^6 bytes).

    python benchmarks/memory.py --presets photos/base genegan/exp00 --batch 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _gpu_checks import ROOT, Case, Side, make_data, train
from _pairs import processor

PRESETS = (
    *("photos/base", "phase1_1/S1", "phase1_1/S12", "genegan/vqvae"),
    *("genegan/exp00", "genegan/exp01", "genegan/exp02", "genegan/exp02_critics"),
    *("genegan/exp03_random", "genegan/exp04_group_norm", "genegan/faces64"),
    *("hpcm/tiny", "hpcm/small", "hpcm/baseline", "hpcm/phase2"),
)


def main() -> None:
    """Measure each preset twice, in processes of their own, and print a record and a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=["floor", "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps((floor if options.part == "floor" else peak)(options)))
        return
    print(
        "| preset | weights | gradients | optimizer | activations | imported | peak | peak / sum |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root:
        for preset in options.presets:
            words = [sys.executable, __file__, "--presets", preset, "--root", root]
            words += ["--batch", str(options.batch), "--threads", str(options.threads)]
            found: dict[str, float] = {}
            for part in ("floor", "peak"):
                done = subprocess.run([*words, "--part", part], capture_output=True, text=True)
                if done.returncode:
                    sys.stderr.write(done.stderr)
                    raise SystemExit(f"{preset}: {part} ended with {done.returncode}")
                found |= json.loads(done.stdout.splitlines()[-1])
            total = sum(value for key, value in found.items() if key != "peak_mb")
            ratio = found["peak_mb"] / total
            print(f"| {preset} | {' | '.join(f'{v:.0f}' for v in found.values())} | {ratio:.2f} |")
            facts = {
                "batch_size": options.batch,
                "ratio": round(ratio, 3),
                "processor": processor(),
            }
            head = {"schema": "imgtool/1", "kind": "benchmark", "name": "memory", "preset": preset}
            print(json.dumps({**head, **found, **facts}), file=sys.stderr, flush=True)


def case_of(options: argparse.Namespace) -> tuple[Case, list[str]]:
    """The preset with its data, and the settings of this measurement."""
    from imgtool.config.load import load
    from imgtool.models.registry import schema

    (preset,) = options.presets
    experiment = load(preset, family=None, schema_of=schema).experiment
    data = make_data(options.root, experiment.data.dataset, 24, 512)
    folder = options.root / preset.replace("/", "_")
    folder.mkdir(exist_ok=True)
    case = Case(experiment.family, preset, data, "cpu", folder, quick=False)
    return case, [
        f"train.batch_size={options.batch}",
        f"train.threads={options.threads}",
        "data.num_workers=0",
    ]


def megabytes(*tensors: Any) -> float:
    """What these tensors take."""
    return float(round(sum(tensor.nbytes for tensor in tensors) / 1e6, 1))


def resident_mb() -> float:
    """The highest so far, of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def floor(options: argparse.Namespace) -> dict[str, float]:
    """Of the update that needs most, by counting bytes."""
    import torch

    from imgtool.training.device import channels_last
    from imgtool.training.optim import build_optimizer

    case, sets = case_of(options)
    experiment = case.load(*sets, tiny=False).experiment
    nhwc = channels_last(experiment, torch.device("cpu"))
    side = Side(case, "cpu", *sets, nhwc=nhwc, tiny=False)
    weights = megabytes(*side.task.modules.parameters(), *side.task.modules.buffers())
    own = {t.untyped_storage().data_ptr() for t in side.task.modules.state_dict().values()}
    activations = gradients = optimizers = 0.0
    for update in side.task.all_updates():
        trained = [p for p in update.parameters() if p.requires_grad]
        gradients = max(gradients, megabytes(*trained))
        for piece in update.pieces(side.batch):
            kept: dict[int, int] = {}

            def keep(tensor: Any, kept: dict[int, int] = kept) -> Any:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = update(piece)["loss"]
            activations = max(activations, sum(kept.values()) / 1e6)
            loss.backward()
        optimizer = build_optimizer(experiment.train, trained)
        optimizer.step()
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        optimizers += megabytes(*states)
        update.zero_grad()
    return {
        "weights_mb": weights,
        "gradients_mb": gradients,
        "optimizer_mb": optimizers,
        "activations_mb": activations,
    }


def peak(options: argparse.Namespace) -> dict[str, float]:
    """Measured."""
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    from imgtool.training import run  # noqa: F401  (what a training loads)

    case, sets = case_of(options)
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])  # loads the rest of torch
    imported = resident_mb()
    train(case, "peak", *sets, "train.max_iter=3", tiny=False)
    return {"imported_mb": imported, "peak_mb": resident_mb()}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
