"""Every preset of the queue trains, resumes bit for bit, and is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces
from imgtool.evaluation.fid.checkpoints import CheckpointMeter
from imgtool.evaluation.fid.options import Options
from imgtool.evaluation.fid.weights import find_weights
from imgtool.experiment.checkpoint_file import read
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.report import Silence
from imgtool.training.run import train

SMALLER = [
    *(
        "model.base_channels=8",
        "model.norm_groups=4",
        "data.max_images=16",
        "data.val_fraction=0.2",
    ),
    *("train.batch_size=2", "train.max_iter=4", "train.save_every=2", "train.val_every=4"),
    *("train.sample_every=4", "loss.critic_burst=2", "train.threads=1", "train.device=cpu"),
    *("data.num_workers=0", "train.log_every=1", "train.keep=0"),
]
NAMES = [
    name
    for name in presets.names()
    if name.startswith("genegan/") and name not in ("genegan/vqvae", "genegan/exp06b")
]


class StopsIn(Silence):
    """Asks for a stop in the middle of an iteration: after so many pieces of news."""

    def __init__(self, stop: StopRequest, after: int) -> None:
        self.stop, self.after = stop, after

    def progress(self, progress: object) -> None:
        self.after -= 1
        if self.after == 0:
            self.stop.ask("test")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "set"
    make_faces(folder, 24, seed=3)
    return folder


class Quiet:
    """Hears what a measurement says, and says nothing."""

    def note(self, text: str) -> None: ...

    def progress(self, stage: str, unit: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMeter:
    """One Inception, of random weights, for all presets."""
    cache = tmp_path_factory.mktemp("cache")
    options = Options(weights="random", n=3, batch_size=3, device="cpu", cache_dir=cache)
    return CheckpointMeter(options, Quiet(), find_weights("inception-fid", "random"), {})


def trained(name, faces, exp_dir, *sets, stop_after=0):
    given = [*SMALLER, f"data.root={faces}", *sets]
    loaded = load(name, family=None, schema_of=schema, sets=given, tiny=True)
    directory = ExperimentDir(exp_dir)
    directory.create()
    stop = StopRequest()
    reporter = StopsIn(stop, stop_after) if stop_after else Silence()
    return train(loaded, directory, stop=stop, reporter=reporter), directory


def check_resume(name, faces, folder, *sets):
    outcome, straight = trained(name, faces, folder / "straight", *sets)
    assert (outcome.state, outcome.iteration) == ("completed", 4)
    stopped, parts = trained(name, faces, folder / "parts", *sets, stop_after=2)
    assert stopped.state == "stopped"
    assert stopped.iteration < 4
    again, _ = trained(name, faces, folder / "parts", *sets)
    assert again.state == "completed"
    first, second = read(straight.latest_path).tensors, read(parts.latest_path).tensors
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, different[:5]
    assert any(key.endswith("square_avg") for key in first)
    assert not straight.best_path.is_symlink()  # nothing here says what is best
    rows = [json.loads(line) for line in straight.metrics_path.read_text().splitlines()]
    logged = {key for row in rows for key in row}
    wanted = "e cycle_Ax cycle_Be Bx Ae parallelogram loss_G_nodecay loss_G_decay loss_G"
    assert {*wanted.split(), "Ax_Bx", "Be_Ae", "loss_D"} <= logged
    return straight


def check_evaluation(directory, meter):
    record = meter.measure(str(directory.path))
    assert (record["iteration"], record["num_images"]) == (4, 3)
    assert (record["Bu_against"], record["A0_against"]) == ("with", "without")
    assert record["fid"] == (record["fid_Bu"] + record["fid_A0"]) / 2 > 0
    assert record["fid_baseline"] > 0
    assert not record["comparable"]


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains_resumes_and_is_evaluated(name, faces, tmp_path, meter):
    directory = check_resume(name, faces, tmp_path)
    check_evaluation(directory, meter)
    assert list(directory.samples_dir.glob("iter_000004_faces.png"))


def test_exp06b_begins_with_a_vqvae_of_ours(faces, tmp_path, meter):
    photos = faces / "img_align_celeba"
    of_vqvae = [
        *("data.image_size=64", "data.crop=64", "data.max_images=8", "model.base_channels=16"),
        *("model.latent_channels=16", "model.max_channels=null", "train.max_iter=2"),
        *("train.batch_size=2", "train.threads=1", "train.device=cpu", f"data.root={photos}"),
    ]
    loaded = load("genegan/vqvae", family=None, schema_of=schema, sets=of_vqvae, tiny=True)
    vqvae = ExperimentDir(tmp_path / "vqvae")
    vqvae.create()
    train(loaded, vqvae, stop=StopRequest(), reporter=Silence())
    begins = (f"model.init_vqvae_ckpt={vqvae.path}", "model.base_channels=16")
    directory = check_resume("genegan/exp06b", faces, tmp_path, *begins)
    check_evaluation(directory, meter)
    report = json.loads((directory.path / "warm_start.json").read_text())
    assert set(report) == {"loaded", "ambiguous", "missing"}
    assert report["loaded"]["splitter.layers.3.conv.weight"].startswith("network.encoder")
    assert "joiner.layers.0.conv.weight" in report["loaded"]
    # What was begun with is in the first weights, and training has moved them a little.
    theirs = read(vqvae.latest_path).tensors
    mine = read(directory.checkpoint_path(2)).tensors
    for ours, name in report["loaded"].items():
        near = mine[f"model.{ours}"] - theirs[f"model.{name}"]
        assert 0 < near.abs().max() < 0.01
