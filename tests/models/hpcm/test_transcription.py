"""The network against a transcription of the published code, and that against the description."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from imgtool.models.hpcm.entropy import SCALE_TABLE, likelihood, table_index
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.partition import coarser, gather, merge
from imgtool.models.hpcm.steps import steps
from imgtool.models.hpcm.variants import VARIANTS

SMALL = {"widths": (8, 8, 12), "depths": (1, 1, 2), "M": 16, "N": 8, "num_heads": 4}
GROUP_0 = """
1 8 5 9 2 8 5 9
10 6 11 7 10 6 11 7
4 9 3 8 4 9 3 8
11 7 10 6 11 7 10 6
2 8 5 9 1 8 5 9
10 6 11 7 10 6 11 7
4 9 3 8 4 9 3 8
11 7 10 6 11 7 10 6"""
GROUP_7 = """
7 11 6 10 7 11 6 10
3 9 4 8 3 9 4 8
6 10 7 11 6 10 7 11
5 8 2 9 5 8 1 9
7 11 6 10 7 11 6 10
3 9 4 8 3 9 4 8
6 10 7 11 6 10 7 11
5 8 1 9 5 8 2 9"""


def load_transcription():
    """It lies beside this file, where there is no package."""
    path = Path(__file__).with_name("transcription.py")
    spec = importlib.util.spec_from_file_location("hpcm_transcription", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


T = load_transcription()


# The transcription itself --------------------------------------------------------------------


def test_step_map():
    channels, height, width = 8, 8, 8
    on_s2 = T.phase_mask(T.S2_PHASES, 2, channels, height, width)
    on_s1 = T.phase_mask(T.S1_PHASES, 2, channels, height // 2, width // 2)
    found = torch.zeros(1, channels, height, width)
    for number, mask in enumerate(T.s1_steps(channels, height // 4, width // 4), start=1):
        found += T.scatter(T.scatter((mask * float(number))[None], on_s1), on_s2)
    for number, mask in enumerate(T.s2_steps(channels, height // 2, width // 2), start=3):
        found += T.scatter((mask * float(number))[None], on_s2)
    for number, mask in enumerate(T.s3_steps(channels, height, width), start=6):
        found += mask * number
    for group, written in ((0, GROUP_0), (7, GROUP_7)):
        expected = [[float(n) for n in line.split()] for line in written.split("\n")[1:]]
        assert found[0, group].tolist() == expected


@pytest.mark.parametrize(
    ("grid", "share", "mean_shift", "max_shift", "by_group"),
    [
        ((16, 16), 0.479, 2.7, 8, (1, 1, 0.67, 0.67, 0.17, 0.17, 0.08, 0.08)),
        ((32, 48), 0.438, 8.0, 24, (1, 1, 0.67, 0.67, 0.06, 0.06, 0.03, 0.03)),
        ((80, 80), 0.429, 13.3, 40, (1, 1, 0.67, 0.67, 0.03, 0.03, 0.02, 0.02)),
        ((128, 192), 0.422, 32, 96, (1, 1, 0.67, 0.67, 0.014, 0.014, 0.007, 0.007)),
    ],
)
def test_what_the_published_code_misplaces(grid, share, mean_shift, max_shift, by_group):
    height, width = grid
    numbers = torch.arange(1.0, 1 + height * width).view(1, 1, height, width).expand(1, 8, -1, -1)
    right, wrong = T.s2_hyper(numbers, False), T.s2_hyper(numbers, True)
    coded = right != 0
    assert torch.equal(wrong != 0, coded)
    same = (wrong == right) & coded
    shift = ((wrong - 1) % width - (right - 1) % width).abs()[coded]
    assert same.sum().item() / coded.sum().item() == pytest.approx(share, abs=6e-4)
    assert shift.mean().item() == pytest.approx(mean_shift, abs=0.05)
    assert shift.max().item() == max_shift
    for group, expected in enumerate(by_group):
        found = same[:, group].sum().item() / coded[:, group].sum().item()
        assert found == pytest.approx(expected, abs=5e-3)


def test_partition_by_masks_and_by_slices():
    """What the benchmark times does the same on both sides."""
    y = torch.randn(2, 16, 16, 24)
    written, again = T.Partition()(y)
    assert torch.equal(again, y)
    s2 = coarser(y, 3)
    grids = {1: coarser(s2, 2), 2: s2, 3: y}
    found = steps(VARIANTS["HPCM_Base"])
    packed = [gather(grids[step.scale], step) for step in found]
    for one, other in zip(packed, written, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(merge(packed, found), y)


def test_index_by_broadcasting():
    alpha = torch.rand(5000).mul(8).exp().mul(0.05)
    table = torch.tensor(SCALE_TABLE)
    assert torch.equal(table_index(alpha).long(), T.search_by_broadcasting(alpha, table))


# The network against it ----------------------------------------------------------------------


def both(name, *, legacy=False, seed=0, **changes):
    """Our network in float64 with weights that matter, and the transcription of it."""
    variant = replace(VARIANTS[name], **{**SMALL, **changes})
    torch.manual_seed(seed)
    ours = HPCM(variant, legacy_s2_hyper=legacy).double()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if "factors" in key or "_hyper" in key:
                parameter.uniform_(0.5, 1.5)
        ours.g_a[-1].weight *= 60  # else every latent is rounded to zero
        ours.h_a[-1].weight *= 60
        ours.h_s[-1].reduce.bias[: variant.M] += 2  # scales above their bound, here and there
    theirs = T.Reference(
        T.weights_of(dict(ours.named_parameters())),
        legacy=legacy,
        window_sides=variant.windows,
        heads=variant.num_heads,
        merged=6 // variant.s3_steps,
    )
    return ours, theirs


CASES = [
    ("HPCM_Base", False),
    ("HPCM_Base", True),
    ("HPCM_Large", True),
    ("HPCM_PhiContext", True),
    ("HPCM_Tiny", False),
]


@pytest.mark.parametrize(("name", "legacy"), CASES)
def test_outputs(name, legacy):
    ours, theirs = both(name, legacy=legacy)
    x = torch.rand(2, 3, 256, 512, dtype=torch.float64)
    with torch.no_grad():
        found, expected = ours(x), theirs.forward(x)
    for key in ("likelihood_y", "likelihood_z", "y_hat", "x_hat"):
        assert_close(getattr(found, key), expected[key], rtol=0, atol=1e-5)
    for one, other in zip(found.latents, expected["latents"], strict=True):
        assert_close(one, other, rtol=0, atol=1e-5)
    assert found.y_hat.round().unique().numel() > 5
    assert found.likelihood_y.unique().numel() > 1000


def test_the_flag_matters():
    """Else the parity of both would say nothing about the misplacement."""
    aligned, _ = both("HPCM_Base")
    legacy, _ = both("HPCM_Base", legacy=True)
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        one, other = aligned(x), legacy(x)
    assert torch.equal(one.latents[0], other.latents[0])
    assert not torch.allclose(one.likelihood_y, other.likelihood_y, atol=1e-3)


@pytest.mark.parametrize("legacy", [False, True])
def test_gradients(legacy):
    """One training step: additive noise in the rate, rounded values in the decoder."""
    ours, theirs = both("HPCM_Base", legacy=legacy)
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    drawn = {}

    def noise(like, purpose="y"):
        if like.shape not in drawn:
            drawn[like.shape] = torch.rand_like(like) - 0.5
        return drawn[like.shape]

    def loss_of(x_hat, likelihoods):
        bits = -sum(p.log2().sum() for p in likelihoods) / x[0, 0].numel()
        return 0.013 * 255**2 * (x_hat - x).square().mean() + bits

    parameters = dict(ours.named_parameters())
    found = ours(x, noise)
    expected = theirs.forward(x, noise)
    losses = [
        loss_of(found.x_hat, (found.likelihood_y, found.likelihood_z)),
        loss_of(expected["x_hat"], (expected["likelihood_y"], expected["likelihood_z"])),
    ]
    assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
    gradients = [
        torch.autograd.grad(loss, parameters.values(), allow_unused=True) for loss in losses
    ]
    compared = 0
    for name, one, other in zip(parameters, *gradients, strict=True):
        if one is None or other is None:  # the last attention, which nothing reads
            assert all(g is None or not g.any() for g in (one, other)), name
            continue
        assert_close(one, other, rtol=1e-6, atol=1e-7 * other.abs().max().item() + 1e-13)
        compared += 1
    assert compared > 150


def test_likelihoods_of_one_symbol():
    """The published formula, in float64, where its subtraction still has digits."""
    value = torch.linspace(-6, 6, 97, dtype=torch.float64)
    for scale in (0.12, 0.7, 3.0, 20.0):
        scales = torch.full_like(value, scale)
        assert_close(
            likelihood(value, scales).clamp(min=1e-9), T.likelihood(value, scales),
            rtol=0, atol=1e-12,
        )  # fmt: skip
