"""Stopping and going on, compared with never having stopped."""

import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
import torch

from imgtool.config.schema import STRICT, option
from imgtool.errors import CheckpointError, ExperimentError
from imgtool.experiment.status import read_status
from imgtool.models.autoencoder import interpolation
from imgtool.models.autoencoder import schema as autoencoder
from imgtool.process.stopping import StopRequest
from imgtool.training import loop, saving
from tests.small import ALL_LOSSES


def same_tensors(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]


def test_a_network_without_norms_resumes_exactly(run, tmp_path):
    sets = ["model.norm=none", "model.upsampling=nearest"]
    straight = run(tmp_path / "straight", *sets, "train.max_iter=8")
    run(tmp_path / "parts", *sets, stop_at=5)
    parts = run(tmp_path / "parts", *sets, "train.max_iter=8")
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()


def test_a_discriminator_and_all_losses_resume_exactly(run, tmp_path, monkeypatch):
    """Stopped before the discriminator trains, and before it counts."""
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", "random")
    monkeypatch.setattr(interpolation, "find_lpips", lambda device: None)  # costs more than all
    sets = [*ALL_LOSSES, "loss.gan_start=4", "loss.gan_warmup=2", "train.max_iter=6"]
    sets += [
        "model.bottleneck=kl",
        "train.accumulate=2",
        "train.batch_size=2",
        "train.log_every=1",
        "data.crop=24",
    ]
    straight = run(tmp_path / "straight", *sets)
    for stop_at in (1, 3):
        run(tmp_path / "parts", *sets, stop_at=stop_at)
    parts = run(tmp_path / "parts", *sets)
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()
    assert straight.table() == parts.table()
    state = [name for name in parts.tensors() if name.startswith("optimizer.disc.")]
    assert len(state) >= 2 * len([n for n in parts.tensors() if n.startswith("model.discrim")])
    assert not [name for name in parts.tensors() if ".lin" in name or "vgg" in name.lower()]
    rows = [row for row in parts.rows() if row["kind"] == "train"]
    assert [("disc" in row, "gan" in row) for row in rows] == (
        [(False, False)] + [(True, False)] * 2 + [(True, True)] * 3
    )
    assert {"mse_pm1", "eq_mse_pm1"} <= {name for row in rows for name in row}
    assert float(parts.table()[-1]["val_lpips"]) > 0


@pytest.mark.parametrize(
    ("bottleneck", "workers"),
    [
        *(("none", 0), ("kl", 0), ("vq", 0)),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("none", "kl", "vq")),
    ],
)
def test_ten_and_ten_are_twenty(run, tmp_path, bottleneck, workers):
    sets = [f"model.bottleneck={bottleneck}", f"data.num_workers={workers}"]
    straight = run(tmp_path / "straight", *sets, "train.max_iter=20")
    run(tmp_path / "parts", *sets, "train.max_iter=10")
    parts = run(tmp_path / "parts", *sets, "train.max_iter=20")
    assert parts.outcome.iteration == straight.outcome.iteration == 20
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()
    assert straight.table() == parts.table()
    optimizer = [name for name in parts.tensors() if name.startswith("optimizer.")]
    assert any(name.endswith("exp_avg_sq") for name in optimizer)


def test_ema_accumulation_clipping_and_schedules_resume_exactly_from_an_odd_place(run, tmp_path):
    sets = [
        "train.ema_decay=0.9",
        "train.accumulate=2",
        "train.clip_norm=0.1",
        "train.schedule=cosine",
        "train.warmup_iterations=3",
        "train.decay_iterations=12",
        "train.max_iter=12",
        "model.bottleneck=kl",
    ]
    straight = run(tmp_path / "straight", *sets)
    stopped = run(tmp_path / "parts", *sets, stop_at=7)
    assert (stopped.outcome.state, stopped.outcome.iteration) == ("stopped", 7)
    parts = run(tmp_path / "parts", *sets)
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()
    assert straight.table() == parts.table()
    assert any(name.startswith("ema.") for name in parts.tensors())


def test_a_raised_limit_trains_on(run, tmp_path):
    """Once it was eight iterations at a learning rate of zero."""
    sets = ["train.schedule=cosine", "train.log_every=1"]
    first = run(tmp_path / "a", *sets, "train.max_iter=4")
    more = run(tmp_path / "a", *sets, "train.max_iter=12")
    told = [text for text in more.messages if text.startswith("learning rate:")]
    assert told == [
        "learning rate: the cosine schedule ends at iteration 12 instead of 4; "
        "it rises from 0 to 0.000629"
    ]
    rates = [row["lr"] for row in more.rows() if row["kind"] == "train"]
    assert len(rates) == 12
    assert min(rates[4:11]) > 1e-5
    assert rates[11] == 0
    weights = [name for name in first.tensors() if name.endswith("weight")]
    before, after = first.tensors(4), more.tensors(12)
    assert not [name for name in weights if torch.equal(before[name], after[name])]


@pytest.mark.slow
def test_a_resume_after_a_stretch_is_exact(run, tmp_path):
    sets = ["train.schedule=cosine", "train.warmup_iterations=2", "train.log_every=1"]
    for name in ("straight", "parts"):
        run(tmp_path / name, *sets, "train.max_iter=8", stop_at=3)
    straight = run(tmp_path / "straight", *sets, "train.max_iter=12")
    run(tmp_path / "parts", *sets, "train.max_iter=12", stop_at=6)
    parts = run(tmp_path / "parts", *sets, "train.max_iter=12")
    assert not [text for text in parts.messages if text.startswith("learning rate:")]
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()
    # A given horizon may be changed as well, and is the same experiment.
    again = run(tmp_path / "parts", *sets, "train.max_iter=14", "train.decay_iterations=20")
    assert [text for text in again.messages if "ends at iteration 20 instead of 12" in text]
    assert again.outcome.iteration == 14


def test_the_number_of_workers_changes_nothing(run, tmp_path):
    none = run(tmp_path / "none", "train.max_iter=6", "data.num_workers=0")
    two = run(tmp_path / "two", "train.max_iter=6", "data.num_workers=2")
    same_tensors(none.tensors(), two.tensors())


def test_a_stop_during_validation_saves_and_the_validation_is_done_again(run, tmp_path):
    sets = ["train.max_iter=10", "data.val_fraction=0.3"]
    straight = run(tmp_path / "straight", *sets)
    stopped = run(tmp_path / "parts", *sets, stop_at=5, stage="validate")
    assert (stopped.outcome.state, stopped.outcome.iteration) == ("stopped", 5)
    assert not stopped.directory.csv_path("autoencoder").exists()
    parts = run(tmp_path / "parts", *sets)
    assert straight.table() == parts.table()
    assert straight.rows() == parts.rows()
    same_tensors(straight.tensors(), parts.tensors())


def test_a_stop_before_the_first_iteration_saves_and_goes_on(run, tmp_path):
    straight = run(tmp_path / "straight", "train.max_iter=4")
    from imgtool.process.stopping import StopRequest

    before = StopRequest.wanted
    try:
        StopRequest.wanted = property(lambda self: True)
        stopped = run(tmp_path / "parts", "train.max_iter=4")
    finally:
        StopRequest.wanted = before
    assert (stopped.outcome.state, stopped.outcome.iteration) == ("stopped", 0)
    parts = run(tmp_path / "parts", "train.max_iter=4")
    same_tensors(straight.tensors(), parts.tensors())


def test_rows_past_the_checkpoint_are_cut(run, tmp_path):
    straight = run(tmp_path / "straight", "train.max_iter=10")
    run(tmp_path / "killed", "train.max_iter=10")
    directory = run(tmp_path / "killed", "train.max_iter=10").directory
    for path in directory.checkpoints_dir.glob("iter_000010*"):  # as after a kill past 5
        path.unlink()
    directory.latest_path.unlink()
    again = run(tmp_path / "killed", "train.max_iter=10")
    assert again.rows() == straight.rows()
    assert again.table() == straight.table()


def test_other_limits_workers_and_intervals_resume(run, tmp_path):
    run(tmp_path / "a", "train.max_iter=4")
    more = run(
        tmp_path / "a",
        "train.max_iter=6",
        "data.num_workers=1",
        "train.save_every=3",
        "train.log_every=1",
        "name=renamed",
    )
    assert more.outcome.iteration == 6
    starts = json.loads(more.directory.provenance_path.read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["arithmetic"] == starts[1]["arithmetic"]
    assert starts[0]["arithmetic"]["layout"] == "NCHW"


def test_another_model_is_refused_with_the_difference(run, tmp_path):
    run(tmp_path / "a", "train.max_iter=2")
    with pytest.raises(
        ExperimentError, match=r"model.latent_channels: 4 -> 8; train.lr: 0.001 -> 0.002"
    ):
        run(tmp_path / "a", "train.max_iter=4", "model.latent_channels=8", "train.lr=2e-3")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["train.weight_decay=0.5"], "--set train.weight_decay=0.01"),
        (["train.betas=[0.5, 0.9]"], "--set 'train.betas=[0.9, 0.999]'"),
        (
            ["train.lr=3e-3", "model.norm_groups=4"],
            "--set model.norm_groups=8 --set train.lr=0.001",
        ),
    ],
)
def test_what_restores_the_settings_is_said(run, tmp_path, changed, words):
    run(tmp_path / "a", "train.max_iter=2")
    with pytest.raises(ExperimentError) as caught:
        run(tmp_path / "a", "train.max_iter=4", *changed)
    assert caught.value.hint == f"give a new --exp-dir, or go on with this one: {words}"
    restored = [word for word in shlex.split(words) if word != "--set"]
    assert run(tmp_path / "a", "train.max_iter=4", *changed, *restored).outcome.iteration == 4


@dataclass(frozen=True, kw_only=True)
class Grown(autoencoder.AutoencoderTrain):
    """Of a later version: a key more, and one that has become a run field."""

    __pydantic_config__ = STRICT

    shake: float = option(0.5, "Something new.", before=0.0)
    clip_norm: float = option(0.0, "Largest gradient norm; 0 is off.", run=True, before=0.0)


def test_a_directory_of_before_resumes_when_keys_were_added_or_became_run_fields(
    run, tmp_path, monkeypatch
):
    first = run(tmp_path / "a", "train.max_iter=2", "train.clip_norm=0.7")
    before = read_status(first.directory)["identity"]
    grown = replace(autoencoder.SCHEMA, sections={**autoencoder.SCHEMA.sections, "train": Grown})
    monkeypatch.setattr(autoencoder, "SCHEMA", grown)
    with pytest.raises(ExperimentError, match=r"train.shake: 0.0 -> 0.5") as caught:
        run(tmp_path / "a", "train.max_iter=3")
    assert caught.value.hint.endswith("--set train.shake=0.0")
    again = run(tmp_path / "a", "train.max_iter=3", "train.shake=0")
    assert again.outcome.iteration == 3
    assert read_status(again.directory)["identity"] == before  # and so the loggers' runs go on
    assert run(tmp_path / "a", "train.max_iter=4", "train.shake=0").outcome.iteration == 4


def test_other_data_is_refused(run, tmp_path, photos):
    run(tmp_path / "a", "train.max_iter=2")
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(photos.iterdir())[:9]:
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises((ExperimentError, CheckpointError, Exception), match="data|split"):
        run(tmp_path / "a", "train.max_iter=4", root=other)


def test_the_same_data_elsewhere_resumes(run, tmp_path, photos):
    run(tmp_path / "a", "train.max_iter=2")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in photos.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert run(tmp_path / "a", "train.max_iter=3", root=moved).outcome.iteration == 3


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=10")
    newest = first.directory.checkpoint_path(10)
    newest.write_bytes(newest.read_bytes()[:-100])
    again = run(tmp_path / "a", "train.max_iter=10")
    assert any("trying the one before" in text for text in again.messages)
    assert any("resuming at iteration 5" in text for text in again.messages)
    assert again.outcome.iteration == 10


def test_no_valid_checkpoint_is_an_error_not_a_fresh_start(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=4")
    for path in first.directory.checkpoints_dir.glob("iter_*"):
        path.write_bytes(b"\x80\x04 pickle")
    with pytest.raises(CheckpointError, match="no valid checkpoint") as caught:
        run(tmp_path / "a", "train.max_iter=6")
    assert caught.value.exit_code == 4


def test_resume_never_and_resume_from_a_path(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=10")
    with pytest.raises(ExperimentError, match="never"):
        run(tmp_path / "a", "train.max_iter=12", resume="never")
    with pytest.raises(ExperimentError, match="newer checkpoints"):
        run(tmp_path / "a", resume=str(first.directory.checkpoint_path(5)))
    branch = run(
        tmp_path / "b", "train.max_iter=10", resume=str(first.directory.checkpoint_path(5))
    )
    same_tensors(branch.tensors(), first.tensors())


def test_a_finished_experiment_stays_as_it_is(run, tmp_path):
    first = run(tmp_path / "a", "train.max_iter=7")
    before = {p.name: p.read_bytes() for p in first.directory.checkpoints_dir.glob("iter_*")}
    again = run(tmp_path / "a", "train.max_iter=7")
    after = {p.name: p.read_bytes() for p in first.directory.checkpoints_dir.glob("iter_*")}
    assert again.outcome.state == "completed"
    assert before == after
    assert again.outcome.metrics.keys() == first.outcome.metrics.keys()
    assert read_status(again.directory)["loss"] is not None


class Killed(BaseException):
    """What no handler expects."""


MOMENTS = ("train", "validate", "write", "written", "link", "linked", "picture")
WRITING = ("write", "written", "link", "linked")


# Each moment in every suite once: a kill where a file is half there, an exception elsewhere.
ENDED = [
    pytest.param(moment, kill, marks=() if kill == (moment in WRITING) else pytest.mark.slow)
    for moment in MOMENTS
    for kill in (False, True)
]


@pytest.mark.parametrize(("moment", "kill"), ENDED)
def test_ended_at_any_moment_it_comes_to_the_same_end(run, tmp_path, monkeypatch, moment, kill):
    sets = [
        *("model.bottleneck=vq", "train.ema_decay=0.9", "train.accumulate=2", "train.max_iter=8"),
        *("train.val_every=2", "train.save_every=3", "train.sample_every=4", "train.log_every=2"),
        *("data.val_fraction=0.3", "train.optimizer=sgd", "train.momentum=0.9"),
    ]
    straight = run(tmp_path / "straight", *sets)
    left = {"count": 2 if moment == "picture" else 3, "stop": None}

    def now(what):
        if what == moment:
            left["count"] -= 1
            if left["count"] == 0:
                if kill:
                    raise Killed
                left["stop"].ask("test")

    def around(module, name, before, after):
        plain = getattr(module, name)

        def wrapped(*args, **options):
            now(before)
            result = plain(*args, **options)
            now(after)
            return result

        monkeypatch.setattr(module, name, wrapped)

    around(saving.checkpoint_file, "write", "write", "written")
    around(saving, "point", "link", "linked")
    around(loop, "save_picture", "picture", "")
    asked = StopRequest.__init__

    def remember(self):
        asked(self)
        left["stop"] = self

    monkeypatch.setattr(StopRequest, "__init__", remember)
    plain = loop.Loop._tell

    def tell(self, stage, *, logged=False):
        now(stage)
        plain(self, stage, logged=logged)

    monkeypatch.setattr(loop.Loop, "_tell", tell)
    for _ in range(2):
        with suppress(Killed):
            parts = run(tmp_path / "parts", *sets)
    assert left["count"] <= 0
    same_tensors(straight.tensors(), parts.tensors())
    assert straight.rows() == parts.rows()
    assert straight.table() == parts.table()
    assert straight.outcome.best == parts.outcome.best
    for name in ("latest", "best"):
        ours, theirs = (
            os.readlink(trained.directory.checkpoints_dir / f"{name}.safetensors")
            for trained in (straight, parts)
        )
        assert ours == theirs
