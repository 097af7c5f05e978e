"""A pause is no limit: what goes on from there equals what never paused."""

import json

import pytest
import torch

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces, make_layouts, make_photos
from imgtool.experiment.status import read_status
from imgtool.models.registry import FAMILIES, schema
from tests.latents import make_latents

SETS = (
    *("train.max_iter=8", "train.epochs=null", "train.log_every=2", "train.val_every=4"),
    *("train.save_every=1000", "train.schedule=cosine", "train.warmup_iterations=2"),
    *("train.ema_decay=0.9", "train.threads=1", "train.device=cpu", "data.num_workers=0"),
    *("output.shared_dir=null", "train.keep=0", "data.test_fraction=0"),
)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    layouts = make_layouts(folder / "layouts", 12, size=64, seed=1)
    photos = make_photos(folder / "photos", 8, size=96, seed=1)
    faces = make_faces(folder / "faces", 24, seed=1)
    latents = make_latents(folder / "latents.safetensors", 12)
    return {
        "layouts": f"data.manifest={layouts.path}",
        "photos": f"data.root={photos.path}",
        "celeba": f"data.root={faces.path}",
        "labelled_faces": f"data.root={faces.path}",
        "latents": f"data.root={latents}",
    }


def preset_of(family):
    """The first preset of a family."""
    for name in presets.names():
        experiment = load(name, family=None, schema_of=schema, tiny=True).experiment
        if experiment.family == family:
            return name, experiment.data.dataset
    raise AssertionError(f"no preset of {family}")


def same(one, other):
    a, b = one.tensors(), other.tensors()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert one.rows() == other.rows()
    assert one.table() == other.table()


@pytest.mark.parametrize("family", FAMILIES)
def test_promoted_equals_never_paused(family, roots, run, tmp_path):
    preset, dataset = preset_of(family)
    sets = [*SETS, roots[dataset]]
    straight = run(tmp_path / "straight", *sets, preset=preset)
    for rung in (3, 4):  # beside and at a validation of the whole training
        paused = run(tmp_path / "parts", *sets, preset=preset, pause_at=rung)
        outcome, status = paused.outcome, read_status(paused.directory)
        assert (outcome.state, outcome.reason) == ("stopped", f"paused at {rung}")
        assert (outcome.iteration, outcome.is_paused) == (rung, True)
        assert status["paused"]["at"] == rung
        last = json.loads(paused.directory.metrics_path.read_text().splitlines()[-1])
        metrics = {key: value for key, value in last.items() if key.startswith("val_")}
        assert metrics
        assert status["paused"]["metrics"] == metrics
        assert last["iteration"] == rung
    parts = run(tmp_path / "parts", *sets, preset=preset, pause_at=100)
    assert parts.outcome.state == straight.outcome.state == "completed"
    assert "paused" not in read_status(parts.directory)
    same(straight, parts)


def test_epochs_and_the_plan_of_the_whole_training_stay(run, tmp_path):
    """Ten photos, one held out twice over: two batches an epoch."""
    sets = ["train.max_iter=8", "train.val_every=1000", "train.final_validation=false"]
    paused = run(tmp_path / "a", *sets, pause_at="2ep")
    assert paused.outcome.iteration == 4
    assert paused.outcome.metrics["val_loss"] is not None
    status = read_status(paused.directory)
    assert (status["state"], status["reason"]) == ("stopped", "paused at 2ep")
    assert status["max_iteration"] == 8
    again = run(tmp_path / "a", *sets, pause_at="1ep")  # past it already: nothing is trained
    assert (again.outcome.iteration, again.outcome.is_paused) == (4, True)
    assert again.outcome.metrics == paused.outcome.metrics


def test_patience_does_not_count_pauses(run, tmp_path):
    sets = ["train.max_iter=20", "train.val_every=4", "train.patience=2", "train.min_delta=100"]
    straight = run(tmp_path / "straight", *sets)
    for rung in (3, 5, 9):
        paused = run(tmp_path / "parts", *sets, pause_at=rung)
        assert paused.outcome.reason == f"paused at {rung}"
    parts = run(tmp_path / "parts", *sets)
    assert straight.outcome.reason == parts.outcome.reason == "early stopping"
    assert straight.outcome.iteration == parts.outcome.iteration == 12
    same(straight, parts)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_a_stop_before_or_at_the_pause_is_a_stop(run, tmp_path, stage):
    at = 3 if stage == "validate" else 2
    stopped = run(tmp_path / "a", "train.max_iter=8", pause_at=3, stop_at=at, stage=stage)
    assert (stopped.outcome.state, stopped.outcome.reason) == ("stopped", "test")
    assert not stopped.outcome.is_paused
    assert "paused" not in read_status(stopped.directory)
    paused = run(tmp_path / "a", "train.max_iter=8", pause_at=3)
    assert paused.outcome.is_paused
    same(paused, run(tmp_path / "b", "train.max_iter=8", pause_at=3))


def test_the_pause_waits_for_a_good_step(run, tmp_path, monkeypatch):
    from imgtool.training.saving import Saver

    plain = Saver.last_step_is_bad
    monkeypatch.setattr(
        Saver,
        "last_step_is_bad",
        lambda self: self.run.position.iteration == 3 or plain(self),
    )
    paused = run(tmp_path / "a", "train.max_iter=8", pause_at=3)
    assert (paused.outcome.iteration, paused.outcome.is_paused) == (4, True)
    assert paused.directory.checkpoint_path(4).exists()
