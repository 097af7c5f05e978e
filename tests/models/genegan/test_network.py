"""Shapes, counts, and that every shortcut gives what separate calls give."""

import pytest
import torch
import torch.nn.functional as F

from imgtool.models.genegan.layers import At, BlockConv, SwitchableNorm
from imgtool.models.genegan.network import Critic, Joiner, Splitter
from imgtool.models.genegan.schema import Model
from imgtool.nn.cost import count_parameters

SIZES = (64, 96, 128)


def all_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_reference():
    with torch.device("meta"):
        parts = [Splitter(Model(), SIZES), Joiner(Model(), SIZES), *[Critic(Model(), SIZES)] * 2]
    counts = [all_parameters(part) for part in parts]
    assert counts == [5_912_064, 4_205_827, 6_837_761, 6_837_761]
    assert sum(counts) == 23_793_413


def test_what_no_size_reaches_is_not_trained():
    with torch.device("meta"):
        splitter, joiner = Splitter(Model(), SIZES), Joiner(Model(), SIZES)
    # At 64 px the fourth block of the splitter and the third of the joiner are passed over.
    assert all_parameters(splitter) - count_parameters(splitter) == 2 * 512
    assert all_parameters(joiner) - count_parameters(joiner) == 2 * 256


@pytest.mark.parametrize(("size", "side"), [(64, 16), (96, 12), (128, 16)])
def test_the_bottleneck_and_back(size, side):
    model = Model(base_channels=8)
    splitter, joiner = Splitter(model, SIZES), Joiner(model, SIZES)
    at = At(size)
    background, thing = splitter(torch.rand(2, 3, size, size) * 255, at)
    assert background.shape == (2, 24, side, side)
    assert thing.shape == (2, 8, side, side)
    face = joiner([background], [thing], [(0, 0)], at)[size]
    assert face.shape == (2, 3, size, size)
    assert 0 <= face.min() <= face.max() <= 255
    assert Critic(model, SIZES)(face, at).shape == (2,)


def test_the_joiners_shared_first_layer_is_that_of_separate_joins():
    model = Model(base_channels=8)
    joiner = Joiner(model, SIZES).double()
    a, b = torch.randn(2, 3, 24, 16, 16, dtype=torch.float64)
    x = torch.randn(3, 8, 16, 16, dtype=torch.float64)
    joiner.eval()
    pairs = [(0, 0), (1, None), (1, 0), (0, None)]
    together = joiner.logits([a, b], [x], pairs, At(64)).chunk(4)
    for made, (ground, thing) in zip(
        together, [(a, x), (b, 0 * x), (b, x), (a, 0 * x)], strict=True
    ):
        h = torch.cat([ground, thing], dim=1)
        for layer in joiner.layers[:2]:
            h = F.relu(layer.norm(layer.conv(h), At(64)))
        alone = joiner.to_rgb(h) + joiner.bias.view(3, 1, 1)
        torch.testing.assert_close(made, alone, rtol=1e-10, atol=1e-12)


def test_groups_are_normalised_as_separate_calls_are():
    norm, other = SwitchableNorm(4, SIZES, SIZES), SwitchableNorm(4, SIZES, SIZES)
    batches = [torch.randn(2, 4, 8, 8) * k for k in (1, 3, 5)]
    together = norm(torch.cat(batches), At(96, groups=3))
    apart = [other(batch, At(96)) for batch in batches]
    torch.testing.assert_close(together, torch.cat(apart))
    for mine, its in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, its)
    untouched = norm.norms["64"]
    assert torch.equal(untouched.running_mean, torch.zeros(4))


def test_statistics_stay_where_nobody_tracks_them():
    norm = SwitchableNorm(4, SIZES, SIZES)
    x = torch.randn(6, 4, 8, 8)
    quiet = norm(x, At(64, track=False))
    assert torch.equal(norm.norms["64"].running_var, torch.ones(4))
    torch.testing.assert_close(norm(x, At(64)), quiet)
    assert not torch.equal(norm.norms["64"].running_var, torch.ones(4))


@pytest.mark.parametrize(("side", "block"), [(16, 4), (12, 4), (12, 6)])
def test_block_convolution_is_one_convolution_a_block(side, block):
    grid = side // block
    layer = BlockConv(5, block, {64: side}, SwitchableNorm(5, (64,), (64,)))
    torch.nn.init.normal_(layer.weights[f"grid{grid}"])
    x = torch.randn(2, 5, side, side)
    done = layer.by_blocks(x)
    for i in range(grid):
        for j in range(grid):
            rows, cols = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            number = i * grid + j
            weight = layer.weights[f"grid{grid}"][number * 5 : (number + 1) * 5]
            alone = F.conv2d(x[:, :, rows, cols], weight, padding=1)
            torch.testing.assert_close(done[:, :, rows, cols], alone, rtol=1e-4, atol=1e-5)
    out = layer(x, At(64))
    expected = x + F.leaky_relu(F.batch_norm(done, None, None, training=True, eps=1e-3), 0.2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_sizes_with_equally_many_blocks_share_them():
    layer = BlockConv(2, 4, {64: 16, 96: 12, 128: 16}, SwitchableNorm(2, SIZES, SIZES))
    assert sorted(layer.weights) == ["grid3", "grid4"]
    assert layer.weights["grid4"].shape == (16 * 2, 2, 3, 3)
