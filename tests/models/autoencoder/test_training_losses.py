"""The losses lpips, gan and eq in a task: what public trainers are known to get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtool.errors import DataError
from imgtool.models.autoencoder.discriminator import (
    LARGEST_RATIO,
    Discriminator,
    adaptive_ratio,
    hinge,
)
from imgtool.models.autoencoder.equivariance import (
    Transform,
    draw_transform,
    scales,
)
from imgtool.models.autoencoder.schema import Loss, smallest_judged
from imgtool.models.autoencoder.task import AutoencoderFamily, AutoencoderTask
from imgtool.models.base import Noise
from tests.small import ALL_LOSSES, keys_and_values

SMALL = {"model.heads": ("rgb",), "model.latent_channels": 4, "model.downsampling_steps": 2}
GAN = {"loss.gan": 0.5, "loss.gan_width": 8, "loss.gan_layers": 2}


@pytest.fixture(autouse=True)
def _random_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", "random")


@pytest.fixture
def make_task(
    make_experiment: Callable[..., Any], make_data: Callable[..., Any]
) -> Callable[..., AutoencoderTask]:
    def make(**changes: Any) -> AutoencoderTask:
        experiment = make_experiment(**{**SMALL, **changes})
        return AutoencoderFamily().build(experiment, make_data("mask", "label"))

    return make


def gradients(module: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


# LPIPS


def test_the_gradient_of_lpips_alone_reaches_the_encoder(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**{"loss.lpips": 1.0, "loss.mse": 0.0})
    assert set(task.criterion.weights) == {"lpips"}
    losses = task.update(make_batch(size=(32, 32)))
    losses["loss"].backward()
    found = gradients(task.network.encoder)
    assert len(found) == len(list(task.network.encoder.parameters()))
    assert all(gradient.any() for gradient in found)
    # And it is neither trained nor stored.
    names = [*task.modules.state_dict(), *dict(task.update.named_parameters())]
    assert not [name for name in names if "lin" in name or "trunk.28" in name]
    assert not any(
        "VGG" in repr(type(m)) or "Lpips" in repr(type(m)) for m in task.modules.modules()
    )


def test_validation_has_lpips_where_it_is_a_loss_or_asked_for(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any], monkeypatch: Any
) -> None:
    batch = make_batch(size=(32, 32))

    def values(**changes: Any) -> dict[str, float | None]:
        evaluator = make_task(**changes).evaluator()
        with torch.no_grad():
            evaluator.update(batch)
        return evaluator.compute()

    assert "lpips" not in values()
    torch.manual_seed(0)
    as_loss = values(**{"loss.lpips": 1.0})
    torch.manual_seed(0)
    asked = values(**{"loss.measure_lpips": True})
    assert asked["lpips"] == pytest.approx(as_loss["lpips"])
    assert as_loss["loss"] == pytest.approx(as_loss["mse_pm1"] + as_loss["lpips"])
    monkeypatch.delenv("IMGTOOL_LPIPS_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    lost = values(**{"loss.lpips": 1.0})  # a checkpoint is measured elsewhere
    assert (lost["lpips"], lost["loss"]) == (None, None)
    assert lost["mse_pm1"] is not None


# The discriminator


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_picture_gives_one_logit(layers: int) -> None:
    discriminator = Discriminator(Loss(gan=1.0, gan_layers=layers, gan_width=4))
    side = smallest_judged(layers)
    assert discriminator(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(DataError, match=f"needs {side} pixels a side"):
        discriminator(torch.zeros(1, 3, side, side - 1))


def test_it_has_the_shape_of_the_published_one() -> None:
    """NLayerDiscriminator: 2,765,633 parameters; a GroupNorm has as many as a BatchNorm."""
    discriminator = Discriminator(Loss(gan=1.0))
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
    small = Discriminator(Loss(gan=1.0, gan_layers=2, gan_width=32))
    assert sum(p.numel() for p in small.parameters()) == 167_841
    with torch.device("meta"):
        sides = [Discriminator(Loss(gan=1.0))(torch.zeros(1, 3, s, s)).shape[-1] for s in (64, 128)]
    assert sides == [6, 14]


def test_what_shares_a_batch_changes_no_logit() -> None:
    discriminator = Discriminator(Loss(gan=1.0, gan_layers=2, gan_width=8))
    x = torch.rand(4, 3, 24, 24) * 2 - 1
    alone = torch.cat([discriminator(x[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(discriminator(x), alone, rtol=1e-4, atol=1e-6)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])
    assert hinge(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert hinge(torch.zeros(2), torch.zeros(2)).item() == 1


def test_each_update_leaves_the_other_network_alone(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    """Reconstructions are detached for the discriminator, which is frozen for the network."""
    task = make_task(**GAN)
    assert task.discriminator is not None
    net, disc = task.updates(1000)
    assert (net.name, disc.name, disc.fresh_batch) == ("net", "disc", False)
    batch = make_batch()
    losses = net(batch)
    assert {"gan", "gan_ratio", "mse_pm1", "loss"} <= set(losses)
    losses["loss"].backward()
    assert gradients(task.network)
    assert not gradients(task.discriminator)
    assert all(p.requires_grad for p in task.discriminator.parameters())
    task.network.zero_grad()
    said = disc(batch)
    assert set(said) == {"disc", "logits_real", "logits_fake", "loss"}
    said["loss"].backward()
    found = gradients(task.discriminator)
    assert len(found) == len(list(task.discriminator.parameters()))
    assert all(gradient.any() for gradient in found)
    assert not gradients(task.network)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_the_discriminators_step_changes_nothing_of_the_network(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any], bottleneck: str
) -> None:
    task = make_task(**GAN, **{"model.bottleneck": bottleneck})
    before = {n: t.clone() for n, t in task.network.state_dict().items()}
    disc = task.updates(1000)[1]
    disc(make_batch())["loss"].backward()
    assert getattr(task.network.bottleneck, "_collected", None) is None  # codes to learn from
    assert all(torch.equal(t, before[n]) for n, t in task.network.state_dict().items())


def test_it_trains_before_it_counts_and_is_absent_before(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**GAN, **{"loss.gan_start": 7, "loss.gan_warmup": 3})
    assert task.discriminator is not None
    trained = [len(task.updates(iteration)) == 2 for iteration in range(1, 10)]
    assert trained == [False] * 3 + [True] * 6
    batch = make_batch()
    with torch.no_grad():  # a branch that is only multiplied by 0 would give NaN
        next(task.discriminator.parameters()).fill_(math.nan)
    task.updates(6)
    losses = task.update(batch)
    assert "gan" not in losses
    assert losses["loss"].isfinite()
    task.updates(7)
    assert "gan" in task.update(batch)


def test_a_start_in_epochs_is_the_first_iteration_past_them(
    make_task: Callable[..., AutoencoderTask],
) -> None:
    changes = {"train.batch_size": 3, "train.accumulate": 2}  # 8 images: 3 batches an epoch
    assert make_task(**GAN, **changes, **{"loss.gan_start": "1ep"}).gan_start == 1 + 2
    assert make_task(**GAN, **changes, **{"loss.gan_start": "2ep"}).gan_start == 1 + 3
    with pytest.raises(ValueError, match="neither iterations"):
        Loss(gan_start="5")
    task = make_task(**GAN)
    assert task.doubts(100, 1.0) != []
    assert task.doubts(1000, 1.0) == []


def test_the_ratio_is_bounded_finite_and_of_the_gradients() -> None:
    x_hat = torch.rand(2, 3, 4, 4).requires_grad_()
    ratio = adaptive_ratio(3 * x_hat.mean(), -2 * x_hat.mean(), x_hat)
    assert ratio.item() == pytest.approx(1.5, rel=1e-3)
    assert not ratio.requires_grad
    nothing = (x_hat * 0).mean()
    assert adaptive_ratio(1e9 * x_hat.mean(), nothing, x_hat).item() == LARGEST_RATIO
    assert adaptive_ratio(x_hat.mean() * math.nan, x_hat.mean(), x_hat).item() == 0  # clamp(NaN) is
    assert adaptive_ratio(x_hat.mean(), x_hat.mean() * math.inf, x_hat).item() == 0
    half = x_hat.mean() * 1e-6  # a gradient far below what float16 holds is none that vanishes
    assert adaptive_ratio(1e3 * half, half, x_hat).item() == pytest.approx(
        1e3 * 1e-6 / 1.01e-4, rel=0.01
    )


def test_a_constant_weight_is_what_was_given(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**GAN, **{"loss.gan_weighing": "constant"})
    task.updates(1000)
    losses = task.update(make_batch())
    assert losses["gan_ratio"].item() == 1
    expected = losses["mse_pm1"] + 0.5 * losses["gan"]
    torch.testing.assert_close(losses["loss"], expected)


def test_the_discriminators_parameters_are_told_apart(
    make_task: Callable[..., AutoencoderTask],
) -> None:
    facts, plain = make_task(**GAN).facts(), make_task().facts()
    assert facts.pop("num_parameters_discriminator") > 0
    assert facts == plain


# Equivariance


def test_scaling_is_torchs_bilinear_and_turning_is_exact() -> None:
    x = torch.randn(2, 3, 16, 32)
    for k in (4, 8, 12):
        found = Transform(Fraction(k, 16))(x)
        size = (k, 2 * k)
        expected = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(found, expected)
    assert torch.equal(Transform(quarters=1)(x), torch.rot90(x, 1, (-2, -1)))
    assert torch.equal(Transform()(x), x)  # the identity is the plain loss
    nhwc = x.contiguous(memory_format=torch.channels_last)
    moved = Transform(Fraction(1, 2), 1)(nhwc)
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_masks_move_as_pictures_do() -> None:
    mask = torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8)
    blocks = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)  # constant over 4 x 4 pixels
    for tau in (Transform(Fraction(1, 2)), Transform(Fraction(1, 4), 3), Transform(quarters=2)):
        picture = tau(blocks[:, None].float())[:, 0]
        assert torch.equal(tau.of_mask(blocks).float(), picture)
    odd = Transform(Fraction(3, 4)).of_mask(torch.full((1, 8, 8), 255, dtype=torch.uint8))
    assert torch.equal(odd, torch.full((1, 6, 6), 255, dtype=torch.uint8))  # no class in between


def test_sizes_stay_whole_and_large_enough() -> None:
    assert scales((16, 16)) == [Fraction(k, 16) for k in range(4, 16)]
    assert scales((16, 16), smallest=6) == [Fraction(k, 16) for k in range(6, 16)]
    assert scales((6, 9)) == [Fraction(1, 3), Fraction(2, 3)]
    assert scales((4, 4), smallest=4) == []
    assert scales((5, 7)) == []


def test_a_weight_is_the_odds_of_a_transformed_step() -> None:
    def drawn(weight: float) -> list[Transform | None]:
        return [
            draw_transform(weight, (8, 8), 1, Noise(0, step).generator("eq"))
            for step in range(2000)
        ]

    for weight in (0.25, 1.0, 3.0):
        part = sum(tau is not None for tau in drawn(weight)) / 2000
        p = weight / (1 + weight)
        assert abs(part - p) < 4 * math.sqrt(p * (1 - p) / 2000)
    seen = {tau for tau in drawn(1.0) if tau is not None}
    assert {tau.quarters for tau in seen} == {0, 1, 2, 3}
    assert {tau.scale for tau in seen} == set(scales((8, 8)))
    turned = [draw_transform(9e9, (5, 7), 1, Noise(0, n).generator("eq")) for n in range(50)]
    assert {(t.scale, t.quarters) for t in turned if t} == {(1, k) for k in (1, 2, 3)}


def test_a_mean_of_blocks_scales_and_turns_where_it_must() -> None:
    def pooled(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 4)

    x = torch.rand(2, 3, 64, 64)
    z = pooled(x)
    for tau in (Transform(Fraction(1, 2)), Transform(quarters=1), Transform(quarters=3)):
        torch.testing.assert_close(tau(z), pooled(tau(x)))
    tau = Transform(Fraction(3, 4))
    assert ((tau(z) - pooled(tau(x))).square().sum() / z.square().sum()) > 1e-3


def test_both_updates_of_an_iteration_see_the_same_transformation(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    task = make_task(**GAN, **{"loss.eq": 1.0, "loss.gan_start": 1})
    assert task.discriminator is not None
    sizes: list[tuple[str, int, int]] = []
    now = ["net"]
    task.discriminator.register_forward_hook(
        lambda module, inputs, out: sizes.append((now[0], *inputs[0].shape[-2:]))
    )
    found = set()
    for iteration in range(1, 13):
        sizes.clear()
        names = []
        for number, update in enumerate(task.updates(iteration)):
            now[0] = update.name
            # Another part of the batch, and another step's noise, as the engine gives them.
            noise = Noise(3, 2 * iteration + number, part=number, parts=2)
            names.append(set(update(make_batch(noise=noise))))
        of_net, of_disc = sizes
        assert of_net[1:] == of_disc[1:]
        is_plain = of_net[1:] == (64, 64) and "mse_pm1" in names[0]
        assert ("eq_mse_pm1" in names[0]) != is_plain
        found.add(of_net[1])
    assert len(found) > 3


def test_the_decoder_alone_is_transformed(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any], monkeypatch: Any
) -> None:
    """KL is of the untransformed posterior; masks follow; a padded image is padded first."""
    changes = {"model.bottleneck": "kl", "model.heads": ("rgb", "segmentation"), "loss.eq": 1.0}
    task = make_task(**changes, **{"model.downsampling_steps": 3, "loss.seg": 1.0})
    batch = make_batch(size=(60, 60))
    tau = Transform(Fraction(1, 2), 1)
    plain = task.update(batch)
    monkeypatch.setattr(task, "transform", lambda x: tau)
    moved = task.update(batch)
    assert moved["kld"].item() == plain["kld"].item()
    x, latent, _ = task.network.reconstruct(batch["image"], ("rgb",), batch["noise"])
    seen = task.compared(x, latent.z, batch, tau)
    assert seen.x.shape == seen.outputs["rgb"].shape == (2, 3, 32, 32)
    assert seen.batch["mask"].shape == (2, 32, 32)
    assert (seen.batch["mask"] == 255).any()  # what was padded is nobody's class
    torch.testing.assert_close(moved["eq_mse_pm1"], (seen.x - seen.outputs["rgb"]).square().mean())
    identity = task.compared(x, latent.z, make_batch(), Transform())
    torch.testing.assert_close(
        identity.outputs["rgb"][..., :60, :60],
        task.compared(x, latent.z, batch, None).outputs["rgb"],
    )


# The config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.lpips": 1.0, "model.heads": ("segmentation",)}, "loss.lpips looks at pictures"),
        ({"loss.gan": 1.0, "loss.mse": 0.0, "loss.seg": 1.0, "model.heads": ("rgb", "segmentation")},
         "loss.gan alone"),
        ({"loss.gan": 1.0, "data.crop": 16, "data.image_size": 16}, "needs 24 pixels"),
        ({"loss.lpips": 1.0, "data.crop": 8, "data.image_size": 8}, "needs 16 pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(
    make_experiment: Callable[..., Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_experiment(**{**SMALL, **changes})


def test_no_weight_costs_nothing(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any], monkeypatch: Any
) -> None:
    from imgtool.models.autoencoder import losses

    monkeypatch.setattr(losses, "lpips_on", lambda device: pytest.fail("it was made"))
    task = make_task()
    assert task.updates(5000) == (task.update,)
    assert list(task.modules) == ["network"]
    assert set(task.update(make_batch())) == {"mse_pm1", "loss"}


def test_the_kl_architecture_trains_with_every_loss(
    make_task: Callable[..., AutoencoderTask], make_batch: Callable[..., Any]
) -> None:
    changes = {**keys_and_values(ALL_LOSSES), "loss.eq": 99.0, "model.bottleneck": "kl"}
    task = make_task(**changes, **{"model.architecture": "kl"})
    batch = make_batch(size=(32, 32))
    for update in task.updates(2):
        update(batch)["loss"].backward()
        assert all(p.grad is not None for p in update.parameters() if p.requires_grad)
        assert all(gradient.isfinite().all() for gradient in gradients(update))
