"""Does reconstruction rank latents as generation does, and which cheap measure does best?

    python benchmarks/study_latents.py PROBE_DIR... [--num 1000] [--cache study.json]

PROBE_DIR are experiments of the family `flow`, several seeds an autoencoder, whose autoencoders
were trained on floor plans (`imgtool data make layouts`) and measured by `imgtool eval latents`.
No network judges: what is compared is what can be counted on a floor plan. Of each image 23
numbers: the share of each of the ten colours of the palette (every pixel's nearest), the number of
connected pieces of each that is no grey (a blurred edge passes through the greys, and each of its
specks would count), the middle and the extent of what is drawn, and the mean step between
neighbours at two scales. Each is divided by its deviation over the training images; the judge's
distance is Fréchet's between samples and training images. The share of pixels far from every
colour, of which a floor plan has none, is told apart.

Beside it stand the same distance of held-out images that went through the autoencoder (what a
perfect model of the latents would have), of held-out images as they are (0 but for the number of
images), and the cheap measures of the autoencoder. Errors are of a bootstrap over samples, and the
spread of the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from imgtool.data.latent_parts import LatentPart
from imgtool.data.palette import PALETTE
from imgtool.evaluation.fid.generated import open_images
from imgtool.evaluation.fid.statistics import Statistics, frechet_distance
from imgtool.evaluation.restore import Restored, restore
from imgtool.training.batches import to_device

Floats = NDArray[np.float64]
FAR = 40.0  # from every colour of the palette, on 0..255: neighbours of it lie 55 apart or more
SMALLEST = 4  # pixels of a piece that counts
MEASURES = {  # name -> 1 where lower is better, -1 where higher is
    "val_mse": 1, "val_seg_miou": -1, "reconstruction_distance": 1, "latent_dims": 1,
    "high_frequency_share": 1, "spectrum_slope": 1, "spectrum_kl": 1, "flow_floor": 1,
    "equivariance_error": 1, "midpoint_energy": -1, "end_energy": -1,
}  # fmt: skip


def numbers_of(images: NDArray[np.uint8]) -> Floats:
    """(N, 24) of floor plans (N, H, W, 3); the last is the share far from every colour."""
    return np.array([_numbers(image) for image in images])


def _numbers(image: NDArray[np.uint8]) -> list[float]:
    values = image.astype(np.float64)
    height, width = image.shape[:2]
    away = np.linalg.norm(values[:, :, None] - np.array(PALETTE, np.float64), axis=-1)
    nearest = away.argmin(-1)
    shares = np.bincount(nearest.ravel(), minlength=len(PALETTE)) / nearest.size
    coloured = [number for number, colour in enumerate(PALETTE) if len({*colour}) > 1]
    pieces = [_pieces(nearest == number) for number in coloured]
    drawn = nearest != len(PALETTE) - 1  # not the background
    rows, columns = np.nonzero(drawn)
    where = (
        [
            rows.mean() / height,
            columns.mean() / width,
            np.ptp(rows) / height,
            np.ptp(columns) / width,
        ]
        if len(rows)
        else [0.5, 0.5, 0.0, 0.0]
    )
    half = values.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    steps = [
        np.abs(np.diff(v, axis=0)).mean() + np.abs(np.diff(v, axis=1)).mean()
        for v in (values, half)
    ]
    return [*shares, *pieces, *where, *steps, (away.min(-1) > FAR).mean()]


def _pieces(mask: NDArray[np.bool_]) -> float:
    labels, num = ndimage.label(mask)
    return float((np.bincount(labels.ravel())[1:] >= SMALLEST).sum()) if num else 0.0


class Judge:
    """Distances to the training images of one set of latents."""

    def __init__(self, training: Floats) -> None:
        self._scale = np.maximum(training[:, :-1].std(0), 1e-3)
        self._real = Statistics.of(self._scaled(training))

    def __call__(self, found: Floats) -> float:
        return float(frechet_distance(self._real, Statistics.of(self._scaled(found))))

    def _scaled(self, found: Floats) -> NDArray[np.float32]:
        return (found[:, :-1] / self._scale).astype(np.float32)

    def error(self, found: Floats, draws: int = 200) -> float:
        """Deviation over bootstrap draws of the images."""
        draw = np.random.default_rng(0)
        return float(
            np.std([self(found[draw.integers(len(found), size=len(found))]) for _ in range(draws)])
        )


def main() -> None:
    """Judge each probe, then print a table an autoencoder and the ranks of each measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("probes", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=1000, help="samples of each probe")
    parser.add_argument("--cache", type=Path, default=Path("study.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(args.cache.read_text()) if args.cache.exists() else {}
    for path in args.probes:
        if str(path) not in done:
            done[str(path)] = judge(path, args.num)
            args.cache.write_text(json.dumps(done, indent=1))
            print(json.dumps(done[str(path)]), flush=True)
    report([done[str(path)] for path in args.probes])


def judge(path: Path, num: int) -> dict[str, Any]:
    """One probe: its distance, and what is known of its autoencoder."""
    found = restore(str(path), device="cpu")
    part = found.datasets.train
    assert isinstance(part, LatentPart)
    file = part.latents.file
    folder = Path(file.autoencoder.path)
    folder = folder if folder.is_dir() else folder.parent.parent
    side = file.image_size[0]
    real = {name: _of_part(file, name) for name in ("train", "val", "test")}
    judged = Judge(real["train"])
    held_out = np.concatenate([real["val"], real["test"]])
    rows = [*file.rows_of("val").tolist(), *file.rows_of("test").tolist()]
    decoder = found.task.decoder
    assert decoder is not None
    if file.fingerprint not in _DECODED:
        parts = [torch.from_numpy(np.stack([file.mean(row) for row in rows[at : at + 64]]))
                 for at in range(0, len(rows), 64)]  # fmt: skip
        images = [decoder(part.float()).permute(0, 2, 3, 1).numpy() for part in parts]
        _DECODED[file.fingerprint] = numbers_of(np.concatenate(images))
    again = _DECODED[file.fingerprint]
    samples = numbers_of(np.concatenate(list(_samples(found, part, num))))
    return {
        "probe": str(path),
        "seed": found.experiment.train.seed,
        "iterations": found.iteration,
        "autoencoder": folder.name,
        "latent_shape": [*file.shape],
        "image_size": side,
        "num_samples": len(samples),
        "num_train": len(real["train"]),
        "num_held_out": len(held_out),
        "distance": judged(samples),
        "distance_se": judged.error(samples),
        "off_palette": float(samples[:, -1].mean()),
        "reconstruction_distance": judged(again),
        "reconstruction_distance_se": judged.error(again),
        "reconstruction_off_palette": float(again[:, -1].mean()),
        "held_out_distance": judged(held_out),
        **_cheap(folder),
    }


_OF_PART: dict[tuple[str, str], Floats] = {}  # all candidates are of the same images
_DECODED: dict[str, Floats] = {}


def _of_part(file: Any, part: str) -> Floats:
    key = (file.data.fingerprint, part)
    if key not in _OF_PART:
        view = open_images(file.data, [file.names[row] for row in file.rows_of(part).tolist()])
        images = np.stack([view.read(k).image for k in range(len(view))])
        _OF_PART[key] = numbers_of(images)
    return _OF_PART[key]


def _samples(found: Restored, part: LatentPart, num: int) -> Iterator[NDArray[np.uint8]]:
    view = part.of([int(part.indices[k % len(part)]) for k in range(num)])
    done = 0
    for batch in found.batches(view, batch_size=64):
        count = len(batch["index"])
        with found.looking():
            made = found.task.fakes(
                to_device({**batch, "index": torch.arange(done, done + count)}, found.device)
            )
        done += count
        yield made["sample"].images.permute(0, 2, 3, 1).numpy()


def _cheap(folder: Path) -> dict[str, float]:
    """The last validation, and what `eval latents` left."""
    (table,) = folder.glob("*_metrics.csv")
    known: dict[str, Any] = pd.read_csv(table).filter(like="val_").ffill().iloc[-1].to_dict()
    known |= json.loads((folder / "latents.json").read_text())
    known["latent_dims"] = math.prod(known["latent_shape"])
    wanted = [name for name in MEASURES if known.get(name) is not None]
    errors = [f"{name}_se" for name in wanted if known.get(f"{name}_se") is not None]
    return {name: float(known[name]) for name in (*wanted, *errors)}


def report(found: list[dict[str, Any]]) -> None:
    """A line an autoencoder, then one a measure."""
    by: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in found:
        by[one["autoencoder"]].append(one)
    rows = []
    for name, probes in by.items():
        distances = [probe["distance"] for probe in probes]
        first = probes[0]
        within = math.sqrt(sum(probe["distance_se"] ** 2 for probe in probes)) / len(probes)
        row = {
            **{key: first[key] for key in MEASURES if key in first},
            "name": name, "shape": first["latent_shape"], "distance": float(np.mean(distances)),
            "se_samples": within, "se_seeds": _standard_error(distances),
            "seeds": [round(d, 3) for d in distances],
        }  # fmt: skip
        rows.append(row)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
    spread = math.sqrt(np.mean([row["se_seeds"] ** 2 for row in rows]))
    print(f"pooled standard error of a mean over seeds: {spread:.4f}")
    target = np.array([row["distance"] for row in rows])
    for measure, sign in MEASURES.items():
        if all(measure in row for row in rows):
            values = sign * np.array([row[measure] for row in rows], dtype=np.float64)
            rho = stats.spearmanr(values, target).statistic
            print(
                f"{measure:26} Spearman {rho:+.2f}  Kendall {stats.kendalltau(values, target).statistic:+.2f}"
                f"  under the probes' noise {_under_noise(values, target, rows)}  p {_exact(values, target):.3f}"
            )


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _under_noise(values: Floats, target: Floats, rows: list[dict[str, Any]]) -> str:
    """Spearman's rho at 5 % and 95 % when each distance moves by its error."""
    draw = np.random.default_rng(0)
    pooled = math.sqrt(np.mean([row["se_seeds"] ** 2 for row in rows]))
    errors = np.hypot(pooled, [row["se_samples"] for row in rows])
    drawn = [
        stats.spearmanr(values, target + errors * draw.standard_normal(len(target))).statistic
        for _ in range(1000)
    ]
    return f"{np.quantile(drawn, 0.05):+.2f} .. {np.quantile(drawn, 0.95):+.2f}"


def _exact(values: Floats, target: Floats) -> float:
    """Two-sided, of Spearman's rho over all pairings."""
    rho = abs(stats.spearmanr(values, target).statistic)
    ranks, others = stats.rankdata(values), stats.rankdata(target)
    every = np.array(
        [
            np.corrcoef(ranks, others[list(p)])[0, 1]
            for p in itertools.permutations(range(len(ranks)))
        ]
    )
    return float((np.abs(every) >= rho - 1e-9).mean())


if __name__ == "__main__":
    main()
