"""The transforms against scipy, and the floor of a Gaussian's rectified flow against simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from imgtool.nn.spectra import (
    BLOCK,
    NUM_RINGS,
    blocks,
    dct,
    dct_of_noise,
    flow_floor,
    mode_variances,
    radial_power,
    zigzag,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_the_transform_is_scipys_and_keeps_the_power():
    z = normal(2, 3, 24, 17)
    wanted = dctn(z.numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(dct(z).numpy() - wanted).max() < 1e-12
    power = dct(z.float() * 1e3).square().sum() / (z.float() * 1e3).double().square().sum()
    assert abs(power.item() - 1) < 1e-10  # Parseval


def test_the_power_of_noise_is_that_of_many_draws():
    variance = normal(4, 6).square()
    drawn = dct(normal(40_000, 4, 6, seed=1) * variance.sqrt()).square().mean(0)
    torch.testing.assert_close(dct_of_noise(variance), drawn, rtol=0.05, atol=0)


def test_blocks_and_their_order():
    z = torch.arange(20 * 17.0).view(1, 20, 17)
    tiles = blocks(z)
    assert tiles.shape == (1, 4, BLOCK, BLOCK)
    assert torch.equal(tiles[0, 3], z[0, 8:16, 8:16])
    assert zigzag(3) == [0, 1, 3, 6, 4, 2, 5, 7, 8]
    assert zigzag()[:6] == [0, 1, 8, 16, 9, 2]
    assert sorted(zigzag()) == list(range(64))


def test_radial_power_is_parsevals_and_finds_a_wave():
    z = normal(2, 3, 8, 12)
    z = z - z.mean((2, 3), keepdim=True)
    sums, counts = radial_power(z)
    assert sums.sum().item() == pytest.approx(z.square().sum().item(), rel=1e-12)
    assert counts.sum().item() == z.numel() - 2 * 3
    wave = torch.cos(math.pi * 8 / 16 * (torch.arange(16) + 0.5)).expand(1, 1, 16, 16)
    sums, _ = radial_power(wave)
    assert sums.argmax().item() == int(0.5 / math.sqrt(2) * NUM_RINGS)
    assert sums.max() / sums.sum() > 0.999


def test_the_floor_of_white_noise():
    white = torch.ones(3, 4, 4)
    assert flow_floor(white) == pytest.approx(math.pi / 2, rel=1e-12)
    assert flow_floor(white, times="logit_normal") == pytest.approx(1.741, abs=5e-4)
    latents = normal(400, 2, 8, 8)
    assert flow_floor(mode_variances(latents)) == pytest.approx(math.pi / 2, rel=0.01)
    doubled = mode_variances(latents / 2**0.5, torch.full_like(latents, 0.5))
    assert flow_floor(doubled) == pytest.approx(math.pi / 2, rel=0.01)


def test_what_is_concentrated_is_easier_and_what_is_constant_is_known():
    steep = torch.tensor([3.9, 0.1, 0.0, 0.0])
    assert flow_floor(steep) == pytest.approx(math.pi / 2 * (3.9**0.5 + 0.1**0.5) / 4)
    for times in ("uniform", "logit_normal"):
        assert flow_floor(steep, times=times) < flow_floor(torch.ones(4), times=times)
        assert flow_floor(torch.zeros(2), times=times) < 1e-10


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_bins_of_times_make_the_whole(times):
    variances = torch.tensor([1e-6, 0.01, 1.0, 30.0])
    edges = [0, 0.1, 0.35, 0.8, 1]
    normal_of = torch.distributions.Normal(0, 1)
    at = torch.tensor(edges, dtype=torch.float64)
    shares = (at if times == "uniform" else normal_of.cdf(at.logit())).diff().tolist()
    bins = [
        flow_floor(variances, times=times, low=a, high=b)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    whole = sum(share * floor for share, floor in zip(shares, bins, strict=True))
    assert whole == pytest.approx(flow_floor(variances, times=times), rel=1e-6)


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
@pytest.mark.parametrize("variance", [0.04, 1.0, 9.0])
def test_no_fit_to_drawn_flows_does_better_than_the_floor(times, variance):
    """The best line through (x_t, target) is the best guess there is: both are Gaussian."""
    low, high, num_times = 0.25, 0.7, 40
    part = (torch.arange(num_times, dtype=torch.float64) + 0.5) / num_times
    if times == "uniform":
        t = low + (high - low) * part
    else:
        unit = torch.distributions.Normal(0, 1)
        ends = unit.cdf(torch.tensor([low, high], dtype=torch.float64).logit())
        t = unit.icdf(ends[0] + (ends[1] - ends[0]) * part).sigmoid()
    z = normal(num_times, 20_000) * variance**0.5
    e = normal(num_times, 20_000, seed=1)
    x, target = t[:, None] * z + (1 - t[:, None]) * e, z - e
    slope = (x * target).sum(1) / x.square().sum(1)
    error = (target - slope[:, None] * x).square().mean().item()
    floor = flow_floor(torch.tensor([variance]), times=times, low=low, high=high)
    assert error == pytest.approx(floor, rel=0.01)


def test_bounds_of_times():
    for low, high in ((0.5, 0.5), (-0.1, 1), (0.2, 1.1)):
        with pytest.raises(ValueError, match="no part"):
            flow_floor(torch.ones(1), low=low, high=high)
