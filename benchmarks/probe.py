"""Does an exchange of objects really exchange the attribute? A classifier says so.

    python benchmarks/probe.py out/faces64

A small convolutional network learns the attribute on real faces that the GeneGAN was trained on.
On faces held out from both it then judges the real ones (its own accuracy), the faces that got
the attribute (Bu) or lost it (A0), and the reconstructions, which must keep what they have.
Prints one JSON record; shares are of held-out pairs.
"""

from __future__ import annotations

import argparse
import json

from imgtool.training.environment import prepare

prepare(deterministic=False)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from imgtool.data.pyramid import unpack  # noqa: E402
from imgtool.evaluation.restore import Restored, restore  # noqa: E402

EPOCHS, BATCH = 8, 64


def make_probe(size: int) -> nn.Module:
    """Faces (B, 3, S, S) on 0..255 to a logit (B, 1)."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, 1))


def real_faces(restored: Restored, limit: int) -> tuple[Tensor, Tensor]:
    """Training faces (N, 3, S, S) uint8 at the shown size, and their labels (N,)."""
    data, part = restored.experiment.data, restored.datasets.train
    samples = [part.read(i) for i in range(min(limit, len(part)))]
    pyramids = torch.from_numpy(np.stack([sample.image for sample in samples]))
    faces = unpack(pyramids.permute(0, 3, 1, 2), data.image_sizes)[data.shown_size]
    return faces, torch.tensor([float(sample.label) for sample in samples])


def train(probe: nn.Module, faces: Tensor, labels: Tensor) -> None:
    """Adam on the cross-entropy, with mirrored faces as well."""
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.01)
    random = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(faces), generator=random).split(BATCH):
            batch = faces[rows].float()
            if torch.rand((), generator=random) < 0.5:
                batch = batch.flip(3)
            logits = probe(batch / 127.5 - 1).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    probe.eval()


def main() -> None:
    """Train the probe and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", help="a checkpoint or an exp_dir")
    parser.add_argument("--data-root", help="where the faces lie now")
    parser.add_argument("--images", type=int, default=4000, help="real faces to learn from")
    options = parser.parse_args()
    restored = restore(options.ckpt, device="cpu", root=options.data_root)
    torch.manual_seed(0)
    probe = make_probe(restored.experiment.data.shown_size)
    train(probe, *real_faces(restored, options.images))
    with_it: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in restored.batches():
            for name, images in vars(restored.task.faces(batch)).items():
                judged = probe(images.round().clamp(0, 255) / 127.5 - 1).squeeze(1) > 0
                with_it.setdefault(name, []).append(judged.float())
    share = {name: torch.cat(judged).mean().item() for name, judged in with_it.items()}
    record = {
        "kind": "probe",
        "iteration": restored.iteration,
        "num_pairs": sum(map(len, with_it["Au"])),
        "probe_accuracy": (share["Au"] + 1 - share["B0"]) / 2,
        "Bu_with": share["Bu"],
        "A0_without": 1 - share["A0"],
        "Au_hat_with": share["Au_hat"],
        "B0_hat_without": 1 - share["B0_hat"],
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}))


if __name__ == "__main__":
    main()
