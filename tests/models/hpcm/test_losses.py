"""Rate and distortion by hand, and MS-SSIM against the library's."""

from __future__ import annotations

import pytest
import torch

from imgtool.models.hpcm.losses import bits, distortion, ms_ssim, num_levels, rate_distortion
from imgtool.models.hpcm.schema import Loss
from imgtool.nn import quality


def pair(height, width, noise=0.1, seed=0):
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 6, 6, generator=random)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (x + noise * torch.randn(x.shape, generator=random)).clamp(0, 1), x


def test_bits_are_the_sum_of_minus_log2():
    likelihood = torch.tensor([[0.5, 0.25], [1.0, 0.125]]).view(2, 2, 1, 1)
    assert bits(likelihood).tolist() == [3, 3]


def test_lambda_counts_on_grey_levels_or_on_ms_ssim():
    assert rate_distortion(Loss(lmbda=0.013), 0.001, 0.5) == pytest.approx(
        0.013 * 255**2 * 0.001 + 0.5
    )
    of_ms_ssim = Loss(lmbda=8.73, distortion="ms-ssim")
    assert rate_distortion(of_ms_ssim, 0.02, 0.5) == pytest.approx(8.73 * 0.02 + 0.5)


def test_mse_is_of_each_image_and_sees_what_lies_beyond_the_range():
    x = torch.zeros(2, 3, 4, 4)
    x_hat = x.clone()
    x_hat[1] = -0.5
    assert distortion(Loss(), x_hat, x).tolist() == [0, 0.25]


@pytest.mark.parametrize("size", [(161, 161), (176, 251)])
def test_ms_ssim_is_the_librarys_where_that_has_one(size):
    x_hat, x = pair(*size)
    torch.testing.assert_close(ms_ssim(x_hat, x), quality.ms_ssim(x_hat, x), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("side", "levels"), [(10, 0), (11, 1), (21, 2), (64, 3), (128, 4), (161, 5)]
)
def test_small_crops_have_fewer_scales(side, levels):
    assert num_levels(side, 300) == levels
    if levels:
        x_hat, x = pair(side, side + 3)
        assert ms_ssim(x, x).tolist() == pytest.approx([1, 1])
        assert (ms_ssim(x_hat, x) < 1).all()
    else:
        with pytest.raises(ValueError, match="no MS-SSIM"):
            ms_ssim(*pair(side, 300))


def test_the_gradient_of_a_grey_image_is_finite():
    """The library's is not a number where structure is anticorrelated."""
    _, x = pair(64, 64)
    for start in (torch.full_like(x, 0.5), 1 - x):
        x_hat = start.clone().requires_grad_()
        loss = distortion(Loss(distortion="ms-ssim"), x_hat, x).mean()
        (gradient,) = torch.autograd.grad(loss, x_hat)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
        assert 0 < loss < 1


def test_half_precision_does_not_reach_ms_ssim():
    x_hat, x = pair(64, 64)
    loss = Loss(distortion="ms-ssim")
    exact = distortion(loss, x_hat, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distortion(loss, x_hat, x), exact)
