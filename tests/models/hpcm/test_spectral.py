"""Phase 1: the transform, the mask, and when what is truncated."""

from __future__ import annotations

import math

import pytest
import torch

from imgtool.models.base import Noise
from imgtool.models.hpcm.schema import Loss
from imgtool.models.hpcm.spectral import (
    MAX_SIZES,
    Basis,
    Curriculum,
    Moment,
    Truncate,
    Truncation,
    cone,
)
from imgtool.nn.spectra import dct_basis

CPU = torch.device("cpu")


def at(iteration, epoch=0.0):
    return {"noise": Noise(0, iteration), "epoch": epoch}


def test_the_transform_is_scipys_orthonormal_dct():
    from scipy.fft import dctn

    x = torch.rand(2, 3, 24, 17, generator=torch.Generator().manual_seed(0))
    found = Basis(24, 17, CPU).dct(x)
    wanted = torch.tensor(dctn(x.double().numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_the_basis_is_built_in_float64():
    """Built in float32 its arguments would cost a digit and a half (B8)."""
    size = 256
    x = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    basis = Basis(size, size, CPU)
    assert (basis.inverse(basis.dct(x)) - x).abs().max() < 5e-6
    k, n = torch.arange(size)[:, None].float(), torch.arange(size)[None].float()
    rough = torch.cos(math.pi / (2 * size) * k * (2 * n + 1)) * math.sqrt(2 / size)
    rough[0] = math.sqrt(1 / size)
    assert (rough.T @ (rough @ x @ rough.T) @ rough - x).abs().max() > 1e-5
    exact = dct_basis(size).float().double()
    assert (exact @ exact.T - torch.eye(size)).abs().max() < 1e-6


def test_only_the_mean_passes_the_cone_whole():
    radius = Basis(64, 64, CPU).radius
    for tau in (0.05, 0.25, 1.0):
        mask = cone(radius, tau)
        assert mask[0, 0] == 1
        assert (mask == 1).sum() == 1
        assert not mask[radius >= tau].any()
        near = radius < tau
        torch.testing.assert_close(mask[near], 1 - radius[near] / tau)


@pytest.mark.parametrize(("tau", "gain"), [(0.05, 0.0008), (0.25, 0.017), (0.5, 0.066), (1, 0.264)])
def test_the_mean_gain_is_the_references(tau, gain):
    found = cone(Basis(256, 256, CPU).radius, tau).mean().item()
    assert found == pytest.approx(gain, rel=0.06)


def test_no_bandwidth_is_the_mean_alone():
    x = torch.rand(1, 3, 16, 16)
    flat = Truncate()(x, Truncation(0.0, 1.0))
    torch.testing.assert_close(flat, x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-5, rtol=0)


def test_a_truncated_image_stays_within_its_range():
    """An edge overshoots where frequencies are cut off (B10)."""
    x = torch.zeros(1, 3, 32, 32)
    x[..., 16:] = 1
    x[..., 17, 17] = 0
    basis = Basis(32, 32, CPU)
    assert basis.inverse(basis.dct(x) * (basis.radius < 0.4)).max() > 1
    seen = Truncate()(x, Truncation(1.0, 1.0))
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not seen.requires_grad


def test_bases_are_made_once_for_a_size_and_few_are_kept():
    """Neither rebuilt for every batch nor kept for ever (B9)."""
    truncate = Truncate()
    first = truncate.basis(16, 24, CPU)
    truncate(torch.rand(1, 3, 16, 24), Truncation(0.1, 1.0))
    truncate(torch.rand(1, 3, 16, 24), Truncation(0.2, 1.0))
    assert truncate.basis(16, 24, CPU) is first
    for side in range(8, 8 + MAX_SIZES):
        truncate.basis(side, side, CPU)
    assert len(truncate.bases) == MAX_SIZES
    assert truncate.basis(16, 24, CPU) is not first


def test_bases_follow_the_module_and_stay_out_of_checkpoints():
    """Buffers, not tensors on a fixed device (B7)."""
    truncate = Truncate()
    truncate(torch.rand(1, 3, 16, 16), Truncation(0.5, 1.0))
    assert not truncate.state_dict()
    assert {b.device.type for b in truncate.to("meta").buffers()} == {"meta"}


def test_half_precision_does_not_reach_the_transform():
    x = torch.rand(1, 3, 64, 64)
    exact = Truncate()(x, Truncation(0.5, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Truncate()(x, Truncation(0.5, 1.0)), exact)


def test_tau_rises_linearly_in_epochs_and_jumps_off():
    curriculum = Curriculum(Loss(spectral_reg=True, truncation_epochs=100))
    assert curriculum.at(at(0, 0.0)) == Truncation(0.05, 1.0)
    half = curriculum.at(at(7, 50.0))
    assert (half.tau, half.share) == (pytest.approx(0.525), 1.0)
    assert curriculum.at(at(9, 99.999)).tau == pytest.approx(1, abs=1e-4)
    assert curriculum.at(at(9, 100.0)) == Truncation(1.0, 0.0)


def test_a_short_run_leaves_phase_1_by_iterations():
    """Epochs alone would never come (B11)."""
    curriculum = Curriculum(Loss(spectral_reg=True, truncation_iterations=10))
    taus = [curriculum.at({"noise": Noise(0, i)}).tau for i in range(12)]
    assert taus[0] == 0.05
    assert taus[5] == pytest.approx(0.525)
    assert taus[10:] == [1, 1]
    assert curriculum.at({"noise": Noise(0, 10)}).share == 0


def test_a_smooth_release_fades_into_the_whole_image():
    loss = Loss(spectral_reg=True, truncation_iterations=10, release="smooth", tau_final=0.5)
    curriculum = Curriculum(loss)
    found = [curriculum.at(at(i)) for i in (9, 10, 15, 19, 20)]
    assert [t.share for t in found] == pytest.approx([1, 1, 0.5, 0.1, 0])
    assert [t.tau for t in found[1:4]] == [0.5, 0.5, 0.5]
    x = torch.rand(1, 3, 16, 16)
    images = [Truncate()(x, truncation) for truncation in found]
    torch.testing.assert_close(images[2], (images[1] + x) / 2)
    assert images[-1] is x


def test_without_the_phase_nothing_is_truncated():
    assert Curriculum(Loss()).at(at(0)) == Truncation(1.0, 0.0)
    assert Moment(0).progress(at(0)) == math.inf
    assert Moment(5, 0).progress(at(0)) == math.inf
    assert Curriculum(Loss(spectral_reg=True, truncation_epochs=0)).at(at(0)).share == 0
