"""Precision, recall, density and coverage, against every distance in one matrix."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from imgtool.evaluation.fid import kernel, products
from imgtool.evaluation.fid.neighbourhoods import SHARES, Manifolds, neighbourhoods
from imgtool.evaluation.fid.statistics import Statistics

# Mean and standard deviation over 100 subsets of 40 (kid_features_to_metric, rng_seed 2020).
TORCH_FIDELITY = (0.022672925, 0.061694148)


def sides(*features):
    """Neither measure looks at moments."""
    return [Statistics(np.zeros(1), np.eye(1), len(f), f.astype(np.float32)) for f in features]


def draw(n, d, seed, scale=1.0, shift=0.0):
    return (scale * np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(np.float32)


def by_matrix(x, y, k, closed):
    """As the package prdc defines them; with `closed` as Kynkaanniemi et al. do."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    of_real, of_fake = (np.sort(cdist(s, s), axis=1)[:, k] for s in (x, y))
    distances = cdist(x, y)
    inside = np.less_equal if closed else np.less
    within = inside(distances, of_real[:, None])
    return {
        "precision": within.any(axis=0).mean(),
        "recall": inside(distances, of_fake[None]).any(axis=1).mean(),
        "density": within.sum() / (k * len(y)),
        "coverage": inside(distances.min(axis=1), of_real).mean(),
    }


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("n", "m", "d", "k"), [(150, 90, 12, 5), (60, 200, 3, 3), (9, 8, 5, 7)])
def test_against_whole_matrices_in_tiles_of_any_size(n, m, d, k, closed, monkeypatch):
    x, y = draw(n, d, 0), draw(m, d, 1, 0.9, 0.2)
    expected = by_matrix(x, y, k, closed)
    errors = []
    for tile in (1024, 64, 7):
        monkeypatch.setattr(products, "TILE", tile)
        found = neighbourhoods(*sides(x, y), k, closed=closed)
        assert found.values == pytest.approx(expected, abs=1e-12)
        errors.append(found.errors)
    if errors[0] is None:
        assert errors == [None] * 3
    else:
        for other in errors[1:]:
            assert other == pytest.approx(errors[0], abs=1e-12)


def test_precision_is_of_the_fakes_and_recall_of_the_real_images():
    """Fakes that are some of the real images: every one is right, and much is missing."""
    x = draw(400, 6, 0)
    y = x[x[:, 0] > 0.8]
    found = neighbourhoods(*sides(x, y), 5)
    assert found.values["precision"] == 1
    assert found.values["recall"] < 0.6
    assert found.values["coverage"] < 0.6
    swapped = neighbourhoods(*sides(y, x), 5)
    assert swapped.values["precision"] == found.values["recall"]
    assert swapped.values["recall"] == 1


def test_exact_cases():
    x = draw(80, 8, 0)
    assert set(neighbourhoods(*sides(x, x), 5).values.values()) == {1}
    assert neighbourhoods(*sides(x, x), 5, closed=True).values["density"] == pytest.approx(1.2)
    far = neighbourhoods(*sides(x, x + 100), 5)
    assert set(far.values.values()) == {0}
    assert set(far.errors.values()) == {0}
    one = np.repeat(x[:1], 50, axis=0)
    found = neighbourhoods(*sides(x, one), 5)
    assert (found.values["precision"], found.values["recall"]) == (1, 0)
    assert found.num_points == 50
    flat = neighbourhoods(*sides(one, one), 5)
    assert set(flat.values.values()) == {0}
    assert flat.num_points == 100


def test_copies_are_at_distance_0():
    """However long features are: products of them cancel to something else."""
    x = draw(200, 64, 0, 1e-3, 50)
    copies = np.concatenate([x, x])
    assert neighbourhoods(*sides(copies, x), 1).num_points == 400
    found = neighbourhoods(*sides(x, x.copy()), 5)
    assert set(found.values.values()) == {1}


def test_two_draws_of_one_distribution():
    """Density 1, coverage 1 - prod (n-1-t)/(n+m-1-t) over t < k (Naeem et al. 2020)."""
    n, k = 1000, 5
    found = neighbourhoods(*sides(draw(n, 16, 1), draw(n, 16, 2)), k)
    t = np.arange(k)
    coverage = 1 - np.prod((n - 1 - t) / (2 * n - 1 - t))
    assert abs(found.values["coverage"] - coverage) < 4 * found.errors["coverage"]
    assert abs(found.values["density"] - 1) < 4 * found.errors["density"]


def test_errors_are_the_deviation_over_draws():
    values, errors = [], []
    for seed in range(50):
        x, y = draw(160, 6, [seed, 0]), draw(200, 6, [seed, 1], 0.8, 0.1)
        found = neighbourhoods(*sides(x, y), 5)
        values.append([found.values[name] for name in SHARES])
        errors.append([found.errors[name] for name in SHARES])
    ratio = np.sqrt(np.square(errors).mean(axis=0)) / np.std(values, axis=0, ddof=1)
    assert (ratio > 0.7).all(), ratio
    assert (ratio < 1.4).all(), ratio


def test_memory_does_not_grow_with_pairs(monkeypatch):
    monkeypatch.setattr(products, "TILE", 256)
    both = sides(draw(3000, 4, 0), draw(3000, 4, 1))
    tracemalloc.start()
    neighbourhoods(*both, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 4


def test_measures_that_share_products_are_those_alone(monkeypatch):
    """KID looks at its first images alone, whoever looks at more."""
    monkeypatch.setattr(products, "TILE", 64)
    monkeypatch.setattr(kernel, "MAX_IMAGES", 150)
    both = sides(draw(200, 8, 0), draw(170, 8, 1, 0.9))
    together = kernel.KernelSums.of(*both, 0), Manifolds.of(*both, 5)
    heard = []
    products.visit(*(s.features for s in both), together, lambda *now: heard.append(now))
    assert heard == [(done, 10 + 6 + 12) for done in range(1, 29)]
    alone = kernel.kernel_distance(*both, 0)
    assert together[0].result().value == pytest.approx(alone.value, rel=1e-9)
    assert together[0].result().subsets_error == pytest.approx(alone.subsets_error, rel=1e-9)
    assert together[1].result() == neighbourhoods(*both, 5)


def test_subsets_as_torch_fidelity_has_them(monkeypatch):
    """Mean and deviation of its 0.4.0, of the same subsets: features and figures written down."""
    x, y = draw(60, 8, 0), draw(50, 8, 1, 0.9, 0.1)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 40)
    rng = np.random.RandomState(2020)
    drawn = [[rng.choice(n, 40, replace=False) for n in (60, 50)] for _ in range(100)]

    def theirs(count, size, generator):
        del generator
        found = np.zeros((100, count))
        for row, pair in zip(found, drawn, strict=True):
            row[pair[0 if count == 60 else 1]] = 1
        assert (found.sum(axis=1) == size).all()
        return found

    monkeypatch.setattr(kernel, "_subsets", theirs)
    found = kernel.kernel_distance(*sides(x, y), 0)
    assert found.subsets == pytest.approx(TORCH_FIDELITY[0], abs=1e-6)
    assert found.subsets_spread == pytest.approx(TORCH_FIDELITY[1], abs=1e-6)


def test_what_has_none():
    x = draw(20, 4, 0)
    assert neighbourhoods(*sides(x, x[:5]), 5) is None
    few = neighbourhoods(*sides(x, x[:6]), 5)
    assert few.errors is None
    moments = Statistics(np.zeros(4), np.eye(4), 20)
    assert neighbourhoods(moments, *sides(x), 5) is None
    assert neighbourhoods(*sides(x), moments, 5) is None
