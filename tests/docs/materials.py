"""What the pages' blocks find where they run, by the names in their marks; made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from imgtool.data.synthetic.make import make_faces, make_layouts, make_photos

SIDE = 96
SHAPES = {"S1": (0.011, 16, 256), "S5": (0.010, 8, 1024), "S7": (0.030, 4, 64)}


def photos(work: Path) -> None:
    make_photos(work / "photos", 12, size=SIDE, seed=1)


def layouts(work: Path) -> None:
    made = make_layouts(work / "layouts", 24, size=64, seed=1)
    for path in made.path.parent.iterdir():
        path.rename(work / path.name)


def faces(work: Path) -> None:
    made = make_faces(work / "faces", 24, seed=1)
    made.path.rename(work / "img_align_celeba")


def pictures(work: Path) -> None:
    """Faces by the names of a page's examples."""
    folder = work / "img_align_celeba"
    found = sorted(folder.rglob("*.jpg"))
    for name, path in zip(("a", "b", "1", "2", "3", "4"), found, strict=False):
        shutil.copy(path, work / f"{name}.jpg")


def photographs(work: Path) -> None:
    made = make_faces(work / "drawn", 3, seed=2).path
    (made / "img_align_celeba").rename(work / "photographs")


def samples(work: Path) -> None:
    make_photos(work / "samples", 12, size=SIDE, seed=2)


def kodak(work: Path) -> None:
    make_photos(work / "kodak", 2, size=SIDE, seed=3)
    shutil.copy(next((work / "kodak").rglob("*.png")), work / "kodim09.png")


def flickr2w(work: Path) -> None:
    make_photos(work / "flickr2w", 12, size=SIDE, seed=4)


def phase(work: Path) -> None:
    """What a phase leaves: three trained experiments, their shared folder, and bare tables."""
    shared = work / "outputs/phase1_1_latent_shape_sweep"
    shared.mkdir(parents=True)
    (work / "tables").mkdir()
    trials = []
    for name, (mse, channels, dims) in SHAPES.items():
        folder = work / "experiments" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/best.safetensors").write_bytes(b"x")
        facts = {"latent_dims": dims, "latent_shape": [channels, 4, dims // channels // 4]}
        best = {"metric": "val_mse", "iteration": 2}
        status = {"state": "completed", "facts": facts, "best": best}
        (folder / "status.json").write_text(json.dumps(status))
        config = f"family: autoencoder\nname: {name}\nphase: {shared.name}\n"
        (folder / "config.yaml").write_text(f"{config}model: {{latent_channels: {channels}}}\n")
        rows = f"1,1,{2 * mse},20\n2,2,{mse},30.5\n"
        (folder / f"{name}_metrics.csv").write_text(f"iteration,epoch,val_mse,val_psnr\n{rows}")
        old = f"1,{8 * mse},{dims}\n2,{4 * mse},{dims}\n"
        (work / f"tables/{name}.csv").write_text(f"epoch,val_MSE_rgb,latent_dims\n{old}")
        trials.append({"name": name, "exp_dir": str(folder), "overrides": {}, "source": "x"})
    content = {"schema": "imgtool-sweep/1", "name": "phase1_1", "trials": trials}
    content |= {"phase": shared.name, "shared_dir": str(shared)}
    content |= {"decides": ["model.latent_channels"]}
    (shared / "sweep.json").write_text(json.dumps(content))


MATERIALS: dict[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (photos, layouts, faces, pictures, photographs, samples, kodak, flickr2w, phase)
}


def make(names: Iterable[str], work: Path) -> None:
    """Make what a mark names, once each, in the order named."""
    for name in names:
        MATERIALS[name](work)
