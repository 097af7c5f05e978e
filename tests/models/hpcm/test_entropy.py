"""The generalised Gaussian against scipy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from imgtool.models.hpcm.entropy import (
    BETA,
    SCALE_TABLE,
    likelihood,
    lower_bound,
    quantise,
    ste_round,
    table_index,
)


def exact(residual, alpha):
    """p, both edges of the bin on the side where tails are small."""
    near = (np.abs(residual) - 0.5) / alpha
    far = (np.abs(residual) + 0.5) / alpha
    tail = special.gammaincc(1 / BETA, np.abs(near) ** BETA) / 2
    return np.where(near < 0, 1 - tail, tail) - special.gammaincc(1 / BETA, far**BETA) / 2


# Every scale with residuals over its bulk and tail, on both sides.
ALPHA, RESIDUAL = (
    grid.ravel() for grid in np.meshgrid(SCALE_TABLE, np.linspace(-8, 8, 65), indexing="ij")
)
RESIDUAL = np.round(RESIDUAL * np.maximum(ALPHA, 1) * 4) / 4


def test_double_precision_is_scipys():
    p = likelihood(torch.tensor(RESIDUAL), torch.tensor(ALPHA))
    np.testing.assert_allclose(p, exact(RESIDUAL, ALPHA), rtol=1e-9, atol=1e-300)
    gennorm = stats.gennorm(BETA, scale=ALPHA)
    np.testing.assert_allclose(
        p, gennorm.cdf(RESIDUAL + 0.5) - gennorm.cdf(RESIDUAL - 0.5), atol=1e-15
    )


def test_single_precision_is_accurate_in_the_tails():
    p = likelihood(torch.tensor(RESIDUAL).float(), torch.tensor(ALPHA).float()).double().numpy()
    truth = exact(RESIDUAL, ALPHA.astype(np.float32).astype(np.float64))
    seen = truth > 1e-12  # far below the bound of 1e-9
    assert (truth[seen] < 1e-8).sum() > 200
    np.testing.assert_allclose(p[seen], truth[seen], rtol=2e-4)


def test_far_out_it_is_zero_and_never_nan():
    residual = torch.tensor([1e4, -1e6, 1e9, 0.0])
    alpha = torch.tensor([0.12], requires_grad=True)
    p = likelihood(residual, alpha)
    lower_bound(p, 1e-9).log().sum().backward()
    assert p.tolist()[:3] == [0, 0, 0]
    assert p[3].item() == pytest.approx(0.99993, abs=1e-5)
    assert torch.isfinite(alpha.grad).all()


def test_the_masses_of_all_bins_add_up_to_one():
    residual = torch.arange(-700, 701, dtype=torch.float64)
    for alpha in (0.12, 1.0, 64.0):
        total = likelihood(residual, torch.tensor(alpha, dtype=torch.float64)).sum().item()
        assert total == pytest.approx(1, abs=1e-12)


def test_the_gradient_is_exact():
    residual = torch.tensor([-6.3, -0.5, -0.2, 0.0, 0.3, 0.7, 4.0], dtype=torch.float64)
    for alpha in (0.12, 0.7, 20.0):
        inputs = residual.clone().requires_grad_(), torch.full((7,), alpha).double()
        inputs[1].requires_grad_()
        assert torch.autograd.gradcheck(likelihood, inputs)
        wide = torch.full((1, 1), alpha, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(likelihood, (residual.view(1, 7).requires_grad_(), wide))


def test_the_rates_gradient_in_the_tail():
    """Value 20 at scale 8: the subtraction of lower tails is wrong by an order here."""
    residual = torch.tensor(20.0, requires_grad=True)
    p = likelihood(residual, torch.tensor(8.0))
    p.log().neg().backward()
    step = 1e-5
    slope = -(np.log(exact(20 + step, 8)) - np.log(exact(20 - step, 8))) / (2 * step)
    assert residual.grad.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("x", "downstream", "expected"),
    [(0.5, 1.0, 1.0), (0.5, -1.0, -1.0), (0.05, 1.0, 0.0), (0.05, -1.0, -1.0), (0.12, 1.0, 1.0)],
)
def test_a_bound_lets_through_what_pushes_up(x, downstream, expected):
    value = torch.tensor(x, requires_grad=True)
    bounded = lower_bound(value, 0.12)
    (bounded * downstream).backward()
    assert bounded.item() == pytest.approx(max(x, 0.12))
    assert value.grad.item() == expected


def test_rounding_passes_gradients():
    y = torch.tensor([0.4, 1.6, -2.5], requires_grad=True)
    means = torch.tensor([0.25, -0.25, 0.0], requires_grad=True)
    (ste_round(y) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert y.grad.tolist() == [1, 2, 3]
    y_hat = quantise(y, means)
    assert torch.equal(y_hat, torch.round(y - means) + means)
    y_hat.sum().backward()
    assert y.grad.tolist() == [2, 3, 4]
    assert means.grad is None


def test_the_scale_table():
    assert len(SCALE_TABLE) == 60
    assert SCALE_TABLE[0] == 0.12
    assert SCALE_TABLE[-1] == pytest.approx(64, rel=1e-14)
    assert SCALE_TABLE[1] / SCALE_TABLE[0] == pytest.approx(1.1123, abs=1e-4)


@given(st.lists(st.floats(0.125, 1000, width=32), min_size=1, max_size=50))
def test_the_index_is_the_smallest_scale_that_is_large_enough(values):
    table = torch.tensor(SCALE_TABLE)
    alpha = torch.tensor([*values, *table.tolist()])
    expected = (alpha[:, None] > table[:-1]).sum(1)  # the published search
    found = table_index(alpha)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), expected)
