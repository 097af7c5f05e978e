"""The codec's update and evaluator: losses, phases, metrics, studies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtool.errors import CheckpointError, ConfigError
from imgtool.models.base import DataInfo, Foreign, Noise
from imgtool.models.hpcm.interscale import new_at
from imgtool.models.hpcm.latents import up_to, variation
from imgtool.models.hpcm.network import Forward
from imgtool.models.hpcm.task import HpcmFamily, HpcmTask
from imgtool.nn.spectra import NUM_RINGS, radial_power

BOTH = {
    "loss__spectral_reg": True,
    "loss__phase2_reg": True,
    "loss__truncation_iterations": 4,
}
LATENTS = Forward.latents.fget


@pytest.fixture
def make_task(make_experiment: Callable[..., Any]) -> Callable[..., HpcmTask]:
    """A tiny task, changed by dotted keys given with double underscores."""

    def make(*, size: tuple[int, int] | None = (64, 64), **changes: Any) -> HpcmTask:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        info = DataInfo(targets=frozenset(), image_size=size, num_train_images=8)
        torch.manual_seed(0)
        return HpcmFamily().build(make_experiment("hpcm", **dotted), info)

    return make


@pytest.fixture
def at(make_batch: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A batch of an iteration."""

    def make(iteration: int, **options: Any) -> dict[str, Any]:
        return make_batch(1, noise=Noise(0, iteration), **options) | {"epoch": 0.0}

    return make


class FilesOf:
    """A Reader that has one checkpoint."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.found = tensors

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        return self.found

    def document(self, path: str) -> Any:
        raise AssertionError(path)


def test_a_codec_begins_with_another_s_weights(make_task):
    other = make_task(loss__phase2_reg=True, loss__lmbda=0.05)
    with torch.no_grad():
        for parameter in other.modules.parameters():
            parameter.add_(1)
    tensors = {name: value.clone() for name, value in other.modules.state_dict().items()}
    task = make_task(model__init_ckpt="there")
    report = task.warm_start(FilesOf(tensors))
    own = task.modules.state_dict()
    assert report == {"loaded": list(own)}
    assert all(torch.equal(own[name], tensors[name]) for name in own)
    assert make_task().warm_start(FilesOf(tensors)) is None
    small = make_task(model__init_ckpt="there", model__model_name="HPCM_Small")
    before = {name: value.clone() for name, value in small.modules.state_dict().items()}
    for wrong in (tensors, {}):
        with pytest.raises(CheckpointError, match="there is no checkpoint of HPCM_Small"):
            small.warm_start(FilesOf(wrong))
    assert all(
        torch.equal(before[name], value) for name, value in small.modules.state_dict().items()
    )


def test_the_loss_is_lambda_255_squared_mse_and_bpp(make_task, at):
    task, batch = make_task(loss__lmbda=0.02), at(0)
    losses = task.update(batch)
    assert set(losses) == {"loss", "rd_loss", "bpp_loss", "bpp_y", "bpp_z", "mse", "psnr"}
    bpp = losses["bpp_y"] + losses["bpp_z"]
    torch.testing.assert_close(losses["bpp_loss"], bpp)
    x = batch["image"] / 255
    error = (task.codec(x).x_hat - x).square().mean()  # not clamped: what overshoots has a gradient
    torch.testing.assert_close(losses["loss"], 0.02 * 255**2 * error + bpp)
    assert losses["rd_loss"] is losses["loss"]


def test_phases_follow_the_iterations(make_task, at):
    task = make_task(**BOTH, train__epochs=3000)
    found = [task.update(at(i)) for i in (0, 2, 3, 4, 9)]
    assert [round(f["spectral/tau"].item(), 4) for f in found] == [0.05, 0.525, 0.7625, 1, 1]
    phases = [f.pop("spectral/phase") for f in found]
    assert phases == ["phase1_intra"] * 3 + ["baseline"] * 2
    values = [f["spectral/inter_scale_reg"].item() for f in found]
    assert values[:3] == [0, 0, 0]
    assert all(-0.1 <= value < 0 for value in values[3:])
    for losses in found:
        difference = losses["loss"] - losses["rd_loss"]
        torch.testing.assert_close(
            difference, losses["spectral/inter_scale_reg"], atol=2e-5, rtol=0
        )
        assert losses.keys() == found[0].keys()  # the log's columns


def test_epochs_are_what_counts_without_iterations(make_task, make_batch):
    task = make_task(**BOTH | {"loss__truncation_iterations": None, "loss__truncation_epochs": 2})
    of_epoch = {}
    for epoch in (0.0, 1.0, 1.5, 2.0):
        batch = make_batch(1, noise=Noise(0, 999)) | {"epoch": epoch}
        losses = task.update(batch)
        of_epoch[epoch] = losses["spectral/phase"], losses["spectral/inter_scale_reg"].item() < 0
    first, then = ("phase1_intra", False), ("baseline", True)
    assert of_epoch == {0.0: first, 1.0: first, 1.5: first, 2.0: then}


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({}, 4),
        ({"loss__phase2_start_iteration": 2}, 2),
        ({"loss__phase2_start_iteration": 0}, 0),
        ({"loss__phase2_start_epoch": 0}, 0),
        ({"loss__spectral_reg": False}, 4),
    ],
)
def test_phase_2_starts_when_it_is_told_to(make_task, at, changes, starts):
    task = make_task(**BOTH | changes)
    on = [i for i in range(6) if task.update.phase2_start.progress(at(i)) >= 1]
    assert on == list(range(starts, 6))
    if changes.get("loss__phase2_start_iteration") == 2:
        losses = task.update(at(3))
        assert losses["spectral/phase"] == "phase1_intra"
        assert losses["spectral/inter_scale_reg"] < 0


def test_metrics_of_phase_1_are_against_the_originals(make_task, at):
    """PSNR against blurred images would flatter (B10); the target is a choice."""
    batch = at(0)
    task = make_task(**BOTH)
    x = batch["image"] / 255
    truncation = task.update.curriculum.at(batch)
    seen = task.update.truncate(x, truncation)
    noise = task.update._draw(batch["noise"], x)
    x_hat = task.codec(seen, lambda like, purpose: noise[purpose]).x_hat
    losses = task.update(batch)
    true_mse = (x_hat.clamp(0, 1) - x).square().mean()
    torch.testing.assert_close(losses["mse"], true_mse)
    torch.testing.assert_close(losses["psnr"], -10 * true_mse.log10())
    trained_on = (losses["rd_loss"] - losses["bpp_loss"]) / (0.013 * 255**2)
    torch.testing.assert_close(trained_on, (x_hat - seen).square().mean())
    original = make_task(**BOTH, loss__target="original").update(batch)
    deblurring = (original["rd_loss"] - original["bpp_loss"]) / (0.013 * 255**2)
    torch.testing.assert_close(deblurring, (x_hat - x).square().mean())


def test_phase_2_changes_the_codecs_gradient_only_when_active(make_task, at):
    """And its predictors are trained by a set of their own, from the beginning."""
    plain, regularised = make_task(), make_task(loss__phase2_reg=True, loss__delta=50.0)
    state = regularised.codec.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in plain.codec.state_dict().items())

    def gradients(task, batch):
        task.modules.zero_grad()
        task.update(batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in task.codec.named_parameters()}

    for iteration, same in ((0, True), (7, False)):
        batch = at(iteration)
        ours, theirs = gradients(plain, batch), gradients(regularised, batch)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) is same
        assert all(p.grad.abs().max() > 0 for p in regularised.interscale.parameters())
    sets = regularised.update.parameter_sets()
    assert set(sets) == {"main", "interscale"}
    ids = [id(p) for p in sets["interscale"]]
    assert ids == [id(p) for p in regularised.interscale.parameters()]


def test_predictors_are_in_checkpoints_and_in_nothing_else(make_task):
    """A resumed run must not begin with others (B5), and a codec has no use for them."""
    state = make_task(**BOTH).modules.state_dict()
    extra = {name.partition(".")[0] for name in state}
    assert extra == {"codec", "interscale"}
    assert not any("predictor" in name for name in make_task(**BOTH).codec.state_dict())
    assert {name.partition(".")[0] for name in make_task().modules.state_dict()} == {"codec"}


def test_everything_that_is_trained_is_a_parameter(make_task):
    """The adaptive factors too, which once were in a list that no optimizer saw (B12)."""
    task = make_task(**BOTH)
    trained = {id(p) for p in task.update.parameters()}
    factors = [p for p in task.codec.context.parameters() if p.ndim == 4 and p.shape[0] == 1]
    assert len(factors) == task.variant.num_steps - 1
    assert {id(p) for p in factors} <= trained
    assert trained == {id(p) for p in task.modules.parameters()}


def test_a_published_checkpoint_leaves_phase_2_to_begin_afresh(make_task, monkeypatch):
    task = make_task(**BOTH)
    state = {f"codec.{name}": value + 1 for name, value in task.codec.state_dict().items()}
    given: list[Any] = []

    def read(foreign: Any, codec: Any) -> Foreign:
        given.append((foreign, codec))
        return Foreign(state, {}, None, ("a note",))

    monkeypatch.setattr("imgtool.models.hpcm.legacy.read", read)
    found = task.from_foreign({"state_dict": {}})
    assert given == [({"state_dict": {}}, task.codec)]
    assert (found.iteration, found.notes[:-1]) == (0, ("a note",))
    assert "0.013" in found.notes[-1]
    assert set(found.model) == set(task.modules.state_dict())
    task.modules.load_state_dict(dict(found.model))


def test_the_rate_alone_trains_what_prepares_it(make_task, at):
    """Means cancel in y_hat, so that the distortion says nothing of them."""
    task = make_task()
    losses = task.update(at(0))
    distortion = losses["rd_loss"] - losses["bpp_loss"]
    hyper = [task.codec.means_hyper, *task.codec.h_a.parameters(), *task.codec.h_s.parameters()]
    found = torch.autograd.grad(distortion, hyper, retain_graph=True, allow_unused=True)
    largest = max(0.0 if g is None else g.abs().max().item() for g in found)
    rate = torch.autograd.grad(losses["bpp_loss"], hyper)
    assert largest < 1e-4 * max(g.abs().max().item() for g in rate)


def test_a_step_reads_nothing_back(make_task, at, monkeypatch):
    """No .item() in a step, in either phase (B14)."""
    task = make_task(**BOTH)
    batches = [at(0), at(5)]

    def refuse(*args: Any) -> Any:
        raise AssertionError("a synchronisation")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for batch in batches:
        task.update(batch)["loss"].backward()


@pytest.mark.parametrize(
    ("changes", "last", "said"),
    [
        (BOTH, 4, ["phase 1 ends at iteration 4", "phase 2 starts at iteration 4"]),
        (BOTH, 5, []),
        (BOTH, None, []),
        (BOTH | {"loss__truncation_iterations": None}, 100, ["phase 1 ends at iteration 200"]),
        ({"loss__distortion": "ms-ssim"}, 100, ["lambda 0.013 with ms-ssim: the papers' are 2.4"]),
        ({"loss__lmbda": 8.73}, 100, ["lambda 8.73 with mse"]),
        (BOTH | {"loss__truncation_epochs": 5}, 9, ["loss.truncation_epochs 5 does not count"]),
        ({}, 1, []),
    ],
)
def test_what_cannot_be_meant_is_said(make_task, changes, last, said):
    """Phase 1 never ended in short runs, without a word (B11)."""
    found = make_task(**changes).doubts(last, 2.0)
    assert len(found) >= len(said)
    assert all(any(line.startswith(start) for line in found) for start in said)
    assert said or not found


def test_ms_ssim_is_trained_and_measured(make_task, at):
    task = make_task(loss__distortion="ms-ssim", loss__lmbda=8.73)
    losses = task.update(at(0))
    wanted = 8.73 * (1 - losses["ms_ssim"]) + losses["bpp_loss"]
    torch.testing.assert_close(losses["loss"], wanted)
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in task.codec.parameters())
    metrics = evaluated(task, at(0))
    assert metrics["rd_loss"] == pytest.approx(8.73 * (1 - metrics["ms_ssim"]) + metrics["bpp"])
    with pytest.raises(ConfigError, match="too small for MS-SSIM"):
        make_task(loss__distortion="ms-ssim", data__crop=None, size=(10, 64))


def evaluated(task, *batches):
    task.modules.eval()
    evaluator = task.evaluator()
    with torch.no_grad():
        for batch in batches:
            evaluator.update(batch)
    return evaluator.compute()


def test_validation_has_the_loss_without_regularisers(make_task, at, make_batch):
    """Best is chosen on this, whichever phase it is."""
    plain, regularised = make_task(), make_task(**BOTH)
    batch = at(0)
    metrics = evaluated(plain, batch)
    assert set(metrics) == {"rd_loss", "mse", "psnr", "bpp", "bpp_y", "bpp_z"}
    assert metrics == evaluated(regularised, batch)
    assert plain.monitor == "val_rd_loss"
    wanted = 0.013 * 255**2 * metrics["mse"] + metrics["bpp_y"] + metrics["bpp_z"]
    assert metrics["rd_loss"] == pytest.approx(wanted)
    with torch.no_grad():
        coded = plain.codec(batch["image"] / 255)
    total = -(coded.likelihood_y.log2().sum() + coded.likelihood_z.log2().sum())
    assert metrics["bpp"] == pytest.approx(total.item() / 64**2, rel=1e-5)


def test_latents_by_scale_are_made_for_phase_2_alone(make_task, at, monkeypatch):
    """Neither evaluation nor a training without it holds copies of y_hat."""
    made = []
    monkeypatch.setattr(Forward, "latents", property(lambda self: made.append(1) or LATENTS(self)))
    regularised, batch = make_task(**BOTH), at(0)
    evaluated(regularised, batch)
    regularised.sample(batch)
    make_task().update(batch)
    assert not made
    regularised.update(batch)
    assert made


def test_images_of_several_sizes_count_alike_and_fillers_not_at_all(make_task, make_batch):
    task = make_task()
    small, large = make_batch(1, (33, 70)), make_batch(1, (64, 64), seed=1)
    one, other = evaluated(task, small), evaluated(task, large)
    both = evaluated(task, small, large)
    assert both["bpp"] == pytest.approx((one["bpp"] + other["bpp"]) / 2)
    assert both["psnr"] == pytest.approx((one["psnr"] + other["psnr"]) / 2)
    filled = {**make_batch(2), "valid": torch.tensor([True, False])}
    alone = {key: value[:1] for key, value in filled.items() if isinstance(value, torch.Tensor)}
    assert evaluated(task, filled)["mse"] == pytest.approx(evaluated(task, alone)["mse"])
    nothing = {**make_batch(1), "valid": torch.tensor([False])}
    assert evaluated(task, nothing) == {}


def test_samples_have_the_originals_above(make_task, make_batch):
    task = make_task()
    task.modules.eval()
    batch = make_batch(2, (40, 50))
    picture = task.sample(batch)["comparison"]
    assert picture.shape == (3, 82, 102)
    assert torch.equal(picture[:, :40, :50], batch["image"][0])
    made = task.reconstruct(batch)
    assert made.shape == (2, 3, 40, 50)
    assert torch.equal(picture[:, 42:, 52:], made[1])


def test_what_is_the_same_everywhere_is_no_variation():
    z = torch.full((1, 16, 4, 4), 3.0)
    for scale in (1, 2, 3):
        new = new_at(scale, z)
        assert variation(z * new, scale).abs().max() < 1e-6
        ramp = torch.arange(4.0).expand_as(z) * new
        assert (variation(ramp, scale)[(new == 0)] == 0).all()
        assert radial_power(variation(ramp, scale))[0].sum() > 0


def test_a_study_tells_the_scales_apart(make_task, make_batch):
    task = make_task()
    task.modules.eval()
    batches = [make_batch(2, (128, 192)), make_batch(1, (64, 64))]
    with torch.no_grad():
        study = task.study(batches, [], num_images=3)
        fewer = task.study(batches, [], num_images=1)
        assert task.study([], [], num_images=3) is None
    assert study is not None
    document = study.documents["latents"]
    assert (document["num_images"], fewer.documents["latents"]["num_images"]) == (3, 1)
    assert len(document["frequencies"]) == NUM_RINGS
    scales = document["scales"]
    assert [s["name"] for s in scales] == ["s1", "s2", "s3"]
    assert [s["pixels_per_latent"] for s in scales] == [64, 32, 16]
    assert sum(s["power_share"] for s in scales) == pytest.approx(1)
    assert sum(s["bpp_share"] for s in scales) == pytest.approx(1)
    assert [len(s["power"]) for s in scales] == [NUM_RINGS] * 3
    num_pixels = 2 * 128 * 192 + 64 * 64
    with torch.no_grad():
        bits = sum(-task.codec(b["image"] / 255).likelihood_y.log2().sum() for b in batches)
    assert sum(s["bpp"] for s in scales) == pytest.approx(bits.item() / num_pixels, rel=1e-4)
    for picture in (study.pictures["spectra"], study.pictures["scales"]):
        assert picture.dtype == torch.uint8
        assert picture.shape[0] == 3
        assert picture.float().std() > 0


@torch.no_grad()
def test_rate_and_distortion_by_scale_end_at_the_codecs_own(make_task, make_batch):
    task = make_task()
    task.modules.eval()
    codec = task.codec
    for weight in codec.parameters():  # an untrained codec's latents are nearly zero
        weight.mul_(1.5)
    batches = [make_batch(2, (64, 128)), make_batch(1, (70, 33))]
    study = task.study(batches, [], num_images=3)
    assert study is not None
    document = study.documents["latents"]
    coded = [(codec(batch["image"] / 255), batch["image"] / 255) for batch in batches]
    errors = torch.cat([(c.x_hat.clamp(0, 1) - x).square().mean((1, 2, 3)) for c, x in coded])
    last, num_pixels = document["scales"][-1], 2 * 64 * 128 + 70 * 33
    assert last["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert last["psnr"] == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-5)
    bits = sum(-p.log2().sum() for c, _ in coded for p in (c.likelihood_y, c.likelihood_z))
    assert last["bpp_so_far"] == pytest.approx(bits.item() / num_pixels, rel=1e-4)
    rates = [document["hyper"]["bpp"], *(scale["bpp_so_far"] for scale in document["scales"])]
    assert rates == sorted(rates)
    # Latents up to a scale are those of the whole; beyond it they are what is expected of them.
    (c, x) = coded[0]
    torch.testing.assert_close(up_to(codec, x, 3), c.x_hat.clamp(0, 1))
    coarse = up_to(codec, x, 1)
    assert not torch.equal(coarse, up_to(codec, x, 2))
    assert not torch.equal(coarse, up_to(codec, x, 0))


def test_facts_say_what_it_costs(make_task):
    facts = make_task(**BOTH, size=(64, 128)).facts()
    assert facts["latent_shape"] == [48, 4, 8]
    assert facts["hyper_latent_shape"] == [32, 1, 2]
    assert facts["num_parameters"] > facts["num_parameters_codec"] > 0
    assert facts["macs_per_image"] / (64 * 128 * 1000) == pytest.approx(
        facts["kmacs_per_pixel"], abs=1e-3
    )


def test_noise_is_uniform_and_of_the_iteration_alone():
    like = torch.empty(4, 32, 16, 16)
    drawn = Noise(0, 3).uniform(like, "y")
    assert drawn.shape == like.shape
    assert -0.5 <= drawn.min() < -0.499
    assert 0.499 < drawn.max() < 0.5
    assert drawn.mean().abs() < 0.005
    assert torch.equal(drawn, Noise(0, 3).uniform(like, "y"))
    assert not torch.equal(drawn, Noise(0, 4).uniform(like, "y"))
    assert not torch.equal(drawn, Noise(0, 3).uniform(like, "z"))
    part = Noise(0, 3, part=1, parts=2).uniform(like[:2], "y")
    assert torch.equal(part, drawn[2:])
