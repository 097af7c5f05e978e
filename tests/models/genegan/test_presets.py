"""Every preset of the queue trains, resumes bit for bit, and is evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import UserError
from imgtool.evaluation.editing import open_editor
from imgtool.evaluation.fid.checkpoints import CheckpointMeter
from imgtool.evaluation.fid.features import FEATURE_SETS
from imgtool.evaluation.fid.options import Options
from imgtool.experiment.checkpoint_file import read
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.published import RANDOM, Weights
from imgtool.training.report import Silence
from imgtool.training.run import train
from tests.evaluation.fid.making import SMALLEST_SIDE
from tests.small import SMALL_FACES

SMALLER = [
    *(
        "model.base_channels=8",
        "model.norm_groups=4",
        "data.max_images=16",
        "data.val_fraction=0.2",
        *SMALL_FACES,
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


# The others differ from these in settings whose first losses tests/golden pins.
QUICK = ("genegan/exp02_critics", "genegan/exp04_group_norm")


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
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointMeter]:
    """One Inception, of random weights and small images, for all presets."""
    cache = tmp_path_factory.mktemp("cache")
    options = Options(weights="random", n=3, batch_size=3, device="cpu", cache_dir=cache)
    with pytest.MonkeyPatch.context() as patch:
        small = replace(FEATURE_SETS["inception-fid"], side=SMALLEST_SIDE)
        patch.setitem(FEATURE_SETS, "inception-fid", small)
        yield CheckpointMeter(options, Quiet(), Weights(None, RANDOM, verified=False), {})


def trained(name, faces, exp_dir, *sets, stop_after=0):
    given = [*SMALLER, f"data.root={faces}", *sets]
    loaded = load(name, family=None, schema_of=schema, sets=given, tiny=True)
    directory = ExperimentDir(exp_dir)
    directory.create()
    stop = StopRequest()
    reporter = StopsIn(stop, stop_after) if stop_after else Silence()
    return train(loaded, directory, stop=stop, reporter=reporter), directory


def check_bits(name, faces, folder, *sets):
    """A run that was stopped and went on is the run that was not, bit for bit."""
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
    return straight


def check_resume(name, faces, folder, *sets):
    straight = check_bits(name, faces, folder, *sets)
    averages = ("square_avg", "exp_avg_sq")  # of rmsprop, of adam
    assert any(key.endswith(averages) for key in read(straight.latest_path).tensors)
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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_every_preset_trains_resumes_and_is_evaluated(name, faces, tmp_path, meter):
    directory = check_resume(name, faces, tmp_path)
    check_evaluation(directory, meter)
    assert list(directory.samples_dir.glob("iter_000004_faces.png"))


@pytest.fixture(scope="module")
def vqvae(faces, tmp_path_factory):
    """The VQ-VAE that EXP06b begins with, and whether a stopped one went on as one that ran."""
    folder = tmp_path_factory.mktemp("vqvae")
    return check_bits("genegan/vqvae", faces, folder, "train.val_every=2")


def test_the_vqvae_has_a_best_and_shows_what_comes_back(vqvae, meter):
    rows = [json.loads(line) for line in vqvae.metrics_path.read_text().splitlines()]
    assert all({"loss", "l1", "commitment"} <= set(row) for row in rows if row["kind"] == "train")
    assert [row["val_mse"] > 0 for row in rows if row["kind"] == "evaluation"] == [True, True]
    assert vqvae.best_path.exists()
    assert list(vqvae.samples_dir.glob("iter_000004_reconstruction.png"))
    tensors = read(vqvae.latest_path).tensors
    assert tensors["model.codebook.initialised"]
    assert tensors["model.codebook.codebook"].abs().sum() > 0
    record = meter.measure(str(vqvae.path))
    assert (record["Au_hat_against"], record["B0_hat_against"]) == ("with", "without")
    with pytest.raises(UserError, match="is a VQ-VAE, which exchanges nothing"):
        open_editor(str(vqvae.latest_path), device="cpu")


def test_exp06b_begins_with_the_shipped_vqvae(vqvae, faces, tmp_path, meter):
    begins = f"model.init_vqvae_ckpt={vqvae.latest_path}"
    directory = check_resume("genegan/exp06b", faces, tmp_path, begins)
    check_evaluation(directory, meter)
    report = json.loads((directory.path / "warm_start.json").read_text())
    mine = read(directory.checkpoint_path(2)).tensors
    # Every convolution, every norm with its statistics, and the joiner's bias.
    generator = {
        name.removeprefix("model.")
        for name in mine
        if name.startswith(("model.splitter.", "model.joiner."))
    }
    loaded = {name: name for name in generator}
    assert report == {"loaded": loaded, "ambiguous": {}, "missing": [], "not_meant": {}}
    # What was begun with is in the first weights, and training has moved them a little.
    theirs = read(vqvae.latest_path).tensors
    trained_on = [name for name in generator if name.endswith("conv.weight")]
    assert len(trained_on) == 5
    for name in trained_on:
        near = mine[f"model.{name}"] - theirs[f"model.{name}"]
        assert 0 < near.abs().max() < 0.01
