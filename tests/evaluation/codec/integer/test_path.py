"""The integer path: the same numbers by other arithmetic, and close to the float network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imgtool.errors import CheckpointError, DataError
from imgtool.evaluation.codec.codec import Codec, Facts
from imgtool.evaluation.codec.coding import Alphabet, Decoder
from imgtool.evaluation.codec.container import Container
from imgtool.evaluation.codec.integer.calibration import calibrate
from imgtool.evaluation.codec.integer.path import IntegerPath, Numbers, sizes
from imgtool.evaluation.codec.integer.products import CHOSEN
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.tables import Tables
from imgtool.models.hpcm.variants import Variant
from imgtool.nn.convolution import POINTWISE
from tests.evaluation.codec.integer.plain import FIXED, Plain
from tests.evaluation.codec.making import make_image, make_model, widen

SMALL = Variant(
    name="small", widths=(4, 8, 8), depths=(1, 1, 1), M=16, N=8, hyper_depth=1,
    coarse_depths=(1, 1), fine_depths=(1, 1), num_heads=2,
)  # fmt: skip
SIZE = (130, 70)  # 12 x 8 latents: windows of 8 are cut at the edge


def portable(model):
    numbers = Numbers.of(calibrate(model, [make_image(*SIZE, seed=3)]))
    path = IntegerPath(model, numbers)
    facts = Facts(None, "x", 0.013, "mse", 0, "00" * 8, True)
    codec = Codec(model, Tables.of(model), facts, torch.device("cpu"), integers=path)
    return codec, path, numbers


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = widen(HPCM(SMALL).eval())
    with torch.no_grad():
        for factor in model.context.factors:
            factor.uniform_(0.5, 2)
    return model, *portable(model)


def test_a_decoder_in_plain_integers_reads_the_same_latents(small):
    """numpy's int64 throughout, of a network with all eleven steps, attention and factors."""
    model, codec, path, numbers = small
    container = Container.unpack(codec.encode(make_image(*SIZE)).data)
    alphabet, plain = Alphabet(Tables.of(model)), Plain(model, numbers)
    rows, columns = 3, 2
    stream_z = Decoder(alphabet, container.z)
    z = stream_z.read(codec._tables_of_z(rows, columns)).astype(np.int64)
    z_hat = (z.reshape(-1, rows, columns) << FIXED) + plain.means_of_z()
    stream_y = Decoder(alphabet, container.y)
    seen = []

    def code(step, tables, means):
        found = stream_y.read(tables.ravel())
        seen.append((len(np.unique(tables)), int((found != 0).sum())))
        return found

    y_hat = plain.walk(z_hat, code)
    stream_y.finish()
    with torch.no_grad():
        ours = codec._latents(container, path)[0]
    assert np.array_equal(y_hat, (ours * 2**FIXED).long().numpy())
    assert len(seen) == 11
    assert all(tables > 1 and symbols > 0 for tables, symbols in seen)  # it was no easy task


def z_of(model):
    """z_hat of an image."""
    with torch.no_grad():
        _, z = model.analyse(make_image(*SIZE, seed=5)[None] / 255)
        return (z - model.means_hyper).round() + model.means_hyper


def walks(walker, z_hat, layout=torch.contiguous_format):
    """All scales and means, and y_hat, for residuals that are drawn."""
    source, found = np.random.default_rng(4), []

    def code(number, step, scales, means):
        found.extend((scales.clone(), means.clone()))
        drawn = torch.from_numpy(source.integers(-3, 4, means.shape)).to(means.dtype)
        return (drawn + means).contiguous(memory_format=layout)

    with torch.no_grad():
        z_hat = z_hat.contiguous(memory_format=layout)
        found.append(walker(z_hat, code))
    return [part.contiguous() for part in found]


def ways(walker, z_hat):
    """The same by different arithmetic: limbs, layouts, oneDNN on and off, kernels, threads."""
    device, threads = torch.device("cpu"), torch.get_num_threads()
    try:
        with CHOSEN.using("limbs"):
            yield walks(walker, z_hat)
        for num, mkldnn, kernel, layout in (
            (1, True, "convolution", torch.channels_last),
            (1, True, "convolution", torch.contiguous_format),
            (1, False, "convolution", torch.contiguous_format),
            (2, True, "convolution", torch.channels_last),
            (2, True, "product", torch.channels_last),
        ):
            torch.set_num_threads(num)
            with torch.backends.mkldnn.flags(enabled=mkldnn), POINTWISE.using(kernel, device):
                yield walks(walker, z_hat, layout)
    finally:
        torch.set_num_threads(threads)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:TF32")
def test_integers_are_the_same_by_any_arithmetic_and_floats_are_not(small):
    model, _, path, _ = small
    z_hat = z_of(model)
    first, *others = ways(path.walk, z_hat.double())
    assert all(equal(first, other) for other in others)
    first, *others = ways(model.walk, z_hat)
    assert not all(equal(first, other) for other in others)
    assert len(others) == 5


def test_integers_are_close_to_the_float_network(small):
    """A rounding of 16 bits here and there."""
    model, _, path, _ = small
    z_hat = z_of(model)
    exact, floats = walks(path.walk, z_hat.double()), walks(model.walk, z_hat)
    for ours, theirs in zip(exact, floats, strict=True):
        error, size = (ours - theirs).abs(), theirs.abs().mean()
        assert error.median() < 1e-3 * size
        assert error.mean() < 3e-2 * size  # of what is drawn, some lies beyond what was seen


@pytest.mark.filterwarnings("ignore:TF32")
def test_values_beyond_all_that_was_seen_saturate(small):
    """Both ends agree however far a picture is from those of the calibration."""
    _, codec, path, _ = small
    z_hat = torch.full((1, SMALL.N, 3, 2), 1e6, dtype=torch.float64)
    first, *others = ways(path.walk, z_hat)
    assert all(torch.isfinite(part).all() for part in first)
    assert all(equal(first, other) for other in others)
    wild = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, *SIZE)) * 255)
    encoded = codec.encode(wild.to(torch.uint8))
    decoded = codec.decode_checked(encoded.data)
    assert decoded.is_exact
    assert torch.equal(decoded.pixels, encoded.reconstruction)


def test_sums_that_need_not_be_exact_are_refused(small):
    _, _, _, numbers = small
    torch.manual_seed(0)
    model = widen(HPCM(SMALL).eval())
    with torch.no_grad():
        model.h_s[0].bias[0] = 1e12
    with pytest.raises(CheckpointError, match="float64 holds 53"):
        IntegerPath(model, numbers)


def test_the_path_of_every_kind_of_network_has_the_sizes_that_are_stored():
    """Attention or none, steps merged or not: what is stored is what is needed, and no more."""
    for windows, s3_steps in ((None, 6), ((4, 8, 8), 3)):
        variant = Variant(
            name="x", widths=(4, 8, 8), depths=(1, 1, 1), M=16, N=8, hyper_depth=1,
            coarse_depths=(2, 1), fine_depths=(1, 2), num_heads=4,
            windows=windows, s3_steps=s3_steps,
        )  # fmt: skip
        torch.manual_seed(1)
        model = widen(HPCM(variant, legacy_s2_hyper=windows is None).eval())
        codec, _, numbers = portable(model)
        stored = numbers.tensors()
        assert {name: tuple(value.shape) for name, value in stored.items()} == sizes(model)
        assert {value.dtype for value in stored.values()} == {torch.int32}
        again = Numbers.from_tensors(stored, model)
        assert equal(again.exponents.values(), numbers.exponents.values())
        encoded = codec.encode(make_image(40, 50))
        assert torch.equal(codec.decode(encoded.data), encoded.reconstruction)


def test_numbers_that_make_no_sense_are_refused(small):
    model, _, _, numbers = small
    stored = numbers.tensors()
    heads = stored["context.attention.0.key"].clone()
    heads[0] -= 1
    for name, value, said in (
        ("z_hat", stored["z_hat"][:-1], "another network"),
        ("z_hat", torch.full_like(stored["z_hat"], 100), "beyond its bounds"),
        ("context.attention.0.key", heads, "one head"),
        ("exponentials", torch.ones_like(stored["exponentials"]), "a table"),
        ("thresholds", stored["thresholds"].flip(0), "a table"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            Numbers.from_tensors({**stored, name: value}, model)
        assert "--portable" in caught.value.hint


def test_images_that_calibration_cannot_use(small):
    model = small[0]
    with pytest.raises(DataError, match="no images"):
        calibrate(model, [])
    broken = make_model()
    with torch.no_grad():
        broken.g_a[0].bias[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        calibrate(broken, [make_image(20, 20)])
