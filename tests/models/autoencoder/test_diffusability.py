"""What is said of how hard a latent is to generate, of encoders whose spectra are known."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.diffusability import Diffusability
from imgtool.models.autoencoder.equivariance import MEASURED
from imgtool.models.autoencoder.equivariance_error import Equivariance
from imgtool.models.autoencoder.spectrum_picture import draw
from imgtool.nn.spectra import dct_basis, radius
from imgtool.nn.spectral_sums import SpectralSums, jackknife, spectrum, weighed

UNIT = 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coloured(power, count=32, channels=3, side=16, seed=0):
    """Maps whose modes have the power f^power, (count, channels, side, side)."""
    r = radius(side, side)
    r[0, 0] = r[0, 1]
    modes = normal(count, channels, side, side, seed=seed) * r.pow(power / 2)
    basis = dct_basis(side)
    return (basis.T @ modes @ basis).float()


def said(z, encode=None, *, logvar=None, scenes=None, images=None):
    """The document of latents z (B, C, h, w), of noise images unless others are given."""
    if images is None:
        images = normal(len(z), 3, UNIT * z.shape[2], UNIT * z.shape[3], seed=9)
    network = SimpleNamespace(unit=UNIT, encode=encode or (lambda x: Latent(z=grey(x, z.shape[1]))))
    ease = Diffusability(network)
    latent = Latent(z=z) if logvar is None else Latent(z=z, mu=z, logvar=logvar)
    ease.add(images, latent, [k % 8 for k in range(len(z))] if scenes is None else scenes)
    return ease.document()


def grey(x, channels):
    return pooled(x).mean(1, keepdim=True).expand(-1, channels, -1, -1)


def pooled(x):
    return F.avg_pool2d(x, UNIT)


def test_white_noise_is_flat():
    found = said(normal(400, 4, 16, 16))  # 1e5 values of every ring's modes and more
    flat = [p for p in found["spectrum_power"] if p is not None]
    assert flat == pytest.approx([1] * len(flat), rel=0.05)
    assert found["spectrum_slope"] == pytest.approx(0, abs=0.02)
    above = (radius(16, 16) > 0.5).sum().item() / 255
    assert found["high_frequency_share"] == pytest.approx(above, rel=0.01)
    assert found["flow_floor"] == pytest.approx(math.pi / 2, rel=0.01)
    assert found["flow_floor_logit_normal"] == pytest.approx(1.741, rel=0.01)
    assert found["block_profile"][1:] == pytest.approx([1] * 63, rel=0.05)


@pytest.mark.parametrize("power", [-1.0, -2.0, -3.0])
def test_a_power_law_has_its_slope(power):
    found = said(coloured(power, side=32))
    assert found["spectrum_slope"] == pytest.approx(power, abs=0.03)
    assert found["spectrum_slope_per_channel"] == pytest.approx([power] * 3, abs=0.06)


def test_steeper_is_less_high_and_easier():
    white, pink, red = (said(coloured(power, side=32)) for power in (0.0, -1.0, -2.0))
    for name in ("high_frequency_share", "flow_floor", "flow_floor_logit_normal"):
        assert white[name] > pink[name] > red[name]
        gap = pink[name] - red[name]
        assert gap > 5 * max(pink[f"{name}_se"], red[f"{name}_se"])


def test_neither_scale_nor_level_nor_a_flip_changes_what_is_said():
    z = coloured(-1.5)
    images = normal(32, 3, UNIT * 16, UNIT * 16, seed=9)
    factors = torch.tensor([1e-3, 7.0, 200.0]).view(1, 3, 1, 1)
    first = said(z, images=images)
    for other in (
        said(
            z * factors + 5 * factors, lambda x: Latent(z=(pooled(x) + 5) * factors), images=images
        ),
        said(z.flip(3), images=images),
    ):
        for name, value in first.items():
            if "equivariance" not in name and isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_equivariance_is_measured_of_standardised_latents():
    images = coloured(-1.0, count=8, side=64)
    factors = torch.tensor([0.1, 5.0, 40.0]).view(1, 3, 1, 1)

    def crooked(x):
        return F.avg_pool2d(x.roll(1, 3), UNIT)

    def moved(x):
        return (crooked(x) + 3) * factors

    errors = [
        said(f(images), lambda x, f=f: Latent(z=f(x)), images=images)["equivariance_error"]
        for f in (crooked, moved)
    ]
    assert errors[0] > 0.01
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_added_white_noise_raises_the_tail():
    z = coloured(-2.0)
    z = z / z.std()
    before, after = said(z), said(z + 0.3 * normal(*z.shape, seed=5))
    for name in ("high_frequency_share", "spectrum_slope", "flow_floor"):
        assert after[name] > before[name]
    assert after["block_profile"][-1] > 1.3 * before["block_profile"][-1]


def test_samples_are_told_without_drawing_them():
    z = coloured(-2.0, count=200, side=16)
    logvar = 0.5 * normal(*z.shape, seed=3) - 1
    told = said(z, logvar=logvar)
    drawn = said(z + (logvar / 2).exp() * normal(*z.shape, seed=4))
    for name in ("spectrum_slope", "high_frequency_share", "flow_floor", "spectrum_kl"):
        assert told[f"{name}_sampled"] == pytest.approx(drawn[name], rel=0.02)
        assert told[f"{name}_sampled"] != pytest.approx(told[name], rel=0.02)
    assert told["block_profile_sampled"] == pytest.approx(drawn["block_profile"], rel=0.05)


def test_a_constant_latent_and_one_of_a_single_position_have_none():
    for z in (torch.full((4, 2, 8, 8), 3.0), normal(4, 2, 1, 1)):
        found = said(z, lambda x, z=z: Latent(z=z[: len(x)].mean((2, 3), keepdim=True)))
        assert found["spectrum_slope"] is found["high_frequency_share"] is None
        assert found["spectrum_kl"] is found["spectrum_power"] is None
    constant = said(torch.full((4, 2, 8, 8), 3.0), lambda x: Latent(z=3 + 0 * pooled(x)[:, :2]))
    assert constant["equivariance_error"] is constant["flow_floor"] is None
    assert constant["spectrum_slope_se"] is None


def test_a_constant_channel_is_left_out():
    z = coloured(-1.0)
    dead = torch.cat([z, torch.full_like(z[:, :1], 0.1)], 1)
    one = Latent(z=dead)
    images = normal(32, 3, UNIT * 16, UNIT * 16, seed=9)

    def encode(x):
        y = pooled(x)
        return Latent(z=torch.cat([y, torch.full_like(y[:, :1], 0.1)], 1))

    found = said(one.z, encode, images=images)
    wanted = said(z, lambda x: Latent(z=pooled(x)), images=images)
    assert found["spectrum_slope_per_channel"][3] is None
    for name in ("spectrum_slope", "spectrum_kl", "flow_floor", "equivariance_error"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-6)
    assert draw(found).shape[0] == 3


def test_an_encoder_that_averages_has_the_pictures_spectrum():
    images = coloured(-2.0, count=12, side=64)
    found = said(pooled(images), lambda x: Latent(z=pooled(x)), images=images)
    assert found["spectrum_kl"] == pytest.approx(0, abs=1e-12)
    assert found["spectrum_slope"] == pytest.approx(found["picture_spectrum_slope"])
    noise = said(normal(12, 3, 16, 16), images=images)
    assert noise["spectrum_kl"] > 0.02
    assert noise["spectrum_kl"] > 5 * noise["spectrum_kl_se"]


def error_of(grid, change):
    """Of average pooling under one change alone."""
    x = normal(6, 3, grid * UNIT, grid * UNIT)
    found = Equivariance()
    found.add(pooled, x, pooled(x), UNIT, torch.zeros(6, dtype=torch.long))
    only = torch.zeros(6, 1, dtype=torch.bool)
    only[change] = True
    for number, terms in enumerate(found._terms):
        found._terms[number] = type(terms)(*(kind * only for kind in terms))
    weights = torch.ones(64).double()
    return found.error(torch.zeros(3).double(), torch.ones(3).double(), weights).item()


def test_average_pooling_keeps_halving_and_rotations_and_no_three_quarters():
    errors = [error_of(16, change) for change in range(6)]
    assert [tau.scale for tau in MEASURED[:3]] == [0.25, 0.5, 0.75]
    assert errors[1] < 1e-10
    assert max(errors[3:]) < 1e-10
    assert errors[2] == pytest.approx(0.33, abs=0.1)
    assert [math.isnan(error_of(1, change)) for change in range(3)] == [True] * 3
    assert math.isnan(error_of(2, 0))
    assert error_of(2, 1) < 1e-10
    assert error_of(19, 1) < 1e-10  # cut to 16


def test_sizes_may_differ_and_what_is_large_shares_cells():
    white = SpectralSums()
    for number, size in enumerate([(48, 40), (40, 48), (64, 64), (12, 20)]):
        white.add(
            normal(2, 2, *size, seed=number), None, torch.tensor([2 * number, 2 * number + 1])
        )
    sums, radii = white.by_group()
    found = spectrum(weighed(sums, torch.ones(64).double()), radii)
    total = (found.power * found.modes).sum(1) + found.level * found.images
    assert (total / (found.modes.sum() + found.images)).tolist() == pytest.approx(
        [1, 1]
    )  # Parseval
    assert found.power[:, found.modes > 20].mean().item() == pytest.approx(1, rel=0.05)
    assert 0 < radii[radii > 0].min() < radii.max() < math.sqrt(2)


def test_errors_are_the_spread_over_draws():
    names = ("spectrum_slope", "high_frequency_share", "flow_floor", "equivariance_error")
    found = []
    for seed in range(20):
        images = coloured(-1.0, count=24, side=32, seed=seed)
        # Two images a scene, which are alike: only scenes are independent.
        images = images.repeat_interleave(2, 0)[:24] * (1 + normal(24, 1, 1, 1, seed=seed).abs())
        z = F.avg_pool2d(images.roll(1, 3), UNIT)
        scenes = torch.arange(24) // 2
        one = said(
            z,
            lambda x: Latent(z=F.avg_pool2d(x.roll(1, 3), UNIT)),
            scenes=scenes.tolist(),
            images=images,
        )
        found.append([[one[name], one[f"{name}_se"]] for name in names])
    values, errors = torch.tensor(found).double().unbind(2)
    ratio = errors.mean(0) / values.std(0)
    assert ((ratio > 0.7) & (ratio < 1.6)).all(), ratio


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = torch.zeros(64).double()
    x[:10] = normal(10).double()
    values, errors = jackknife(lambda w: {"mean": (w * x).sum() / w.sum()}, 10)
    assert values["mean"].item() == pytest.approx(x[:10].mean().item())
    assert errors["mean"].item() == pytest.approx((x[:10].std() / 10**0.5).item())
    assert jackknife(lambda w: {"mean": w.sum()}, 1)[1]["mean"].isnan()


def test_the_picture_shows_every_line():
    z = coloured(-2.0, count=8)
    document = said(z, logvar=torch.zeros_like(z) - 2)
    picture = draw(document)
    assert picture.dtype == torch.uint8
    bare = {**document, "spectrum_power_sampled": None}
    assert (draw(bare) != picture).any()
    small = said(normal(8, 2, 4, 4))  # no block fits
    assert small["block_profile"] is None
    assert draw(small).shape[2] < picture.shape[2]
