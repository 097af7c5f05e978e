"""Bad steps, limits, early stopping, best, intervals, status and logs of a real training."""

import json
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imgtool.errors import DivergedError, UsageError
from imgtool.experiment.checkpoint_file import read
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.models.autoencoder import task as autoencoder
from imgtool.training.step import Stepper


@pytest.fixture
def spoil(monkeypatch):
    """spoil(steps): the loss is NaN at these optimizer steps (0 is the first)."""

    def spoil(steps):
        update = autoencoder.AutoencoderUpdate
        plain = update.forward

        def forward(self, batch):
            losses = plain(self, batch)
            if batch["noise"].step in steps:
                losses["loss"] = losses["loss"] * float("nan")
            return losses

        monkeypatch.setattr(update, "forward", forward)

    return spoil


def test_a_few_bad_steps_are_skipped_and_counted(run, tmp_path, spoil):
    spoil({3, 4, 8})
    trained = run(tmp_path / "a", "train.max_iter=12")
    assert trained.outcome.state == "completed"
    rows = [row for row in trained.rows() if row["kind"] == "train"]
    assert rows[-1]["bad_steps"] == 3
    assert all(torch.isfinite(t).all() for t in trained.tensors().values() if t.is_floating_point())
    assert all(row["loss"] is not None for row in rows)


def test_no_checkpoint_is_written_while_steps_are_bad(run, tmp_path, spoil):
    spoil({4, 5})  # iterations 5 and 6; a save is due at 5
    trained = run(tmp_path / "a", "train.max_iter=8", "train.val_every=100")
    names = sorted(p.name for p in trained.directory.checkpoints_dir.glob("iter_*"))
    assert names == ["iter_000007.safetensors", "iter_000008.safetensors"]


def test_too_many_in_a_row_end_the_run_as_diverged(run, tmp_path, spoil):
    spoil(set(range(6, 100)))
    with pytest.raises(DivergedError, match="5 steps in a row|6 steps in a row") as caught:
        run(tmp_path / "a", "train.max_iter=50")
    last_good = tmp_path / "a/checkpoints/iter_000005.safetensors"
    assert str(last_good) in caught.value.hint
    assert caught.value.exit_code == 3
    assert last_good.exists()
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert status["state"] == "diverged"
    assert sorted(os.listdir(tmp_path / "a/checkpoints"))[-1] == "latest.safetensors"


def test_bad_steps_between_two_looks_still_count(run, tmp_path, spoil):
    spoil(set(range(2, 7)))  # five in a row, over before the log at 10
    with pytest.raises(DivergedError):
        run(
            tmp_path / "a",
            "train.max_iter=20",
            "train.log_every=10",
            "train.save_every=100",
            "train.val_every=100",
        )


def test_early_stopping_reports_the_best_and_saves_it(run, tmp_path, monkeypatch):
    values = iter([0.5, 0.2, 0.4, 0.3, 0.35, 0.1])
    plain = autoencoder.AutoencoderEvaluator.compute

    def compute(self):
        return {**plain(self), "mse": next(values)}

    monkeypatch.setattr(autoencoder.AutoencoderEvaluator, "compute", compute)
    trained = run(tmp_path / "a", "train.patience=3", "train.val_every=2", "train.save_every=100")
    assert (trained.outcome.reason, trained.outcome.iteration) == ("early stopping", 10)
    assert trained.outcome.best == {"metric": "val_mse", "value": 0.2, "iteration": 4}
    assert trained.outcome.checkpoint.name == "iter_000004.safetensors"
    assert os.readlink(trained.directory.best_path) == "iter_000004.safetensors"
    assert [row["iteration"] for row in trained.table()] == ["2", "4", "6", "8", "10"]
    assert trained.outcome.metrics["val_mse"] == 0.2


def test_best_survives_retention(run, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    plain = autoencoder.AutoencoderEvaluator.compute
    monkeypatch.setattr(
        autoencoder.AutoencoderEvaluator,
        "compute",
        lambda self: {**plain(self), "mse": next(values)},
    )
    trained = run(
        tmp_path / "a",
        "train.max_iter=10",
        "train.val_every=2",
        "train.save_every=2",
        "train.keep=2",
    )
    names = sorted(p.name for p in trained.directory.checkpoints_dir.glob("iter_*"))
    assert names == [f"iter_{i:06d}.safetensors" for i in (2, 8, 10)]


def test_limits(run, tmp_path):
    by_epochs = run(tmp_path / "epochs", "train.epochs=3")
    assert by_epochs.outcome.reason == "epochs"
    assert by_epochs.outcome.iteration == 6  # 8 training images in batches of 4
    assert by_epochs.outcome.epoch == 3.0
    by_time = run(tmp_path / "time", "train.max_time=0.5s")
    assert (by_time.outcome.state, by_time.outcome.reason) == ("completed", "max_time")
    spent = run(tmp_path / "time", "train.max_time=0.5s")
    # The last checkpoint may be from just before the time was up, and a new half second is more.
    assert spent.outcome.iteration < 2 * by_time.outcome.iteration


def test_intervals_may_count_epochs(run, tmp_path):
    trained = run(
        tmp_path / "a",
        "train.epochs=4",
        "train.val_every=1ep",
        "train.save_every=2ep",
        "train.sample_every=2ep",
    )
    assert [row["epoch"] for row in trained.table()] == ["1", "2", "3", "4"]
    saved = [p.name for p in trained.directory.checkpoints_dir.glob("iter_*")]
    assert {"iter_000004.safetensors", "iter_000008.safetensors"} <= set(saved)
    pictures = sorted(p.name for p in trained.directory.samples_dir.glob("iter_*"))
    assert pictures == ["iter_000004_comparison.png", "iter_000008_comparison.png"]


def test_the_directory_holds_what_the_design_promises(run, tmp_path):
    shared = tmp_path / "shared"
    trained = run(
        tmp_path / "a",
        "train.max_iter=10",
        f"output.shared_dir={shared}",
        "output.tensorboard=true",
    )
    directory = trained.directory
    status = read_status(directory)
    assert status["state"] == "completed"
    assert status["iteration"] == 10
    assert "bit for bit" in status["exact_resume"]
    assert "# --set" in directory.config_path.read_text()
    assert json.loads(directory.split_path.read_text())["val"]
    assert "iteration 10" in directory.log_path.read_text()
    assert os.readlink(directory.latest_path) == "iter_000010.safetensors"
    assert list(directory.samples_dir.glob("*_comparison.png"))
    assert list((directory.path / "tensorboard").glob("events*"))
    assert (shared / "autoencoder_metrics.csv").exists()
    assert list((shared / "samples").glob("autoencoder_iter_000010*.png"))
    row = trained.table()[-1]
    assert float(row["val_psnr"]) > 0
    assert float(row["train_mse_pm1"]) > 0
    assert read(directory.latest_path).header.config["model"]["latent_channels"] == 4


def test_the_end_of_every_run_is_drawn(run, tmp_path):
    stopped = run(tmp_path / "a", "train.max_iter=9", stop_at=3)
    pictures = stopped.directory.samples_dir
    assert [p.name for p in pictures.glob("iter_*")] == ["iter_000003_comparison.png"]
    run(tmp_path / "a", "train.max_iter=9")
    assert (pictures / "iter_000009_comparison.png").exists()


def test_the_loss_falls(run, tmp_path):
    trained = run(tmp_path / "a", "train.max_iter=60", "train.val_every=30", "train.lr=3e-3")
    losses = [row["loss"] for row in trained.rows() if row["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]


def test_compiled_targets_train(run, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(self))
    run(tmp_path / "a", "train.max_iter=1", "train.compile=true")
    assert compiled


def test_validation_is_not_compiled(run, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(torch.is_grad_enabled())
        return graph

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: compile_(module, **{**options, "backend": backend}),
    )
    run(tmp_path / "a", "train.max_iter=2", "train.val_every=1", "train.compile=true")
    assert graphs
    assert all(graphs)


def test_bf16_keeps_weights_in_float32(run, tmp_path):
    trained = run(tmp_path / "a", "train.max_iter=2", "train.precision=bf16-mixed")
    weights = [t for name, t in trained.tensors().items() if name.startswith("model.")]
    assert {t.dtype for t in weights if t.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_wandb_offline_gets_the_same_values(run, tmp_path):
    pytest.importorskip("wandb")
    trained = run(
        tmp_path / "a",
        "train.max_iter=4",
        "output.wandb=offline",
        f"output.log_dir={tmp_path}/logs",
    )
    assert trained.outcome.iteration == 4
    assert list((tmp_path / "logs/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("key", [None, "short"])
def test_wandb_without_a_key_is_refused_and_asks_nobody(key, run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(UsageError, match="key") as refusal:
        run(tmp_path / "a", "train.max_iter=1", "output.wandb=online")
    assert "--wandb offline" in refusal.value.hint


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_a_step_reads_nothing_back_to_the_host(run, tmp_path, monkeypatch, bottleneck, optimizer):
    reads = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    plain = Stepper.step

    def step(self, *args, **options):
        if self.steps == 0:  # this one starts the loader, which draws a seed
            return plain(self, *args, **options)
        with Watch():
            return plain(self, *args, **options)

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr("imgtool.training.optim.on_host", lambda flag: False)
    run(
        tmp_path / "a",
        "train.max_iter=3",
        f"model.bottleneck={bottleneck}",
        f"train.optimizer={optimizer}",
        "train.momentum=0.9",
        "train.clip_norm=0.1",
        "train.ema_decay=0.9",
        "train.accumulate=2",
    )
    assert seen
    assert not reads & set(seen)


QUIET = ["train.save_every=1000", "train.val_every=1000", "train.sample_every=1000"]


def test_the_bound_on_bad_steps_holds_whatever_is_logged(run, tmp_path, spoil):
    spoil(set(range(3, 100)))
    with pytest.raises(DivergedError, match="5 steps in a row"):
        run(tmp_path / "a", "train.max_iter=60", "train.log_every=1000", *QUIET)
    assert read_status(ExperimentDir(tmp_path / "a"))["state"] == "diverged"


def test_a_run_whose_last_steps_were_bad_is_diverged(run, tmp_path, spoil):
    spoil({1, 2, 3, 4})
    with pytest.raises(DivergedError, match="the last 4 steps gave non-finite values"):
        run(tmp_path / "a", "train.max_iter=5", *QUIET)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_monitored_value_that_is_not_finite_is_diverged(run, tmp_path, monkeypatch, value):
    evaluator = autoencoder.AutoencoderEvaluator
    plain = evaluator.compute
    monkeypatch.setattr(evaluator, "compute", lambda self: {**plain(self), "mse": value})
    with pytest.raises(DivergedError, match="val_mse is (nan|inf) at iteration 5"):
        run(tmp_path / "a", "train.max_iter=10", "train.save_every=4")
    status = read_status(ExperimentDir(tmp_path / "a"))
    assert status["state"] == "diverged"
    assert (tmp_path / "a/checkpoints/iter_000004.safetensors").exists()


def test_a_run_without_a_limit_says_how_to_end_it(run, tmp_path):
    endless = run(tmp_path / "a", stop_at=2)
    assert "no limit set: Ctrl-C saves and stops" in endless.messages
    limited = run(tmp_path / "b", "train.max_iter=2")
    assert not any("no limit" in text for text in limited.messages)


def test_losses_are_shown_after_the_first_iteration_of_each_start(run, tmp_path):
    sets = ["train.log_every=50", *QUIET]
    first = run(tmp_path / "a", "train.max_iter=3", *sets)
    assert "iteration 1 epoch" in first.directory.log_path.read_text()
    assert not [row for row in first.rows() if row["kind"] == "train"]  # nothing was due
    again = run(tmp_path / "a", "train.max_iter=6", *sets)
    assert "iteration 4 epoch" in again.directory.log_path.read_text()


def test_a_stopped_run_is_validated_once_unless_told_otherwise(run, tmp_path):
    stopped = run(tmp_path / "a", *QUIET, stop_at=7)
    assert stopped.outcome.metrics["val_mse"] > 0
    assert [int(row["iteration"]) for row in stopped.table()] == [7]
    straight = run(tmp_path / "c", "train.max_iter=9", "train.schedule=constant", *QUIET)
    again = run(tmp_path / "a", "train.max_iter=9", "train.schedule=constant", *QUIET)
    assert again.table() == straight.table()  # the row was of a look, no part of the training
    silent = run(tmp_path / "b", "train.final_validation=false", *QUIET, stop_at=7)
    assert not silent.outcome.metrics
    recent = run(tmp_path / "d", "train.val_every=5", stop_at=7)
    assert [int(row["iteration"]) for row in recent.table()] == [5]


def test_a_long_final_validation_is_given_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr("imgtool.training.loop.FINAL_VALIDATION_SEC", -1.0)
    stopped = run(tmp_path / "a", *QUIET, stop_at=3)
    assert stopped.outcome.state == "stopped"
    assert not stopped.outcome.metrics
    assert any("final validation took longer" in text for text in stopped.messages)
