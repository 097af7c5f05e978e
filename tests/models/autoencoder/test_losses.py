from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.losses import (
    Criterion,
    code_counts,
    cross_entropy,
    kl_divergence,
    perplexity,
    segmentation_cross_entropy,
)
from imgtool.models.autoencoder.measures import Reconstruction, Seen
from imgtool.models.autoencoder.schema import Loss, Model
from imgtool.models.autoencoder.task import AutoencoderFamily


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    mask = torch.tensor([[[0, 2]]], dtype=torch.uint8)
    total = math.exp(2) + 1 + math.exp(-1)
    expected = (-math.log(math.exp(2) / total) - math.log(math.exp(-1) / total)) / 2
    assert segmentation_cross_entropy(logits, mask).item() == pytest.approx(expected, rel=1e-6)


def test_sure_and_right_logits_cost_nothing() -> None:
    """A softmax before the cross-entropy has a floor of ln(e + 9) - 1 with ten classes."""
    mask = torch.randint(0, 10, (2, 8, 8), dtype=torch.uint8)
    logits = 50 * torch.nn.functional.one_hot(mask.long(), 10).permute(0, 3, 1, 2).float()
    twice = segmentation_cross_entropy(logits.softmax(1), mask)
    assert twice.mean().item() == pytest.approx(1.46115, abs=1e-5)
    assert segmentation_cross_entropy(logits, mask).max().item() < 1e-6


def test_the_network_can_go_below_the_floor_of_a_double_softmax(
    make_experiment: Callable[..., Any],
    make_data: Callable[..., Any],
    make_batch: Callable[..., Any],
) -> None:
    """The heads themselves end in no softmax: a large bias alone reaches a loss near zero."""
    data = make_data("mask", "label")
    task = AutoencoderFamily().build(make_experiment(), data)
    batch = make_batch()
    batch["mask"].fill_(2)
    batch["label"].fill_(1)
    heads = task.network.decoder.heads
    with torch.no_grad():
        heads["segmentation"][-1].bias[2] += 100
        heads["classification"][-1].bias[1] += 100
        losses = task.all_updates()[0](batch)
    assert losses["seg"].item() < 1e-6
    assert losses["cls"].item() < 1e-6


def test_ignored_pixels_count_for_nothing() -> None:
    logits = torch.randn(3, 4, 5, 5)
    mask = torch.randint(0, 4, (3, 5, 5), dtype=torch.uint8)
    mask[0, :, :3] = 255
    mask[2] = 255
    found = segmentation_cross_entropy(logits, mask)
    for image in (0, 1):
        expected = torch.nn.functional.cross_entropy(
            logits[image : image + 1], mask[image : image + 1].long(), ignore_index=255
        )
        torch.testing.assert_close(found[image], expected)
    assert found[2].item() == 0


def test_cross_entropy_is_torchs() -> None:
    for size in ((), (5, 6)):
        classes = torch.randint(0, 7, (4, *size))
        logits = torch.randn(4, 7, *size, requires_grad=True)
        mine = cross_entropy(logits, classes)
        theirs = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
        torch.testing.assert_close(mine, theirs)
        towards = torch.randn_like(mine)
        gradients = [torch.autograd.grad(loss, logits, towards) for loss in (mine, theirs)]
        torch.testing.assert_close(*gradients)


def test_a_batch_without_a_labelled_pixel_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(2, 4, 5, 5, requires_grad=True)
    mask = torch.full((2, 5, 5), 255, dtype=torch.uint8)
    loss = segmentation_cross_entropy(logits, mask).mean()
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_cutting_a_batch_into_parts_changes_no_mean() -> None:
    logits = torch.randn(4, 3, 6, 6)
    mask = torch.randint(0, 3, (4, 6, 6), dtype=torch.uint8)
    mask[0, :5] = 255  # a mean over labelled pixels would differ
    whole = segmentation_cross_entropy(logits, mask).mean()
    parts = [segmentation_cross_entropy(logits[i : i + 2], mask[i : i + 2]).mean() for i in (0, 2)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_kl_divergence_is_the_closed_form_a_mean_over_elements() -> None:
    mu, logvar = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    posterior = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    closed = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mu, logvar), closed.mean(dim=(1, 2, 3)))
    assert kl_divergence(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item() == 0


def test_mse_and_l1_are_on_minus_one_to_one() -> None:
    criterion = Criterion(Model(heads=("rgb",)), Loss(l1=1.0))
    x = torch.full((1, 3, 2, 2), -1.0)
    outputs = {"rgb": torch.full((1, 3, 2, 2), 1.0)}
    terms = criterion.terms(x, Latent(z=x), outputs, {})
    assert terms["mse_pm1"].item() == 4
    assert terms["l1_pm1"].item() == 2


def test_gradient_is_the_error_of_differences_and_agrees_with_validation() -> None:
    criterion = Criterion(Model(heads=("rgb",)), Loss(mse=0.0, gradient=1.0))
    x = torch.rand(2, 3, 6, 8) * 2 - 1
    x_hat = (x + 0.1 * torch.randn(x.shape)).clamp(-1, 1)
    found = criterion.terms(x, Latent(z=x), {"rgb": x_hat}, {})["gradient"]
    across, down = (x_hat - x).diff(dim=3), (x_hat - x).diff(dim=2)
    by_hand = (across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3))) / 2
    torch.testing.assert_close(found, by_hand)
    seen = Seen(x=x, latent=Latent(z=x), outputs={"rgb": x_hat}, batch={}, decode=dict)
    psnr = Reconstruction().of_images(seen)["highpass_psnr"]
    torch.testing.assert_close(psnr.float(), -10 * torch.log10(found / 4))
    shifted = criterion.terms(x, Latent(z=x), {"rgb": x + 0.25}, {})["gradient"]
    assert shifted.max() < 1e-10  # what is flat costs nothing


def test_losses_are_float32_under_autocast() -> None:
    criterion = Criterion(Model(heads=("rgb", "segmentation")), Loss(l1=1.0, gradient=1.0))
    x = torch.rand(2, 3, 4, 4) * 2 - 1
    outputs = {"rgb": x.bfloat16(), "segmentation": torch.randn(2, 3, 4, 4).bfloat16()}
    batch = {"mask": torch.zeros(2, 4, 4, dtype=torch.uint8)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion.terms(x, Latent(z=x), outputs, batch)
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_commitment_pulls_the_encoder_only() -> None:
    criterion = Criterion(Model(bottleneck="vq"), Loss())
    encoded = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    z = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2).requires_grad_()
    term = criterion._term("commitment", z, Latent(z=z, encoded=encoded), {}, {})
    assert term.item() == pytest.approx((1 + 4) / 2)
    term.sum().backward()
    torch.testing.assert_close(encoded.grad.flatten(), torch.tensor([1.0, -2.0]))
    assert z.grad is None


@pytest.mark.parametrize(
    ("model", "loss", "names"),
    [
        (Model(), Loss(), {"mse_pm1", "seg", "cls"}),
        (Model(bottleneck="kl"), Loss(), {"mse_pm1", "seg", "cls", "kld"}),
        (Model(bottleneck="kl"), Loss(kld=0.0), {"mse_pm1", "seg", "cls"}),
        (Model(bottleneck="vq", heads=("rgb",)), Loss(), {"mse_pm1", "commitment"}),
        (Model(), Loss(seg=0.0, cls=0.0), {"mse_pm1"}),
        (Model(), Loss(mse=0.0, l1=0.5, cls=0.0), {"l1_pm1", "seg"}),
        (Model(heads=("rgb",)), Loss(mse=0.0, gradient=0.5), {"gradient"}),
    ],
)
def test_only_what_has_a_weight_is_computed(model: Model, loss: Loss, names: set[str]) -> None:
    assert set(Criterion(model, loss).weights) == names


def test_the_total_is_the_weighted_sum() -> None:
    criterion = Criterion(Model(bottleneck="kl"), Loss(mse=2.0, seg=0.5, cls=0.25, kld=0.125))
    means = {
        name: torch.tensor(value)
        for name, value in {"mse_pm1": 1.0, "seg": 3.0, "cls": 5.0, "kld": 7.0}.items()
    }
    assert criterion.total(means).item() == 2 * 1 + 0.5 * 3 + 0.25 * 5 + 0.125 * 7


def test_perplexity_is_the_number_of_codes_in_equal_use() -> None:
    indices = torch.tensor([[[0, 1], [2, 3]], [[3, 2], [1, 0]]])
    assert code_counts(indices, 6).tolist() == [2, 2, 2, 2, 0, 0]
    assert perplexity(code_counts(indices, 6)).item() == pytest.approx(4)
    assert perplexity(torch.tensor([9.0, 0.0])).item() == pytest.approx(1)
    share = np.array([0.5, 0.25, 0.25])
    expected = math.exp(-(share * np.log(share)).sum())
    assert perplexity(torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(expected)
