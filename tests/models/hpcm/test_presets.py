"""The presets say what the papers say, train, resume bit for bit and choose on validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.config import presets
from imgtool.config.identity import identity
from imgtool.config.load import load
from imgtool.errors import ConfigError, UserError
from imgtool.evaluation.latents import measure
from imgtool.experiment.checkpoint_file import read
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.process.stopping import StopRequest
from imgtool.training.report import Silence
from imgtool.training.run import train
from imgtool.training.schedule import lr_factor, make_schedule

SMALLER = [
    *("data.max_images=6", "data.val_fraction=0.2", "train.batch_size=1", "train.max_iter=4"),
    *("train.save_every=2", "train.val_every=2", "train.sample_every=4", "train.log_every=1"),
    *("train.threads=1", "train.device=cpu", "data.num_workers=0", "train.keep=0"),
    *("loss.truncation_iterations=2", "output.shared_dir=null"),
]
PHASES = {"baseline": "baseline", "phase1": "phase1", "phase2": "phase2", "both": "phase1_2"}
MSE_LAMBDAS = [0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483]
MS_SSIM_LAMBDAS = [2.4, 4.58, 8.73, 16.64, 31.73, 60.5]


def get(name, *sets, tiny=False):
    return load(name, family=None, schema_of=schema, sets=list(sets), tiny=tiny).experiment


def changed(name, base):
    one, other = get(name), get(base)
    return {
        f"{section}.{field.name}": getattr(getattr(one, section), field.name)
        for section in ("model", "data", "train", "loss")
        for field in dataclasses.fields(getattr(one, section))
        if getattr(getattr(one, section), field.name)
        != getattr(getattr(other, section), field.name)
    }


def test_the_studies_differ_in_what_they_test():
    assert changed("hpcm/phase1", "hpcm/baseline") == {"loss.spectral_reg": True}
    assert changed("hpcm/phase2", "hpcm/baseline") == {"loss.phase2_reg": True}
    both = {"loss.spectral_reg": True, "loss.phase2_reg": True}
    assert changed("hpcm/phase1_2", "hpcm/baseline") == both
    for delta in (0.05, 0.1, 0.15):
        found = changed(f"hpcm/delta_{delta}", "hpcm/phase2")  # as the seed runs them: alone
        assert found == ({} if delta == 0.1 else {"loss.delta": delta})
    for name, like in PHASES.items():
        assert changed(f"hpcm_phases/{name}", f"hpcm/{like}") == {}
    for lmbda in MSE_LAMBDAS:
        found = changed(f"hpcm_lambdas/lambda_{lmbda}", "hpcm/baseline")
        assert found == ({} if lmbda == 0.013 else {"loss.lmbda": lmbda})
    for lmbda in MS_SSIM_LAMBDAS:
        found = changed(f"hpcm_msssim/lambda_{lmbda}", "hpcm/baseline")
        assert found == {"loss.lmbda": lmbda, "loss.distortion": "ms-ssim"}
    assert {"hpcm", "hpcm_lambdas", "hpcm_msssim", "hpcm_phases"} <= set(presets.sweeps())


def test_the_baseline_is_the_published_recipe():
    experiment = get("hpcm/baseline")
    train_, loss = experiment.train, experiment.loss
    assert experiment.model.model_name == "HPCM_Base"
    assert (experiment.data.crop, train_.batch_size, train_.lr) == (256, 32, 1e-4)
    assert (train_.optimizer, train_.weight_decay, train_.clip_norm) == ("adam", 0, 1)
    assert (loss.spectral_reg, loss.phase2_reg) == (False, False)
    assert not experiment.model.legacy_s2_hyper
    rates = [train_.lr * lr_factor(train_, epoch, 3000) for epoch in (1, 2750, 2751, 2851, 2951)]
    assert rates == pytest.approx([1e-4, 1e-4, 3e-5, 1e-5, 1e-6])


def test_crops_are_flipped_as_in_the_paper_and_those_that_were_turned_keep_their_hash():
    assert get("hpcm/baseline").data.flip == "both"
    turned = get("hpcm/baseline", "data.flip=dihedral")
    assert identity(turned, "d") == "028b181fdbf80ebf"  # of versions whose default it was


def test_tiny_is_for_a_cpu():
    experiment = get("hpcm/tiny")
    assert (experiment.model.model_name, experiment.data.crop) == ("HPCM_Tiny", 128)
    assert (experiment.train.batch_size, experiment.train.lr) == (4, 5e-4)
    assert experiment.train.max_iter >= 10_000
    assert experiment.loss.truncation_iterations < experiment.train.max_iter


def test_learning_rate_steps_need_the_runs_end():
    update = SimpleNamespace(batches_per_iteration=lambda: 1)
    schedule = make_schedule(get("hpcm/baseline"), update, 10)
    assert (schedule.last, schedule.horizon.end) == (30_000, 30_000)
    with pytest.raises(UserError, match="step schedule must know its end"):
        make_schedule(get("hpcm/baseline", "train.epochs=null"), update, 10)
    counted = get("hpcm/baseline", "train.step_fractions=[]", "train.step_factors=[]").train
    assert lr_factor(counted, counted.step_iterations + 1, None) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("loss.tau_final=0.01", "tau_final 0.01 is below tau_init"),
        ("train.step_factors=[0.1]", "step_factors has 1 values for the 3"),
        ("train.step_fractions=[0.5, 0.4, 0.9]", "must rise"),
        ("loss={distortion: ms-ssim, lmbda: 8}", "crop 8 is too small"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    sets = [wrong, "data.crop=8"] if "crop" in message else [wrong]
    with pytest.raises(ConfigError, match=message):
        get("hpcm/tiny", *sets)


class Recorder(Silence):
    """Keeps what is said; asks for a stop after an iteration."""

    def __init__(self, stop, stop_at):
        self.stop, self.stop_at, self.messages = stop, stop_at, []

    def message(self, text):
        self.messages.append(text)

    def progress(self, progress):
        if progress.iteration == self.stop_at and progress.stage == "train":
            self.stop.ask("test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(8):
        small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        part = "test" if number >= 6 else "train"
        (folder / part).mkdir(exist_ok=True)
        image = Image.fromarray(small).resize((80, 64), Image.Resampling.BICUBIC)
        image.save(folder / part / f"{number}.png")
    (folder / "test" / "again.png").write_bytes((folder / "train" / "3.png").read_bytes())
    return folder


def trained(name, photos, exp_dir, *sets, stop_at=None):
    roots = [f"data.root={photos / 'train'}", f"data.test_root={photos / 'test'}"]
    loaded = load(name, family=None, schema_of=schema, sets=[*SMALLER, *roots, *sets], tiny=True)
    directory = ExperimentDir(exp_dir)
    directory.create()
    stop = StopRequest()
    reporter = Recorder(stop, stop_at)
    return train(loaded, directory, stop=stop, reporter=reporter), directory, reporter.messages


def rows(directory, kind):
    lines = map(json.loads, directory.metrics_path.read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    "name", [pytest.param("hpcm/baseline", marks=pytest.mark.slow), "hpcm/phase1_2"]
)
def test_the_family_resumes_bit_for_bit(name, photos, tmp_path):
    loggers = ("output.tensorboard=true", f"output.log_dir={tmp_path / 'logs'}")
    outcome, straight, messages = trained(name, photos, tmp_path / "straight", *loggers)
    assert (outcome.state, outcome.iteration) == ("completed", 4)
    told = [text for text in messages if "in the test set as well" in text]
    assert told == ["warning: 1 image of the training data in the test set as well: 3.png"]
    stopped, parts, _ = trained(name, photos, tmp_path / "parts", stop_at=1)
    assert (stopped.state, stopped.iteration) == ("stopped", 1)
    again, _, _ = trained(name, photos, tmp_path / "parts")
    assert again.state == "completed"
    first, second = read(straight.latest_path).tensors, read(parts.latest_path).tensors
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]
    has_predictors = any(key.startswith("model.interscale.predictors.1") for key in first)
    assert has_predictors == (name == "hpcm/phase1_2")
    moments = [key for key in first if key.startswith("optimizer.net.interscale.")]
    assert bool(moments) == has_predictors
    # Best is chosen on images of the root, by the loss without regularisers; never on the test.
    metrics = [row["val_rd_loss"] for row in rows(straight, "evaluation")]
    assert outcome.best["metric"] == "val_rd_loss"
    assert outcome.best["value"] == min(metrics)
    split = json.loads(straight.split_path.read_text())
    assert (len(split["train"]), len(split["val"]), split["test"]) == (5, 1, [])
    check_logs(straight, regularised=has_predictors)
    check_events(tmp_path / "logs", regularised=has_predictors)
    check_study(straight)


def check_logs(directory, *, regularised):
    logged = rows(directory, "train")
    names = {"loss", "rd_loss", "bpp_loss", "bpp_y", "bpp_z", "mse", "psnr"}
    spectral = {"tau", "phase", "inter_scale_reg", "prediction_error"}
    wanted = names | {f"spectral/{name}" for name in spectral if regularised}
    assert all(wanted <= set(row) for row in logged)
    assert any(key.startswith("spectral/") for key in logged[0]) == regularised
    if regularised:
        said = [row["spectral/phase"] for row in logged]
        assert said == ["phase1_intra", "phase1_intra", "baseline", "baseline"]
        reg = [row["spectral/inter_scale_reg"] for row in logged]
        assert reg[:2] == [0, 0]
        assert max(reg[2:]) < 0


def check_study(directory):
    document = json.loads((directory.path / "latents.json").read_text())
    assert [scale["name"] for scale in document["scales"]] == ["s1", "s2", "s3"]
    assert (directory.samples_dir / "spectra.png").exists()
    assert (directory.samples_dir / "scales.png").exists()
    assert (directory.samples_dir / "iter_000004_comparison.png").exists()
    plots = directory.path.parent / "plots"
    record = measure(str(directory.path), num_images=4, num_pairs=1, device="cpu", plots=plots)
    assert [path.name.rpartition("_")[2] for path in record["plots"]] == [
        "spectra.png",
        "scales.png",
    ]
    assert all(path.exists() for path in record["plots"])
    assert (record["family"], record["num_images"]) == ("hpcm", 1)
    assert len(record["scales"]) == 3


def check_events(folder, *, regularised):
    """TensorBoard has the names that the loss's terms have always had."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/bpp_loss", "train/psnr", "val/rd_loss", "val/bpp"} <= tags
    assert ({"spectral/tau", "spectral/inter_scale_reg"} <= tags) == regularised
    texts = events.Tags()["tensors"]
    assert [tag for tag in texts if tag.startswith("spectral/phase")] or not regularised
