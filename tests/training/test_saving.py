"""What is saved when, and where `latest` and `best` lead, through kills, branches and bad steps."""

import gc
import json
import os
from dataclasses import replace

import pytest
import torch

from imgtool.errors import CheckpointError, ExperimentError, UsageError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoints import pointed
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.files import point
from imgtool.models.autoencoder import task as autoencoder
from imgtool.process.stopping import StopRequest
from imgtool.training import loop, saving


@pytest.fixture
def measure(monkeypatch):
    """measure(*values): the next validations' val_mse."""
    plain = autoencoder.AutoencoderEvaluator.compute

    def measure(*values):
        left = iter(values)
        monkeypatch.setattr(
            autoencoder.AutoencoderEvaluator,
            "compute",
            lambda self: {**plain(self), "mse": next(left)},
        )

    return measure


def links(directory):
    return {
        name: os.readlink(directory.checkpoints_dir / f"{name}.safetensors")
        for name in ("latest", "best")
    }


def test_links_that_a_kill_left_behind_are_mended(run, tmp_path, measure):
    measure(0.5, 0.2)
    first = run(tmp_path / "a", "train.max_iter=10")
    for link in (first.directory.latest_path, first.directory.best_path):
        point(link, "iter_000005.safetensors")
    again = run(tmp_path / "a", "train.max_iter=10")
    assert again.outcome.checkpoint.name == "iter_000010.safetensors"
    newest = "iter_000010.safetensors"
    assert links(again.directory) == {"latest": newest, "best": newest}


def test_weights_of_a_bad_step_are_not_called_best(run, tmp_path, measure, monkeypatch):
    plain = autoencoder.AutoencoderUpdate.forward

    def forward(self, batch):
        losses = plain(self, batch)
        if batch["noise"].step == 4:  # the fifth
            losses["loss"] = losses["loss"] * float("nan")
        return losses

    monkeypatch.setattr(autoencoder.AutoencoderUpdate, "forward", forward)
    measure(0.1, 0.5)
    trained = run(tmp_path / "a", "train.max_iter=10")
    assert trained.outcome.best == {"metric": "val_mse", "value": 0.5, "iteration": 10}
    assert links(trained.directory)["best"] == "iter_000010.safetensors"


def test_a_bad_last_step_is_said_not_saved(run, tmp_path, monkeypatch):
    plain = autoencoder.AutoencoderUpdate.forward

    def forward(self, batch):
        losses = plain(self, batch)
        if batch["noise"].step == 6:
            losses["loss"] = losses["loss"] * float("nan")
        return losses

    monkeypatch.setattr(autoencoder.AutoencoderUpdate, "forward", forward)
    trained = run(tmp_path / "a", "train.max_iter=7")
    assert trained.outcome.checkpoint.name == "iter_000005.safetensors"
    assert any("iteration 7 is not saved" in text for text in trained.messages)


def branch(first, run, exp_dir, *sets):
    return run(exp_dir, *sets, resume=str(first.directory.checkpoint_path(5)))


def test_a_branch_has_a_best_of_its_own(run, tmp_path, measure):
    measure(0.1)
    first = run(tmp_path / "a", "train.max_iter=5")
    measure(0.5, 0.4)
    other = branch(first, run, tmp_path / "b", "train.max_iter=12", "train.val_every=6")
    assert other.outcome.best == {"metric": "val_mse", "value": 0.4, "iteration": 12}
    assert links(other.directory)["best"] == "iter_000012.safetensors"


def test_the_command_that_branched_off_goes_on_in_its_own_directory(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=5")
    branch(first, run, tmp_path / "b", "train.max_iter=7")
    again = branch(first, run, tmp_path / "b", "train.max_iter=9")
    assert any("resuming at iteration 7" in text for text in again.messages)
    assert again.outcome.iteration == 9


def test_a_branch_stopped_at_once_is_saved_in_its_directory(run, tmp_path, monkeypatch):
    first = run(tmp_path / "a", "train.max_iter=5")
    monkeypatch.setattr(StopRequest, "wanted", property(lambda self: True))
    stopped = branch(first, run, tmp_path / "b", "train.max_iter=9")
    assert stopped.outcome.state == "stopped"
    assert stopped.directory.checkpoint_path(5).exists()


def test_a_foreign_checkpoint_cannot_be_gone_on_from(run, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "iter_000005.pt")
    with pytest.raises(CheckpointError, match=r"iter_000005\.pt is no checkpoint of imgtool"):
        run(tmp_path / "a", "train.max_iter=9", resume=str(tmp_path / "iter_000005.pt"))


class Killed(BaseException):
    """What no handler expects."""


def test_a_kill_between_a_row_and_its_checkpoint_leaves_no_row_twice(run, tmp_path, monkeypatch):
    straight = run(tmp_path / "straight", "train.max_iter=10")
    run(tmp_path / "parts", "train.max_iter=10", stop_at=5, stage="validate")

    def kill(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saving.checkpoint_file, "write", kill)
        with pytest.raises(Killed):
            run(tmp_path / "parts", "train.max_iter=10")
    parts = run(tmp_path / "parts", "train.max_iter=10")
    assert parts.rows() == straight.rows()
    assert parts.table() == straight.table()


def test_a_kill_between_a_logged_row_and_its_checkpoint_leaves_no_row_twice(
    run, tmp_path, monkeypatch
):
    run(tmp_path / "a", "train.max_iter=5")

    def kill(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_iterate", kill)
        with pytest.raises(Killed):
            run(tmp_path / "a", "train.max_iter=10", "train.log_every=1")
    again = run(tmp_path / "a", "train.max_iter=10", "train.log_every=1")
    logged = [row["iteration"] for row in again.rows() if row["kind"] == "train"]
    assert logged == [2, 4, 5, 6, 7, 8, 9, 10]


def test_a_save_right_after_resuming_knows_the_last_loss(run, tmp_path):
    sets = ["train.max_iter=10", "train.log_every=5"]
    run(tmp_path / "a", *sets, stop_at=5, stage="validate")
    again = run(tmp_path / "a", *sets)
    header = checkpoint_file.read(again.directory.checkpoint_path(5)).header
    assert header.parts["position"]["validated"] == 5
    assert header.metrics["loss"] > 0


def test_the_checkpoint_that_was_read_is_let_go(run, tmp_path, monkeypatch):
    run(tmp_path / "a", "train.max_iter=2")
    held = []

    class Watched(loop.Loop):
        def __call__(self):
            gc.collect()
            held.extend(x for x in gc.get_objects() if isinstance(x, checkpoint_file.Checkpoint))
            return super().__call__()

    monkeypatch.setattr(loop, "Loop", Watched)
    assert run(tmp_path / "a", "train.max_iter=3").outcome.iteration == 3
    assert not held


def test_a_refused_start_leaves_the_status_alone(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=2")
    before = first.directory.status_path.read_bytes()
    with pytest.raises(ExperimentError):
        run(tmp_path / "a", "train.max_iter=2", "model.latent_channels=8")
    with pytest.raises(ExperimentError):
        run(tmp_path / "a", resume="never")
    assert first.directory.status_path.read_bytes() == before
    assert "belongs to another experiment" in first.directory.log_path.read_text()


def test_a_mistyped_monitor_costs_no_training(run, tmp_path):
    with pytest.raises(UsageError, match="val_pnsr") as caught:
        run(tmp_path / "a", "train.max_iter=9", "train.monitor=val_pnsr")
    assert "val_psnr" in caught.value.hint
    assert json.loads((tmp_path / "a/status.json").read_text())["state"] == "failed"
    mended = run(tmp_path / "a", "train.max_iter=9", "train.monitor=train_loss")
    assert any("resuming at iteration 5" in text for text in mended.messages)
    assert [row["iteration"] for row in mended.table()] == ["5", "9"]
    assert mended.outcome.best["metric"] == "train_loss"


def test_the_best_of_a_metric_of_which_more_is_better(run, tmp_path):
    sets = ("train.max_iter=8", "train.val_every=2", "train.lr=1e-3")
    trained = run(tmp_path / "a", *sets, "train.monitor=val_psnr")
    rows = {int(row["iteration"]): float(row["val_psnr"]) for row in trained.table()}
    assert len(set(rows.values())) > 1
    assert trained.outcome.best["iteration"] == max(rows, key=lambda iteration: rows[iteration])


def test_early_stopping_without_validation_images_is_refused(run, tmp_path):
    sets = ["data.val_fraction=0", "train.patience=2", "train.val_every=1", "train.max_iter=4"]
    with pytest.raises(UsageError, match="validation images"):
        run(tmp_path / "a", *sets)
    by_training = run(tmp_path / "b", *sets, "train.monitor=train_loss", "train.min_delta=100")
    assert (by_training.outcome.reason, by_training.outcome.iteration) == ("early stopping", 3)


def test_a_full_disk_under_samples_and_the_log_does_not_end_a_training(
    run, tmp_path, monkeypatch, capfd
):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_picture", full)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/train.log").symlink_to("/dev/full")
    trained = run(tmp_path / "a", "train.max_iter=2")
    assert trained.outcome.state == "completed"
    assert any("cannot write the sample" in text for text in trained.messages)
    assert "Logging error" not in capfd.readouterr().err


def test_what_a_kill_left_half_written_is_removed_everywhere(run, tmp_path):
    leftovers = [
        tmp_path / "a/.status.json.tmp-123",
        tmp_path / "a/samples/.iter_000005_comparison.png.tmp-123",
        tmp_path / "a/checkpoints/.iter_000005.safetensors.tmp-123",
    ]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    run(tmp_path / "a", "train.max_iter=1")
    assert not [path for path in leftovers if path.exists()]


def test_another_number_of_processes_goes_on_at_the_same_image_and_is_told(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=4")
    loaded = checkpoint_file.read(first.directory.latest_path)
    position = {**loaded.header.parts["position"], "world_size": 2}  # twice the images
    header = replace(loaded.header, parts={**loaded.header.parts, "position": position})
    checkpoint_file.write(tmp_path / "iter_000004.safetensors", loaded.tensors, header)
    again = run(
        tmp_path / "b", "train.max_iter=4", resume=str(tmp_path / "iter_000004.safetensors")
    )
    assert again.outcome.epoch == 2 * first.outcome.epoch
    assert any("trained on 2 ranks so far and on 1 from here" in text for text in again.messages)


def test_an_unlinkable_checkpoint_is_one_clear_error(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "point", full)
    with pytest.raises(CheckpointError, match=r"latest\.safetensors to iter_000002"):
        run(tmp_path / "a", "train.max_iter=2")
    assert read_status(ExperimentDir(tmp_path / "a"))["state"] == "failed"


def test_a_training_goes_on_where_there_are_no_links_and_says_so_once(run, tmp_path, link_kind):
    folder = tmp_path / "a/checkpoints"
    for number in (10, 15):
        trained = run(tmp_path / "a", f"train.max_iter={number}", "train.keep=1")
        told = [text for text in trained.messages if "no symbolic links" in text]
        assert [link_kind in text for text in told] == [True] * (link_kind != "symbolic link")
        assert pointed(folder / "latest.safetensors") == trained.outcome.checkpoint
    ends = {trained.outcome.checkpoint, pointed(folder / "best.safetensors")}
    assert set(folder.glob("iter_*")) == ends
