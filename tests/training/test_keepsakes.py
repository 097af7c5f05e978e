"""What a run leaves for those who choose among several."""

import json

import numpy as np
import pytest
from PIL import Image

from imgtool.data.views import View
from imgtool.errors import OutOfMemory
from imgtool.experiment.status import read_status
from imgtool.training import keepsakes


def test_pairs_latents_and_costs(run, tmp_path, photos):
    trained = run(tmp_path / "a", "train.max_iter=6", "data.val_fraction=0.4")
    pictures = sorted(trained.directory.samples_dir.glob("val_*.png"))
    assert len(pictures) == 4
    originals = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(photos.iterdir())]
    for path in pictures:
        pair = np.asarray(Image.open(path))
        assert pair.shape == (48, 96, 3)
        assert any((pair[:, :48] == original).all() for original in originals)
    found = json.loads((trained.directory.path / "latents.json").read_text())
    assert found["latent_shape"] == [4, 12, 12]
    assert found["num_images"] == 4
    assert found["num_pairs"] == 6  # four images, each with each
    assert found["midpoint_energy"] > 0
    assert found["end_energy_se"] > 0
    assert (trained.directory.samples_dir / "interpolation_00.png").exists()
    status = read_status(trained.directory)
    assert status["facts"]["images_per_sec"] > 0
    assert status["facts"]["peak_memory_bytes"] > 50_000_000
    assert status["max_iteration"] == 6
    assert trained.outcome.facts["images_per_sec"] == status["facts"]["images_per_sec"]


def test_they_show_the_best_weights_not_the_last(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=5", "data.val_fraction=0.4")
    best = sorted(first.directory.samples_dir.glob("val_*.png"))[0].read_bytes()
    # Such a learning rate can only make it worse.
    worse = ("train.max_iter=8", "data.val_fraction=0.4", "train.val_every=8")
    again = run(tmp_path / "a", *worse)
    if again.outcome.best["iteration"] == 5:
        assert sorted(again.directory.samples_dir.glob("val_*.png"))[0].read_bytes() == best
    else:
        assert sorted(again.directory.samples_dir.glob("val_*.png"))[0].read_bytes() != best


def test_no_training_reads_a_test_image(run, tmp_path, monkeypatch):
    names, read = [], View.read

    def noting(view, index):
        names.append(view.name(index))
        return read(view, index)

    monkeypatch.setattr(View, "read", noting)
    parts = ("data.val_fraction=0.3", "data.test_fraction=0.3")
    trained = run(tmp_path / "a", "train.max_iter=12", "train.val_every=4", *parts)
    split = json.loads(trained.directory.split_path.read_text())
    assert split["test"]
    assert not set(names) & set(split["test"])
    assert set(names) == {*split["train"], *split["val"]}


def test_a_disk_that_refuses_is_a_warning(run, tmp_path, monkeypatch):
    def refuse(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keepsakes, "write_text", refuse)
    trained = run(tmp_path / "a", "train.max_iter=2", "data.val_fraction=0.4")
    assert trained.outcome.state == "completed"
    assert any("not all samples" in message for message in trained.messages)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes"),
    ],
)
def test_a_full_memory_is_told_as_such(run, tmp_path, monkeypatch, error):
    def fail(*words, **options):
        raise error

    monkeypatch.setattr("imgtool.training.assemble.Stepper", fail)
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        run(tmp_path / "a", "train.max_iter=2")
    assert "--batch-size" in caught.value.hint
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.sweep.state import read_state

    assert read_state(ExperimentDir(tmp_path / "a")).state == "out_of_memory"
