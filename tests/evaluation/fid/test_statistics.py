import numpy as np
import pytest
from scipy import linalg

from imgtool.errors import NoAnswer
from imgtool.evaluation.fid import statistics
from imgtool.evaluation.fid.statistics import (
    Statistics,
    extrapolate,
    frechet_distance,
)


def draw(n, d, seed, *, shift=0.0):
    """Correlated features, none negative, as Inception's are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((d, d)) / np.sqrt(d)
    return np.maximum(rng.standard_normal((n, d)) @ mix + 0.3 + shift, 0).astype(np.float32)


def moments_of(some):
    return Statistics(some.mu, some.sigma, None)


def nuclear_norm(x, y):
    """FID of two sets of features by the singular values of their product."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    shift = x.mean(0) - y.mean(0)
    singular = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return shift @ shift + (a * a).sum() + (b * b).sum() - 2 * singular


def test_closed_form_of_covariances_that_commute():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    a, b = rng.uniform(0.1, 3, 40), rng.uniform(0.1, 3, 40)
    mu = rng.standard_normal((2, 40))
    one, other = (
        Statistics(mu[i], basis @ np.diag(values) @ basis.T, 1000) for i, values in ((0, a), (1, b))
    )
    expected = ((mu[0] - mu[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-12)


def test_closed_form_of_singular_covariances():
    a, b = np.zeros(30), np.zeros(30)
    a[:10], b[5:20] = 2.0, 0.5
    one, other = (Statistics(np.zeros(30), np.diag(v), None) for v in (a, b))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_against_a_general_square_root():
    one, other = Statistics.of(draw(300, 24, 1)), Statistics.of(draw(400, 24, 2, shift=0.1))
    root = linalg.sqrtm(one.sigma @ other.sigma).real
    shift = one.mu - other.mu
    expected = shift @ shift + np.trace(one.sigma + other.sigma - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n1", "n2"), [(40, 40), (40, 25), (25, 40), (300, 40), (40, 300)])
def test_few_images_by_every_route(n1, n2):
    x, y = draw(n1, 64, 1), draw(n2, 64, 2, shift=0.05)
    one, other = Statistics.of(x), Statistics.of(y)
    expected = nuclear_norm(x, y)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    for a, b in (
        (moments_of(one), other),
        (one, moments_of(other)),
        (moments_of(one), moments_of(other)),
    ):
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_features_that_are_always_zero():
    """Singular in spite of many images."""
    x, y = draw(300, 40, 1), draw(300, 40, 2, shift=0.1)
    for dead_of_one, dead_of_other in ((0, 7), (7, 0), (7, 4)):
        x[:, :dead_of_one] = 0
        y[:, :dead_of_other] = 0
        one, other = Statistics.of(x), Statistics.of(y)
        assert frechet_distance(one, other) == pytest.approx(nuclear_norm(x, y), rel=1e-10)


def test_images_that_are_all_one():
    flat, some = Statistics.of(np.ones((9, 16), np.float32)), Statistics.of(draw(30, 16, 0))
    shift = flat.mu - some.mu
    expected = shift @ shift + np.trace(some.sigma)
    for a in (flat, moments_of(flat)):
        for b in (some, moments_of(some)):
            assert frechet_distance(a, b) == pytest.approx(expected)
            assert frechet_distance(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("n", [5, 60, 64, 65, 200])
def test_distance_to_itself(n):
    some = Statistics.of(draw(n, 64, 3))
    for a in (some, moments_of(some)):
        for b in (some, moments_of(some)):
            assert 0 <= frechet_distance(a, b) < 1e-6
    assert frechet_distance(some, some) < 1e-10


def test_moments_are_those_of_numpy_across_pieces(monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK", 17)
    x = draw(100, 12, 0)
    found = Statistics.of(x)
    np.testing.assert_allclose(found.mu, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.sigma, np.cov(x.astype(np.float64).T), atol=1e-14)
    for rows in (slice(0, 10), slice(35, 60), slice(90, 100), slice(5, 95)):
        kept = np.delete(x, rows, axis=0).astype(np.float64)
        without = found.without(rows)
        assert without.n == len(kept)
        np.testing.assert_allclose(without.mu, kept.mean(0), rtol=1e-12)
        np.testing.assert_allclose(without.sigma, np.cov(kept.T), atol=1e-13)
    for n, some in zip((20, 55, 100), found.prefixes([20, 55, 100]), strict=True):
        np.testing.assert_allclose(some.sigma, np.cov(x[:n].astype(np.float64).T), atol=1e-13)


def test_extrapolation_takes_the_bias_away():
    sides = [(draw(4800, 48, seed), draw(4800, 48, seed + 50)) for seed in range(4)]
    plain, better = [], []
    for x, y in sides:
        one, other = Statistics.of(x), Statistics.of(y)
        found = extrapolate(one, other)
        assert (found.sizes[0], found.sizes[-1], len(found.sizes)) == (2400, 4800, 6)
        plain.append(frechet_distance(one, other))
        better.append(found.value)
    assert abs(np.mean(better)) < 0.35 * np.mean(plain)


def test_no_extrapolation_from_few():
    small, large = Statistics.of(draw(45, 40, 0)), Statistics.of(draw(100, 40, 1))
    assert extrapolate(large, small) is None
    assert extrapolate(small, large) is None
    assert extrapolate(large, moments_of(large)) is None
    assert extrapolate(moments_of(large), large) is None  # nobody knows its n
    known = Statistics(large.mu, large.sigma, 100)
    assert extrapolate(known, large).sizes[-1] == 100


def test_what_has_no_statistics():
    with pytest.raises(NoAnswer, match="1 images are too few"):
        Statistics.of(draw(1, 8, 0))
    broken = draw(10, 8, 0)
    broken[3, 2] = np.nan
    with pytest.raises(NoAnswer, match="finite"):
        Statistics.of(broken)
