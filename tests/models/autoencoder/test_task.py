from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtool.errors import ConfigError
from imgtool.models.autoencoder.task import AutoencoderFamily, AutoencoderTask
from imgtool.models.base import Noise, StepResult


@pytest.fixture
def make_task(
    make_experiment: Callable[..., Any], make_data: Callable[..., Any]
) -> Callable[..., AutoencoderTask]:
    def make(*targets: str, **changes: Any) -> AutoencoderTask:
        torch.manual_seed(1)
        return AutoencoderFamily().build(make_experiment(**changes), make_data(*targets))

    return make


def rows(batch: dict[str, Any], keep: slice, noise: Noise) -> dict[str, Any]:
    cut = {k: v[keep] for k, v in batch.items() if isinstance(v, torch.Tensor)}
    return {**cut, "noise": noise}


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_losses_by_name(
    bottleneck: str,
    make_task: Callable[..., AutoencoderTask],
    make_batch: Callable[..., Any],
) -> None:
    task = make_task("mask", "label", **{"model.bottleneck": bottleneck, "loss.l1": 0.1})
    losses = task.all_updates()[0](make_batch())
    extra = {
        "none": set(),
        "kl": {"kld", "kld_weighted"},
        "vq": {"commitment", "perplexity"},
    }
    assert set(losses) == {"loss", "mse_pm1", "l1_pm1", "seg", "cls"} | extra[bottleneck]
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    weights = task.experiment.loss
    expected = weights.mse * losses["mse_pm1"] + weights.l1 * losses["l1_pm1"]
    expected = expected + weights.seg * losses["seg"] + weights.cls * losses["cls"]
    expected = expected + weights.kld * losses.get("kld", 0)
    expected = expected + weights.commitment * losses.get("commitment", 0)
    torch.testing.assert_close(losses["loss"], expected)


def test_a_weight_of_zero_freezes_its_head_and_decodes_nothing(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task("mask", "label", **{"loss.seg": 0.0})
    heads = task.network.decoder.heads
    assert not any(p.requires_grad for p in heads["segmentation"].parameters())
    assert all(p.requires_grad for p in heads["rgb"].parameters())
    heads["segmentation"].register_forward_hook(lambda *_: pytest.fail("decoded"))
    (update,) = task.all_updates()
    losses = update(make_batch())
    losses["loss"].backward()
    trained = update.parameter_sets()["main"]
    assert all(p.grad is not None for p in trained)  # none that DDP would wait for
    evaluator = task.evaluator()
    evaluator.update(make_batch())
    assert "seg_miou" not in evaluator.compute()
    assert task.facts()["num_parameters_segmentation"] == 0


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(
    bottleneck: str,
    make_task: Callable[..., AutoencoderTask],
    make_batch: Callable[..., Any],
) -> None:
    """What two processes, or two accumulated batches, average to."""
    changes = {"model.bottleneck": bottleneck, "loss.l1": 0.5, "loss.seg": 1.0}
    whole, parts = (make_task("mask", "label", **changes) for _ in range(2))
    batch = make_batch(4)
    batch["mask"][0, :50] = 255
    for iteration in (0, 1):  # the second with a codebook
        (update,) = whole.all_updates()
        update.zero_grad()
        update({**batch, "noise": Noise(3, iteration)})["loss"].backward()
        update.after_step(StepResult(torch.tensor(True), Noise(3, iteration), lambda t: t))
        (update,) = parts.all_updates()
        update.zero_grad()
        for k in (0, 1):
            noise = Noise(3, iteration, part=k, parts=2)
            losses = update(rows(batch, slice(2 * k, 2 * k + 2), noise))
            (losses["loss"] / 2).backward()
        update.after_step(StepResult(torch.tensor(True), Noise(3, iteration), lambda t: t))
        for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for a, b in zip(whole.network.buffers(), parts.network.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_training_lowers_the_error(
    bottleneck: str,
    make_task: Callable[..., AutoencoderTask],
    make_batch: Callable[..., Any],
) -> None:
    task = make_task(
        **{
            "model.heads": ("rgb",),
            "model.bottleneck": bottleneck,
            "model.downsampling_steps": 2,
            "model.max_channels": 16,
            "model.codebook_size": 32,
        }
    )
    (update,) = task.all_updates()
    optimizer = torch.optim.AdamW(update.parameters(), lr=3e-3)
    batch = make_batch(4, (32, 32))
    errors = []
    for iteration in range(60):
        noise = Noise(0, iteration)
        losses = update({**batch, "noise": noise})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        update.after_step(StepResult(torch.tensor(True), noise, lambda t: t))
        errors.append(losses["mse_pm1"].item())
    assert sum(errors[-5:]) / 5 < 0.4 * errors[0]
    if bottleneck == "vq":
        assert losses["perplexity"].item() > 8


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_losses_under_autocast_are_float32_and_finite(
    bottleneck: str,
    make_task: Callable[..., AutoencoderTask],
    make_batch: Callable[..., Any],
) -> None:
    task = make_task("mask", "label", **{"model.bottleneck": bottleneck})
    (update,) = task.all_updates()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = update(make_batch())
    losses["loss"].backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in update.parameters())


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_a_dry_run_on_the_meta_device(
    bottleneck: str,
    make_task: Callable[..., AutoencoderTask],
    make_batch: Callable[..., Any],
) -> None:
    with torch.device("meta"):
        task = make_task("mask", "label", **{"model.bottleneck": bottleneck})
    batch = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in make_batch().items()}
    assert task.all_updates()[0](batch)["loss"].is_meta


@pytest.mark.parametrize(
    ("targets", "heads", "words", "hint"),
    [
        ((), ("rgb", "segmentation"), "no masks for the segmentation head", "--heads rgb"),
        (("mask",), ("rgb", "segmentation", "classification"), "labels", "rgb,segmentation"),
        ((), ("segmentation", "classification"), "masks and labels", "--heads rgb"),
    ],
)
def test_a_head_without_its_target_is_refused(
    targets: tuple[str, ...],
    heads: tuple[str, ...],
    words: str,
    hint: str,
    make_task: Callable[..., AutoencoderTask],
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        make_task(*targets, **{"model.heads": heads})
    assert error.value.hint is not None
    assert error.value.hint.endswith(hint)


def test_heads_have_the_classes_of_the_data(make_task: Callable[..., AutoencoderTask]) -> None:
    heads = make_task("mask", "label").network.decoder.heads
    assert heads["segmentation"][-1].out_channels == 3
    assert heads["classification"][-1].out_features == 2


def test_facts(make_experiment: Callable[..., Any], make_data: Callable[..., Any]) -> None:
    experiment = make_experiment(**{"model.latent_channels": 5, "model.downsampling_steps": 3})
    task = AutoencoderFamily().build(experiment, make_data("mask", "label", image_size=(96, 64)))
    facts = task.facts()
    assert facts["latent_shape"] == [5, 12, 8]
    assert facts["latent_dims"] == 480
    assert facts["macs_per_image"] > 0
    parts = ("encoder", "bottleneck", "decoder", "rgb", "segmentation", "classification")
    assert facts["num_parameters"] == sum(facts[f"num_parameters_{part}"] for part in parts)
    own_sizes = AutoencoderFamily().build(experiment, make_data("mask", "label", image_size=None))
    assert own_sizes.facts()["latent_shape"] is None
    assert own_sizes.facts()["num_parameters"] == facts["num_parameters"]


def test_the_comparison_has_originals_left_and_maps_right(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task, batch = make_task("mask", "label"), make_batch(3, (40, 56))
    batch["mask"][1] = 255
    picture = task.sample(batch)["comparison"]
    assert picture.shape == (3, 3 * 42 - 2, 4 * 58 - 2)
    for k in range(3):
        row = picture[:, 42 * k : 42 * k + 40]
        assert torch.equal(row[..., :56], batch["image"][k])
    with torch.no_grad():
        outputs = task.network.reconstruct(batch["image"])[2]
    levels = (outputs["rgb"][0].double() + 1) * 127.5
    assert (picture[:, :40, 58:114] - levels).abs().max() <= 0.5 + 1e-4
    palette = torch.tensor(task.data.palette, dtype=torch.uint8)
    target, predicted = picture[:, :40, 116:172], picture[:, :40, 174:230]
    assert torch.equal(target, palette[batch["mask"][0].long()].permute(2, 0, 1))
    assert torch.equal(predicted, palette[outputs["segmentation"][0].argmax(0)].permute(2, 0, 1))
    assert picture[:, 42:82, 116:172].max() == 0  # unlabelled pixels are black
    assert (picture[:, :, 56:58] == 128).all()


def test_photos_show_two_columns(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**{"model.heads": ("rgb",)})
    picture = task.sample(make_batch(2, (64, 64)))["comparison"]
    assert picture.shape == (3, 2 * 66 - 2, 2 * 66 - 2)
