"""The transformer and the way from noise to data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtool.models.base import Task
from imgtool.models.flow.network import FlowTransformer, sincos_positions, unpatchify
from imgtool.models.flow.sampling import fixed_normal, fixed_uniform, integrate
from imgtool.models.flow.schema import Model
from imgtool.nn.cost import count_macs, count_parameters

SMALL = Model(width=32, depth=2, heads=2)


def test_what_the_patches_are_cut_into_is_put_together_again() -> None:
    """Not square, through the network's own convolution as the identity of each patch."""
    net = FlowTransformer(Model(width=12, depth=1, heads=1), (3, 4, 6), 2)
    with torch.no_grad():
        net.embed.weight.copy_(torch.eye(12).view(12, 3, 2, 2))
    x = torch.randn(2, 3, 4, 6)
    tokens = net.embed(x).flatten(2).transpose(1, 2)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(unpatchify(tokens, 2, 4, 6), x)


def test_fresh_weights_say_nothing_whatever_they_are_told() -> None:
    net = FlowTransformer(SMALL, (4, 4, 6), 2, num_labels=3, num_mask_classes=2)
    label, mask = torch.tensor([0, 3]), torch.tensor([0, 255]).view(2, 1, 1).expand(2, 4, 6)
    out = net(torch.randn(2, 4, 4, 6), torch.rand(2), label, mask)
    assert out.shape == (2, 4, 4, 6)
    assert not out.any()


def _trained(net: FlowTransformer) -> FlowTransformer:
    """As if trained: nothing is zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def test_a_mask_is_told_where_it_is_and_an_ignored_pixel_is_not() -> None:
    net = _trained(FlowTransformer(SMALL, (4, 4, 4), 2, num_mask_classes=2))
    x, t = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    other = mask.clone()
    other[..., 3, 3] = 1
    ignored = torch.full_like(mask, 255)
    assert not torch.allclose(net(x, t, mask=mask), net(x, t, mask=other))
    torch.testing.assert_close(net(x, t, mask=ignored), net(x, t))


def test_positions_tell_every_place_of_a_grid_apart() -> None:
    positions = sincos_positions(3, 5, 16)
    assert positions.shape == (15, 16)
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1
    turned = sincos_positions(5, 3, 16).view(5, 3, 16).transpose(0, 1).flatten(0, 1)
    halves = torch.cat([turned[:, 8:], turned[:, :8]], 1)  # an axis has a half
    assert torch.equal(halves, positions)


def test_it_costs_what_the_formulas_say() -> None:
    """Parameters L(18 d^2 + 15 d) + 3 d^2, operations 12 L T d^2 + 2 L T^2 d; S at 256 tokens."""
    with torch.device("meta"):
        net = FlowTransformer(Model(), (4, 16, 16), 1)
        t = torch.zeros(1)
    assert count_parameters(net) == pytest.approx(32.5e6, rel=0.005)
    macs = count_macs(lambda x: net(x, t), (16, 16), channels=4)
    assert macs == pytest.approx(6.05e9, rel=0.01)


@pytest.mark.parametrize(
    ("tokens", "shape", "expected"),
    [(64, (8, 8), 1), (64, (16, 16), 2), (64, (32, 32), 4), (64, (4, 4), 1), (64, (8, 12), 2)],
)
def test_the_patch_follows_from_the_tokens(
    tokens: int, shape: tuple[int, int], expected: int
) -> None:
    assert Model(tokens=tokens).patch_of(*shape) == expected


def test_patches_that_do_not_cover_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not divide latents of 6 x 9: 1, 3 do"):
        Model(patch_size=2).patch_of(6, 9)
    with pytest.raises(ValueError, match="latents of 7 x 13 can be cut into 91"):
        Model(tokens=64).patch_of(7, 13)


@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"), [("euler", 200, 0.02), ("heun", 20, 5e-3)]
)
def test_the_exact_field_of_a_gaussian_gives_its_mean_and_deviation(
    solver: Any, steps: int, tolerance: float
) -> None:
    """For data N(m, s^2), E[z - e | x_t] is m + (t s^2 - (1 - t)) (x_t - t m) / var(x_t)."""
    mean, std = 1.5, 0.4

    def field(x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1)
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) * (x - t * mean) / variance

    noise = torch.linspace(-2, 2, 9).view(-1, 1)
    found = integrate(field, noise, steps, solver)
    torch.testing.assert_close(found, mean + std * noise, atol=tolerance, rtol=0)


def test_noise_of_an_index_depends_on_the_seed_alone() -> None:
    device = torch.device("cpu")
    whole = fixed_normal(0, "sample", range(6), (2, 3), device)
    part = fixed_normal(0, "sample", (4, 2), (2, 3), device)
    assert torch.equal(part, whole[[4, 2]])
    for other in (fixed_normal(1, "sample", range(6), (2, 3), device),
                  fixed_normal(0, "noise", range(6), (2, 3), device)):  # fmt: skip
        assert not torch.isclose(other, whole).any()
    many = fixed_normal(0, "sample", range(4000), (), device)
    assert (many.mean().abs() < 0.06, abs(many.std() - 1) < 0.04) == (True, True)
    times = fixed_uniform(0, "time", range(4000))
    assert abs(times.mean() - 0.5) < 0.02
    assert (times >= 0).all()
    assert (times <= 1).all()


def test_guidance_moves_from_what_is_known_of_all_to_what_is_known_of_one(
    build: Callable[..., Task], batch_of: Callable[..., Any]
) -> None:
    found = {}
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        task: Any = build("flow", **{"model.condition": "label", "output.guidance": weight,
                                     "output.num_steps": 1, "output.solver": "euler"})  # fmt: skip
        _trained(task.flow.transformer)
        task.modules.eval()
        found[weight] = task.generate(batch_of(task))
    assert not torch.allclose(found[0.0], found[1.0])
    torch.testing.assert_close(found[2.0], 2 * found[1.0] - found[0.0], atol=1e-4, rtol=1e-4)
