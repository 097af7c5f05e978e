"""Five iterations of a preset, as `--tiny` makes it, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces, make_layouts, make_photos
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.report import Silence
from imgtool.training.run import train
from tests.latents import make_latents

ITERATIONS = 5
SETS = (
    *(f"train.max_iter={ITERATIONS}", "train.log_every=1", "train.epochs=null"),
    # Nothing is validated: that is no part of what is pinned.
    *("data.val_fraction=0", "data.test_fraction=0", "train.patience=null"),
    *("train.threads=1", "train.device=cpu", "data.num_workers=0", "output.shared_dir=null"),
)
Losses = list[dict[str, float]]


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data set -> the setting that points to one of our own drawing."""
    folder = tmp_path_factory.mktemp("data")
    layouts = make_layouts(folder / "layouts", 12, size=64, seed=1)
    photos = make_photos(folder / "photos", 8, size=96, seed=1)
    faces = make_faces(folder / "faces", 16, seed=1)
    latents = make_latents(folder / "latents.safetensors", 12)
    return {
        "layouts": f"data.manifest={layouts.path}",
        "photos": f"data.root={photos.path}",
        "celeba": f"data.root={faces.path}",
        "labelled_faces": f"data.root={faces.path}",
        "latents": f"data.root={latents}",
    }


@pytest.fixture(scope="session")
def vqvae(tmp_path_factory: pytest.TempPathFactory, five_iterations: Callable[..., Losses]) -> Path:
    """The VQ-VAE that some presets begin with, trained a little."""
    path = tmp_path_factory.mktemp("vqvae") / "run"
    five_iterations("genegan/vqvae", path)
    return path


@pytest.fixture(scope="session")
def five_iterations(roots: dict[str, str]) -> Callable[..., Losses]:
    """five_iterations(preset, exp_dir, *sets) -> what each iteration logged, less times."""

    def five_iterations(name: str, exp_dir: Path, *sets: str) -> Losses:
        plain = load(name, family=None, schema_of=schema, tiny=True).experiment
        given = [*SETS, roots[plain.data.dataset], *sets]
        loaded = load(name, family=None, schema_of=schema, tiny=True, sets=given)
        directory = ExperimentDir(exp_dir)
        directory.create()
        threads = torch.get_num_threads()
        try:
            outcome = train(loaded, directory, stop=StopRequest(), reporter=Silence())
        finally:
            torch.set_num_threads(threads)
        assert (outcome.state, outcome.iteration) == ("completed", ITERATIONS)
        lines = map(json.loads, directory.metrics_path.read_text().splitlines())
        return [_losses(row) for row in lines if row["kind"] == "train"]

    return five_iterations


NO_LOSSES = {
    *("kind", "iteration", "epoch", "lr", "bad_steps", "images_per_sec", "data_wait"),
    *("elapsed_sec", "time"),
}


def _losses(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k not in NO_LOSSES and not isinstance(v, str)}
