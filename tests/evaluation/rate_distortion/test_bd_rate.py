"""Bjontegaard deltas against published numbers, worked examples and quadrature."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from imgtool.errors import NoAnswer
from imgtool.evaluation.rate_distortion.bd_rate import NoOverlap, bd_rate
from imgtool.evaluation.rate_distortion.curves import Curve, load_curve, published_names

METHODS = ("cubic", "pchip", "akima")
# VTM on Kodak as CompressAI keeps it: eight points against six.
VTM = Curve(
    "VTM",
    "psnr",
    (0.0482, 0.1125, 0.2458, 0.4905, 0.8748, 1.4308, 2.3246, 3.6326),
    (26.145, 28.493, 31.200, 34.262, 37.420, 40.424, 43.506, 46.592),
)


def curve(bpp, db, name="a"):
    return Curve(name, "psnr", tuple(bpp), tuple(db))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("kodak", (-4.35, -4.26, -4.27)),
        ("clic", (-4.81, -4.73, -4.73)),
        ("tecnick", (-4.86, -4.79, -4.79)),
    ],
)
def test_large_against_base(dataset, expected):
    base = load_curve(f"hpcm-base/{dataset}", "psnr")
    large = load_curve(f"hpcm-large/{dataset}", "psnr")
    for method, percent in zip(METHODS, expected, strict=True):
        assert bd_rate(base, large, method).percent == pytest.approx(percent, abs=0.0051)


@pytest.mark.parametrize(("name", "percent"), [("hpcm-base", -16.02), ("hpcm-large", -19.95)])
def test_unequal_numbers_of_points(name, percent):
    found = bd_rate(VTM, load_curve(name, "psnr"))
    assert found.percent == pytest.approx(percent, abs=0.006)
    assert found.test_share == 1
    assert found.anchor_share < 0.5


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("bmshj2018-factorized", 68.7),
        ("bmshj2018-hyperprior", 31.0),
        ("mbt2018-mean", 21.8),
        ("mbt2018", 11.5),
        ("cheng2020-anchor", 4.0),
        ("cheng2020-attn", 5.8),
    ],
)
def test_published_models_against_vtm(name, percent):
    """CompressAI states no BD-rates: these are a sum over 200,000 steps of quality of its files."""
    found = bd_rate(load_curve("vtm", "psnr"), load_curve(name, "psnr"))
    assert found.percent == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize("metric", ["psnr", "ms-ssim"])
@pytest.mark.parametrize("name", [name for name in published_names() if name != "vtm"])
def test_hermite_polynomials_written_out(name, metric):
    """PCHIP after Fritsch and Butland (1984) by hand, and the trapezoidal rule."""
    anchor, test = load_curve("vtm", metric), load_curve(name, metric)
    grid = np.linspace(
        max(anchor.quality_db[0], test.quality_db[0]),
        min(anchor.quality_db[-1], test.quality_db[-1]),
        20_001,
    )
    a, b = (hermite(np.array(c.quality_db), np.log(c.bpp), grid) for c in (anchor, test))
    area = np.trapezoid(b - a, grid) / (grid[-1] - grid[0])
    assert bd_rate(anchor, test).percent == pytest.approx(100 * (np.exp(area) - 1), abs=1e-4)


def hermite(x, y, at):
    """The monotone cubic through (x, y), at the places `at`."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.empty_like(y)
    for k in range(1, len(x) - 1):
        w = 2 * h[k] + h[k - 1], h[k] + 2 * h[k - 1]
        same = slope[k - 1] * slope[k] > 0
        d[k] = (w[0] + w[1]) / (w[0] / slope[k - 1] + w[1] / slope[k]) if same else 0
    for end, (near, far) in ((0, (0, 1)), (-1, (-1, -2))):
        edge = ((2 * h[near] + h[far]) * slope[near] - h[near] * slope[far]) / (h[near] + h[far])
        if edge * slope[near] <= 0:
            edge = 0
        elif slope[near] * slope[far] <= 0 and abs(edge) > 3 * abs(slope[near]):
            edge = 3 * slope[near]
        d[end] = edge
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(h) - 1)
    t = (at - x[k]) / h[k]
    bends = (1 + 2 * t) * (1 - t) ** 2, t * (1 - t) ** 2, t**2 * (3 - 2 * t), t**2 * (t - 1)
    values = y[k], h[k] * d[k], y[k + 1], h[k] * d[k + 1]
    return sum(b * v for b, v in zip(bends, values, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.8, 1.0, 2.5])
def test_a_constant_factor_is_the_answer(method, factor):
    rates = np.array([0.1, 0.22, 0.4, 0.9, 1.7])
    quality = [28.0, 30.5, 32.9, 36.0, 39.1]
    found = bd_rate(curve(rates, quality), curve(rates * factor, quality), method)
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_worked_by_hand():
    """ln(rate) linear in dB: 0.1 a dB on one side, 0.1 a dB and 0.05 (q - 32) more on the other.

    Over 32..34 dB the difference is 0.05 (q - 32), on average 0.05: e^0.05 - 1 = 5.127 %.
    """
    anchor = curve([math.exp(0.1 * q) for q in (30, 34)], (30, 34))
    test = curve([math.exp(0.1 * q + 0.05 * (q - 32)) for q in (32, 36)], (32, 36))
    found = bd_rate(anchor, test)
    assert found.percent == pytest.approx(5.127109637602412, abs=1e-9)
    assert found.overlap_db == (32, 34)
    assert (found.anchor_share, found.test_share) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("method", "kind"), [("pchip", PchipInterpolator), ("akima", Akima1DInterpolator)]
)
def test_quadrature(method, kind):
    test = load_curve("hpcm-base", "psnr")
    splines = [kind(c.quality_db, np.log10(c.bpp)) for c in (VTM, test)]
    low, high = test.quality_db[0], test.quality_db[-1]
    areas = [quad(spline, low, high, limit=200, epsabs=1e-10)[0] for spline in splines]
    expected = 100 * (10 ** ((areas[1] - areas[0]) / (high - low)) - 1)
    assert bd_rate(VTM, test, method).percent == pytest.approx(expected, abs=1e-5)


def test_cubic_is_the_least_squares_polynomial():
    test = load_curve("hpcm-large", "psnr")
    low, high = test.quality_db[0], test.quality_db[-1]
    areas = []
    for one in (VTM, test):
        fit = np.polynomial.Polynomial.fit(one.quality_db, np.log(one.bpp), 3).integ()
        areas.append(fit(high) - fit(low))
    expected = 100 * math.expm1((areas[1] - areas[0]) / (high - low))
    assert bd_rate(VTM, test, "cubic").percent == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40)
@given(
    steps=st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.1, 4)), min_size=4, max_size=8),
    shift=st.floats(-1, 1),
    method=st.sampled_from(METHODS),
)
def test_the_other_way_round(steps, shift, method):
    """(1 + a against b) (1 + b against a) = 1."""
    rates = np.exp(np.cumsum([r for r, _ in steps]) - 3)
    quality = 30 + np.cumsum([q for _, q in steps])
    one = curve(rates, quality)
    other = curve(rates * np.linspace(1, 1.5, len(rates)), quality + shift * 0.1)
    try:
        there = bd_rate(one, other, method).percent
    except NoAnswer:  # a fit that turns round does so on either side
        assert method != "pchip"
        with pytest.raises(NoAnswer, match="turns round"):
            bd_rate(other, one, method)
        return
    back = bd_rate(other, one, method).percent
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1, rel=1e-9)


def test_a_fit_that_turns_round_is_refused_where_pchip_answers():
    """Two points beside each other: the cubic through them runs to and fro between the others."""
    anchor = curve([0.1, 0.2, 0.4, 0.8], [30, 33, 36, 39], name="anchor")
    quality = [30, 30.3, 30.5, 39]  # 3 % below the anchor, less 2 % at the third
    rates = [
        0.097 * 2 ** ((q - 30) / 3) * more for q, more in zip(quality, (1, 1, 1.02, 1), strict=True)
    ]
    test = curve(rates, quality, name="test")
    with pytest.raises(NoAnswer, match="cubic through the points of test turns round") as caught:
        bd_rate(anchor, test, "cubic")
    assert "pchip" in caught.value.hint
    assert abs(bd_rate(anchor, test).percent) < 10  # the cubic's would be 263 %
    # Outside the overlap it may turn as it likes.
    far = curve([0.1, 0.2, 0.4, 0.8, 0.81, 0.82], [30, 33, 36, 39, 50, 70], name="far")
    near = curve([0.1, 0.2, 0.3, 0.4], [30, 33, 34.7, 36], name="near")
    assert math.isfinite(bd_rate(near, far, "akima").percent)


@pytest.mark.parametrize(
    ("method", "count", "words"),
    [
        ("pchip", 2, "test has 2 points, and a BD-rate needs 4: a straight line"),
        ("pchip", 3, "test has 3 points, and a BD-rate needs 4: pchip went through them"),
        ("akima", 3, "test has 3 points, and a BD-rate needs 4: akima went through them"),
    ],
)
def test_what_was_done_with_fewer_than_four_points_is_said(method, count, words):
    anchor = curve([0.1, 0.2, 0.4, 0.8], [30, 33, 36, 39], name="anchor")
    test = curve([0.1, 0.3, 0.7][:count], [30, 34, 38][:count], name="test")
    (note,) = bd_rate(anchor, test, method).notes
    assert note.startswith(words)
    assert bd_rate(anchor, anchor, method).notes == ()


@settings(max_examples=100)
@given(
    rates=st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=6, unique=True),
    quality=st.lists(st.floats(-1000, 1000), min_size=6, max_size=6, unique=True),
    method=st.sampled_from(METHODS),
)
def test_an_answer_or_none_for_any_points(rates, quality, method):
    one = curve(sorted(rates), sorted(quality)[: len(rates)])
    with contextlib.suppress(NoAnswer):
        assert math.isfinite(bd_rate(VTM, one, method).percent)


@pytest.mark.parametrize("method", ["akima", "cubic"])
@pytest.mark.parametrize("apart", [1e-13, 1e-10, 1e-4])
def test_points_too_close_to_fit(method, apart):
    close = curve([1e-6, 1e-3, 1, 1e6], [30, 30 + apart, 30 + 2 * apart, 40], name="close")
    anchor = curve([0.2, 0.4, 0.7, 1.1], [30, 32, 35, 40], name="anchor")
    for pair in ((anchor, close), (close, anchor)):
        with contextlib.suppress(NoAnswer):
            assert math.isfinite(bd_rate(*pair, method).percent)
    with pytest.raises(NoAnswer, match="points of anchor and close runs away") as caught:
        bd_rate(anchor, close, method)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("other", "method", "words"),
    [
        (curve([1.0, 2.0], [40, 44]), "pchip", "no quality in common"),
        (curve([1.0, 2.0], [34, 36]), "pchip", "no quality in common"),  # they only touch
        (curve([1.0], [32]), "pchip", "1 point; pchip needs 2"),
        (curve([], []), "pchip", "0 points; pchip needs 2"),
        (curve([0.5, 1.0], [31, 33]), "akima", "2 points; akima needs 3"),
        (curve([0.5, 1.0, 2.0], [31, 33, 35]), "cubic", "3 points; cubic needs 4"),
        (curve([0.5, 1.0, 2.0], [31, 33, 32.5]), "pchip", "not monotone: 33 dB at 1 bpp"),
        (curve([0.5, 1.0, 1.0], [31, 33, 34]), "pchip", "not monotone"),
        (curve([0.5, 1.0, 2.0], [31, 31, 34]), "pchip", "not monotone"),
    ],
)
def test_no_answer(other, method, words):
    anchor = curve([0.2, 0.4, 0.7, 1.1], [30, 31, 32, 34], name="anchor")
    for pair in ((anchor, other), (other, anchor)):
        with pytest.raises(NoAnswer, match=words) as caught:
            bd_rate(*pair, method)
        assert isinstance(caught.value, NoOverlap) == ("in common" in words)
        assert caught.value.hint
