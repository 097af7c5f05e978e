"""Phase 2: the Haar transform, the distances, and what trains what."""

from __future__ import annotations

import pytest
import torch

from imgtool.models.hpcm.interscale import InterScale, cosine, haar, l1, l2, new_at
from imgtool.models.hpcm.interscale import unpredictability as bounded
from imgtool.models.hpcm.schema import Loss

M = 16
MODES = ["l2", "l1", "cosine", "bounded"]


def some_latents(seed=0, *, size=(2, 3), gain=1.0):
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, M, scale * size[0], scale * size[1]) for scale in (1, 2, 4)]
    whole = [gain * torch.randn(shape, generator=random) for shape in shapes]
    return [(z * new_at(i, z)).requires_grad_() for i, z in enumerate(whole, start=1)]


def test_haar_has_four_orthonormal_bands():
    """All of the energy and both diagonals, not a mean of 2x2 (B15)."""
    x = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    bands = haar(x)
    assert bands.shape == (2, 20, 3, 4)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    ones = haar(torch.ones(1, 1, 2, 2))
    assert ones.flatten().tolist() == [2, 0, 0, 0]
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    assert haar(left).flatten().tolist() == [1, 1, 0, 0]
    top = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, None]
    assert haar(top).flatten().tolist() == [1, 0, 1, 0]
    basis = haar(torch.eye(4).view(4, 1, 2, 2)).view(4, 4)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4))


def test_new_latents_are_three_quarters_of_a_grid():
    like = torch.zeros(2, M, 4, 6)
    assert new_at(1, like).eq(1).all()
    for scale in (2, 3):
        new = new_at(scale, like)
        assert new.shape == (1, M, 4, 6)
        assert (new.sum((2, 3)) == 18).all()


def test_distances_by_hand():
    z = torch.zeros(1, 2, 1, 2)
    predicted = torch.tensor([3.0, 1.0, 0.0, 2.0]).view(1, 2, 1, 2)
    new = torch.tensor([1.0, 1.0, 0.0, 1.0]).view(1, 2, 1, 2)
    assert l2(z, predicted, new).item() == pytest.approx((9 + 1 + 4) / 3)
    assert l1(z, predicted, new).item() == pytest.approx(2)
    a, b = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    ones = torch.ones(1, 4, 3, 3)
    assert cosine(a, 2 * a, ones).item() == pytest.approx(0, abs=1e-6)
    assert cosine(a, -a, ones).item() == pytest.approx(2)
    assert bounded(a, a, ones).item() == pytest.approx(0, abs=1e-6)
    mean = a.mean((0, 2, 3), keepdim=True).expand_as(a)
    assert bounded(a, mean, ones).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(bounded(9 * a, 9 * b, ones), bounded(a, b, ones), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_each_side_has_the_gradient_of_its_own_aim(mode):
    scales = some_latents(gain=0.3)
    interscale = InterScale(M, Loss(phase2_mode=mode, phase2_limit=50.0))
    regulariser, error, _ = interscale(scales)
    weights = list(interscale.parameters())
    assert len(weights) == 4
    to_latents = torch.autograd.grad(regulariser, scales, retain_graph=True, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in to_latents) or mode == "bounded"
    assert torch.autograd.grad(regulariser, weights, retain_graph=True, allow_unused=True) == (
        None,
        None,
        None,
        None,
    )
    with torch.no_grad():
        before = error.item()
    gradients = torch.autograd.grad(error, weights, retain_graph=True)
    assert all(g.abs().max() > 0 for g in gradients)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 1e-2 * gradient
    assert interscale(scales)[1] < before  # a step of descent predicts better
    with pytest.raises(RuntimeError):  # detached: no path from the error to the encoder
        torch.autograd.grad(error, scales)


@pytest.mark.parametrize("mode", MODES)
def test_the_predictors_learn_what_can_be_predicted(mode):
    """Their error falls under the engine's optimizer; it was never in one before (B2)."""
    fine = some_latents(1)
    s2 = haar(fine[2].detach())[:, :M] * new_at(2, fine[1])
    scales = [haar(s2)[:, :M], s2, fine[2].detach()]
    torch.manual_seed(0)
    interscale = InterScale(M, Loss(phase2_mode=mode))
    optimizer = torch.optim.Adam(interscale.parameters(), lr=3e-2)
    errors = []
    for _ in range(60):
        error = interscale(scales)[1]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("mode", MODES)
def test_neither_side_can_run_away(mode):
    """With predictors that maximise, or latents without a limit, this reached -2e4 (B3, B4)."""
    torch.manual_seed(0)
    loss = Loss(phase2_mode=mode)
    interscale = InterScale(M, loss)
    scales = some_latents(2)
    optimizer = torch.optim.Adam([*interscale.parameters(), *scales], lr=3e-2)
    for _ in range(120):
        regulariser, error, _ = interscale(scales)
        assert -loss.delta * interscale.limit - 1e-6 <= regulariser.item() <= 0
        optimizer.zero_grad()
        (regulariser + error).backward()
        optimizer.step()
    assert max(z.abs().max().item() for z in scales) < 20
    assert max(p.abs().max().item() for p in interscale.parameters()) < 20


def test_beyond_the_limit_nothing_is_pushed():
    scales = some_latents(gain=30.0)
    regulariser, _, clipped = InterScale(M, Loss(phase2_limit=1.0))(scales)
    assert regulariser.item() == pytest.approx(-0.1)
    assert clipped.item() == 1
    gradients = torch.autograd.grad(regulariser, scales, allow_unused=True)
    assert all(g is None or g.abs().max() == 0 for g in gradients)


def test_delta_is_the_weight():
    torch.manual_seed(0)
    scales = some_latents(gain=0.1)
    interscale = InterScale(M, Loss(delta=0.1))
    one, _, clipped = interscale(scales)
    assert clipped.item() == 0
    interscale.delta = 0.15
    torch.testing.assert_close(interscale(scales)[0], 1.5 * one)


def test_wrong_shapes_are_errors():
    """And not a warning and a loss of zero (B6)."""
    scales = some_latents()
    with pytest.raises((RuntimeError, ValueError)):
        InterScale(M, Loss())([scales[0], scales[1][..., :2], scales[2]])
    with pytest.raises((RuntimeError, ValueError)):
        InterScale(2 * M, Loss())(scales)
