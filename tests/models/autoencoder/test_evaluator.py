from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from imgtool.models.autoencoder.task import AutoencoderFamily, AutoencoderTask
from imgtool.models.base import Noise


@pytest.fixture
def make_task(
    make_experiment: Callable[..., Any], make_data: Callable[..., Any]
) -> Callable[..., AutoencoderTask]:
    def make(*targets: str, **changes: Any) -> AutoencoderTask:
        task = AutoencoderFamily().build(make_experiment(**changes), make_data(*targets))
        task.modules.eval()
        return task

    return make


def evaluate(task: AutoencoderTask, *batches: dict[str, Any]) -> dict[str, float | None]:
    evaluator = task.evaluator()
    with torch.no_grad():
        for batch in batches:
            evaluator.update(batch)
    return evaluator.compute()


def rows(batch: dict[str, Any], keep: slice | list[int]) -> dict[str, Any]:
    return {k: v[keep] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def assert_alike(found: dict[str, float | None], expected: dict[str, float | None]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=1e-4), name


RGB = {"model.heads": ("rgb",)}


def test_mse_and_psnr_agree_with_numpy(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task, batch = make_task(**RGB), make_batch(4)
    metrics = evaluate(task, batch)
    with torch.no_grad():
        x_hat = task.network.reconstruct(batch["image"])[2]["rgb"].double().numpy()
    original = batch["image"].numpy() / 255.0
    errors = (((x_hat + 1) / 2 - original) ** 2).mean(axis=(1, 2, 3))
    assert metrics["mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert metrics["psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), rel=1e-6)
    assert metrics["mse_pm1"] == pytest.approx(4 * errors.mean(), rel=1e-6)
    error = (x_hat + 1) / 2 - original
    of_gradients = [
        np.mean([(np.diff(one, axis=axis) ** 2).mean() for axis in (1, 2)]) for one in error
    ]
    assert metrics["highpass_psnr"] == pytest.approx(
        (-10 * np.log10(of_gradients)).mean(), rel=1e-6
    )


def test_psnr_is_averaged_over_images_not_taken_of_the_average(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task, batch = make_task(**RGB), make_batch(2)
    last = task.network.decoder.heads["rgb"][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    batch["image"][0] = 130  # close to what is said of everything, the middle
    single = [evaluate(task, rows(batch, [k]))["psnr"] for k in (0, 1)]
    both = evaluate(task, batch)
    assert both["psnr"] == pytest.approx(sum(single) / 2)
    assert both["psnr"] > -10 * math.log10(both["mse"]) + 5


def test_the_monitor_is_the_reconstruction_and_not_the_total(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task("mask", "label")
    assert (task.monitor, task.monitor_mode) == ("val_mse", "min")
    metrics = evaluate(task, make_batch())
    loss = task.experiment.loss
    parts = loss.mse * metrics["mse_pm1"] + loss.seg * metrics["seg"] + loss.cls * metrics["cls"]
    assert metrics["loss"] == pytest.approx(parts)
    only_maps = make_task("mask", **{"model.heads": ("segmentation",)})
    assert only_maps.monitor == "val_loss"
    assert "mse" not in evaluate(only_maps, make_batch())


def test_how_images_are_batched_changes_nothing(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    for bottleneck in ("none", "kl", "vq"):
        task = make_task("mask", "label", **{"model.bottleneck": bottleneck})
        batch = make_batch(5)
        whole = evaluate(task, batch)
        parts = evaluate(task, rows(batch, slice(0, 2)), rows(batch, slice(2, 5)))
        assert_alike(parts, whole)


def test_fillers_do_not_count(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    for bottleneck in ("kl", "vq"):
        task = make_task("mask", "label", **{"model.bottleneck": bottleneck})
        batch = make_batch(4)
        filled = {**batch, "valid": torch.tensor([True, True, False, False])}
        expected = evaluate(task, rows(batch, slice(0, 2)))
        found = evaluate(task, filled)
        assert_alike(found, expected)


def test_sums_of_two_processes_add_up(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    """The same sums exist on every process, whatever the sizes of its images."""
    task = make_task(**RGB)
    batches = [make_batch(1, (170, 170), seed=1), make_batch(1, (64, 64), seed=2)]
    whole = evaluate(task, *batches)
    evaluators = [task.evaluator() for _ in batches]
    with torch.no_grad():
        for evaluator, batch in zip(evaluators, batches, strict=True):
            evaluator.update(batch)
    assert evaluators[0].totals.keys() == evaluators[1].totals.keys()
    for name, total in evaluators[1].totals.items():
        evaluators[0].totals[name] = evaluators[0].totals[name] + total
    assert evaluators[0].compute() == pytest.approx(whole)


def test_nothing_seen_gives_no_metrics(make_task: Callable[..., AutoencoderTask]) -> None:
    assert make_task(**RGB).evaluator().compute() == {}


def test_ms_ssim_needs_161_pixels(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB)
    small = evaluate(task, make_batch(1, (160, 200)))
    assert small["ms_ssim"] is None
    large = evaluate(task, make_batch(1, (161, 200)))
    assert 0 <= large["ms_ssim"] <= 1
    mixed = evaluate(task, make_batch(1, (160, 200)), make_batch(1, (161, 200)))
    assert mixed["ms_ssim"] == pytest.approx(large["ms_ssim"])


def test_mse_by_class_looks_at_each_classes_pixels(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task, batch = make_task("mask", **RGB), make_batch(3)
    batch["mask"].fill_(2)
    batch["mask"][0, :8, :8] = 0
    batch["mask"][1, 40:, 10:] = 0
    batch["mask"][2, :30] = 255
    metrics = evaluate(task, batch)
    with torch.no_grad():
        x_hat = task.network.reconstruct(batch["image"])[2]["rgb"].double().numpy()
    errors = (((x_hat + 1) / 2 - batch["image"].numpy() / 255.0) ** 2).mean(axis=1)
    mask = batch["mask"].numpy()
    assert metrics["mse_bed"] == pytest.approx(errors[mask == 0].mean(), rel=1e-5)
    assert metrics["mse_background"] == pytest.approx(errors[mask == 2].mean(), rel=1e-5)
    assert metrics["mse_wall"] is None
    assert abs(metrics["mse_bed"] - metrics["mse"]) > 1e-4


def contour(region: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A class's pixels within 2 % of the diagonal of its contour; towards unknown ones it has none."""
    width = max(1, round(0.02 * math.hypot(*region.shape)))
    padded = np.pad(region | ~known, 1)
    eroded = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
    return region & known & ~eroded


def test_segmentation_and_class_metrics_agree_with_numpy(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task, batch = make_task("mask", "label"), make_batch(4)
    batch["mask"][:, :10] = 255
    metrics = evaluate(task, batch)
    with torch.no_grad():
        outputs = task.network.reconstruct(batch["image"])[2]
    predicted, target = outputs["segmentation"].argmax(1).numpy(), batch["mask"].numpy()
    known = target != 255
    ious = []
    for k in range(3):
        p, t = (predicted == k) & known, (target == k) & known
        if (p | t).any():
            ious.append((p & t).sum() / (p | t).sum())
    assert metrics["seg_miou"] == pytest.approx(np.mean(ious))
    assert metrics["seg_accuracy"] == pytest.approx((predicted == target)[known].mean())
    near = {
        (k, of): np.stack([contour(*of_image) for of_image in zip(maps == k, known, strict=True)])
        for k in range(3)
        for of, maps in (("predicted", predicted), ("target", target))
    }
    both = [(near[k, "predicted"], near[k, "target"]) for k in range(3)]
    ious = [(p & t).sum() / (p | t).sum() for p, t in both if (p | t).any()]
    assert metrics["seg_boundary_miou"] == pytest.approx(np.mean(ious))
    right = outputs["classification"].argmax(1) == batch["label"]
    assert metrics["cls_accuracy"] == pytest.approx(right.double().mean().item())


def test_a_vae_is_validated_on_its_mean(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB, **{"model.bottleneck": "kl"})
    with torch.no_grad():
        task.network.bottleneck.to_logvar.bias.fill_(4.0)  # sigma about 7: samples are noise
    batch = make_batch(2)
    metrics = evaluate(task, batch)
    assert metrics == evaluate(task, {**batch, "noise": Noise(9, 9)})
    with torch.no_grad():
        z = task.network.encode((batch["image"] - 127.5) / 127.5).mu
        x_hat = (task.network.decode(z)["rgb"] + 1) / 2
        expected = (x_hat - batch["image"] / 255).square().mean().item()
    assert metrics["mse"] == pytest.approx(expected, rel=1e-5)
    assert metrics["mse_sampled"] != pytest.approx(metrics["mse"], rel=5e-3)


def test_kld_in_its_three_units(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB, **{"model.bottleneck": "kl", "loss.kld": 1e-3})
    batch = make_batch(3)
    metrics = evaluate(task, batch)
    with torch.no_grad():
        latent = task.network.encode((batch["image"] - 127.5) / 127.5)
    mu, logvar = latent.mu.double().numpy(), latent.logvar.double().numpy()
    nats = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)
    assert metrics["kld"] == pytest.approx(nats.mean(), rel=1e-5)
    assert metrics["kld_nats"] == pytest.approx(nats.reshape(3, -1).sum(1).mean(), rel=1e-5)
    assert metrics["kld_weighted"] == pytest.approx(1e-3 * nats.mean(), rel=1e-5)
    without = make_task(**RGB, **{"model.bottleneck": "kl", "loss.kld": 0.0})
    assert evaluate(without, batch)["kld"] is not None


def test_active_units_are_channels_whose_mean_moves(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB, **{"model.bottleneck": "kl", "model.latent_channels": 4})
    batches = [make_batch(2, seed=s) for s in (1, 2)]
    to_mu = task.network.bottleneck.to_mu
    with torch.no_grad():
        features = task.network.encoder((batches[0]["image"] - 127.5) / 127.5)
        to_mu.weight.zero_()
        to_mu.bias.fill_(100.0)  # far from zero, but constant
        to_mu.weight[:2, 0] = 1 / features[:, 0].std()
    assert evaluate(task, *batches)["active_units"] == 2


def test_perplexity_is_over_the_whole_set(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB, **{"model.bottleneck": "vq", "model.codebook_size": 8})
    quantizer = task.network.bottleneck
    quantizer.initialised.fill_(True)
    with torch.no_grad():
        quantizer.to_latent.weight.zero_()
        quantizer.to_latent.bias.zero_()
    batches = [make_batch(1, seed=s) for s in (1, 2)]
    evaluator = task.evaluator()
    for k, batch in enumerate(batches):  # each batch uses one code, the set uses two
        quantizer.codebook.fill_(10.0)
        quantizer.codebook[k] = 0
        with torch.no_grad():
            evaluator.update(batch)
    assert evaluator.compute()["perplexity"] == pytest.approx(2)


def test_a_perfect_image_has_100_db(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**RGB)
    last = task.network.decoder.heads["rgb"][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(100.0)
    batch = make_batch(1)
    batch["image"].fill_(255)
    metrics = evaluate(task, batch)
    assert metrics["mse"] == 0
    assert metrics["psnr"] == pytest.approx(100)
