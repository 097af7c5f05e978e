"""Published sizes, any image size, gradients, and the one path of coding and decoding."""

from dataclasses import replace

import pytest
import torch

from imgtool.models.hpcm.entropy import quantise
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.partition import coarser, gather
from imgtool.models.hpcm.steps import steps
from imgtool.models.hpcm.variants import VARIANTS
from imgtool.nn.cost import count_macs, count_parameters

TINY = VARIANTS["HPCM_Tiny"]
# As Base, but quick: every kind of step, window and block.
SMALL_BASE = replace(
    VARIANTS["HPCM_Base"],
    widths=(8, 8, 16),
    depths=(1, 1, 1),
    M=16,
    N=8,
    hyper_depth=1,
    coarse_depths=(1, 1),
    fine_depths=(1, 1),
    num_heads=4,
)
CODECS = [TINY, SMALL_BASE, replace(SMALL_BASE, windows=None)]


def lively(variant, seed=0, **options):
    """A codec whose latents, scales and means are far from zero."""
    torch.manual_seed(seed)
    codec = HPCM(variant, **options)
    with torch.no_grad():
        codec.g_a[-1].weight *= 80
        codec.h_a[-1].weight *= 80
        codec.h_s[-1].reduce.bias += 1
        for net in (codec.context.coarse, codec.context.fine):
            net.after[-1].bias += 0.7
        codec.means_hyper.uniform_(-1, 1)
        codec.scales_hyper.uniform_(0.05, 3)
        for factors in codec.context.factors:
            factors.uniform_(0.5, 1.5)
    return codec


def uniform(like, purpose):
    generator = torch.Generator().manual_seed(len(purpose) + ord(purpose[0]))
    return torch.rand(like.shape, generator=generator) - 0.5


@pytest.mark.parametrize(
    ("name", "parameters", "kmacs"),
    [
        ("HPCM_Base", 68_505_299, 918.56),
        ("HPCM_Large", 89_718_803, 1261.32),
        ("HPCM_PhiContext", 63_582_419, 872.79),
    ],
)
def test_published_sizes(name, parameters, kmacs):
    variant = VARIANTS[name]
    with torch.device("meta"):
        codec = HPCM(variant)
    assert count_parameters(codec) == parameters
    per_pixel = count_macs(codec, (256, 256)) / 256**2 / 1000
    if variant.windows:
        # The published code attends once more after the last step, to no avail; we do not.
        grid = torch.empty(1, 2 * variant.M, 16, 16, device="meta")
        per_pixel += (
            count_macs(lambda _: codec.context.attention[2](grid, grid), (1, 1)) / 256**2 / 1000
        )
    assert per_pixel == pytest.approx(kmacs, abs=0.006)


def test_published_parts():
    with torch.device("meta"):
        codec = HPCM(VARIANTS["HPCM_Base"])
    context = codec.context
    parts = [codec.g_a, codec.g_s, codec.h_a, codec.h_s, context.adaptors, context.coarse]
    parts += [context.fine, *context.attention, context.finer, context.factors]
    counts = [count_parameters(part) for part in parts]
    assert counts[:4] == [6_716_336, 6_716_019, 3_156_304, 6_116_448]
    assert counts[4:7] == [922_560 + 2_767_680 + 5_535_360, 11_711_680, 19_109_440]
    assert counts[7:] == [1_640_960] * 3 + [820_480, 9_600]


@pytest.mark.parametrize("name", ["HPCM_Small", "HPCM_Tiny"])
def test_small_variants_fit_their_partition(name):
    variant = VARIANTS[name]
    assert variant.M % 16 == 0
    assert 2 * variant.M % variant.num_heads == 0
    assert [step.scale for step in steps(variant)] == [1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("variant", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (65, 200), (192, 320)])
@torch.no_grad()
def test_any_size(variant, size):
    codec = lively(variant)
    x = torch.rand(1, 3, *size)
    out = codec(x)
    h, w = (-(-side // 64) for side in size)
    assert out.x_hat.shape == x.shape
    assert out.likelihood_y.shape == out.y_hat.shape == (1, variant.M, 4 * h, 4 * w)
    assert out.likelihood_z.shape == (1, variant.N, h, w)
    for p in (out.likelihood_y, out.likelihood_z):
        assert 1e-9 <= p.min() <= p.max() <= 1
    assert [latent.shape[2:] for latent in out.latents] == [
        (h, w),
        (2 * h, 2 * w),
        (4 * h, 4 * w),
    ]


@torch.no_grad()
def test_latents_are_what_is_new_at_each_scale():
    out = lively(TINY)(torch.rand(1, 3, 128, 64))
    zeros = [(latent == 0).float().mean().item() for latent in out.latents]
    assert zeros[0] < 0.2
    assert zeros[1] == pytest.approx(0.25, abs=0.1)
    assert zeros[2] == pytest.approx(0.25, abs=0.1)
    total = sum(latent.double().square().sum() for latent in out.latents)
    torch.testing.assert_close(total, out.y_hat.double().square().sum())


@pytest.mark.parametrize("variant", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (64, 192), (130, 70)])
@torch.no_grad()
def test_decoding_walks_as_encoding_did(variant, size):
    codec = lively(variant).eval().to(memory_format=torch.channels_last)
    y, z = codec.analyse(torch.rand(1, 3, *size).to(memory_format=torch.channels_last))
    z_hat = quantise(z, codec.means_hyper)
    s2 = coarser(y, 3)
    of_scale = {1: coarser(s2, 2), 2: s2, 3: y}
    symbols, seen = [], []

    def encode(number, step, scales, means):
        assert scales.shape == means.shape
        assert scales.min() >= 0.12
        seen.append((scales, means))
        symbols.append((gather(of_scale[step.scale], step) - means).round())
        return symbols[-1] + means

    def decode(number, step, scales, means):
        assert torch.equal(scales, seen[number - 1][0])
        assert torch.equal(means, seen[number - 1][1])
        return symbols[number - 1] + means

    y_hat = codec.walk(z_hat, encode)
    # A decoder builds z_hat and the symbols anew, in the plain order of their elements.
    anew = torch.tensor(z_hat.tolist())
    symbols = [torch.tensor(part.tolist()) for part in symbols]
    found = codec.walk(anew, decode)
    assert torch.equal(found, y_hat)
    assert torch.equal(codec.synthesise(found), codec.synthesise(y_hat))
    assert sum(part.numel() for part in symbols) == y.numel()
    assert torch.cat([part.flatten() for part in symbols]).unique().numel() > 5
    # Every latent is within half a step of its value, whichever step coded it.
    assert (y_hat - y).abs().max() <= 0.5001


@torch.no_grad()
def test_forward_codes_what_the_walk_codes():
    codec = lively(SMALL_BASE)
    x = torch.rand(1, 3, 100, 140)
    y, z = codec.analyse(x)
    s2 = coarser(y, 3)
    of_scale = {1: coarser(s2, 2), 2: s2, 3: y}

    def code(number, step, scales, means):
        return quantise(gather(of_scale[step.scale], step), means)

    y_hat = codec.walk(quantise(z, codec.means_hyper), code)
    out = codec(x)
    assert torch.equal(out.y_hat, y_hat)
    assert torch.equal(out.x_hat, codec.synthesise(y_hat)[:, :, :100, :140])


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    codec = lively(SMALL_BASE).double()
    x = torch.rand(3, 3, 64, 128, dtype=torch.float64)
    whole = codec(x)
    torch.testing.assert_close(whole.likelihood_y[1:2], codec(x[1:2]).likelihood_y)


@pytest.mark.parametrize("variant", CODECS[:2])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_distortion_reaches_the_transforms_alone(variant, legacy):
    """The means cancel under straight-through rounding: section 1.9 of the reference."""
    codec = lively(variant, legacy_s2_hyper=legacy)
    x = torch.rand(2, 3, 64, 64)
    (codec(x, uniform).x_hat - x).square().mean().backward()
    for name, parameter in codec.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == name.startswith(("g_a.", "g_s.")), name


@pytest.mark.parametrize("variant", CODECS)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_rate_trains_everything_but_the_decoder(variant, legacy):
    codec = lively(variant, legacy_s2_hyper=legacy)
    out = codec(torch.rand(2, 3, 128, 128), uniform)
    (-out.likelihood_y.log2().sum() - out.likelihood_z.log2().sum()).backward()
    for name, parameter in codec.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved != name.startswith("g_s."), name
        assert not moved or torch.isfinite(parameter.grad).all(), name


@torch.no_grad()
def test_noise_changes_the_rate_and_not_the_picture():
    codec = lively(TINY)
    x = torch.rand(1, 3, 64, 64)
    training, evaluation = codec(x, uniform), codec(x)
    assert torch.equal(training.x_hat, evaluation.x_hat)
    assert torch.equal(training.y_hat, evaluation.y_hat)
    assert not torch.equal(training.likelihood_y, evaluation.likelihood_y)
    assert not torch.equal(training.likelihood_z, evaluation.likelihood_z)


@torch.no_grad()
def test_memory_formats_agree():
    codec = lively(SMALL_BASE).double()
    x = torch.rand(2, 3, 128, 192, dtype=torch.float64)
    plain = codec(x)
    codec, x = codec.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    nhwc = codec(x)
    for one, other in zip(plain, nhwc, strict=True):
        torch.testing.assert_close(one, other)
    assert nhwc.y_hat.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_leaves_the_rates_alone():
    codec = lively(TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = codec(torch.rand(1, 3, 64, 64), uniform)
    assert {tensor.dtype for tensor in out} == {torch.float32}


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    torch.compiler.reset()
    codec = lively(TINY).to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, 100, 64).to(memory_format=torch.channels_last)
    y, z = codec.analyse(x)
    noises = {"y": uniform(y, "y"), "z": uniform(z, "z")}

    def drawn(like, purpose):
        return noises[purpose]

    compiled = torch.compile(codec, fullgraph=True, backend="eager")
    out, expected = compiled(x, drawn), codec(x, drawn)
    for one, other in zip(out, expected, strict=True):
        torch.testing.assert_close(one, other)
    out.x_hat.square().mean().backward()
    assert codec.g_a[0].weight.grad.any()
