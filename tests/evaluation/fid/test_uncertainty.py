"""Standard errors against the deviation over independent draws: good reconstructions, and two
sets without pairs."""

import numpy as np
import pytest

from imgtool.evaluation.fid import kernel, products
from imgtool.evaluation.fid.kernel import kernel_distance
from imgtool.evaluation.fid.statistics import (
    Extrapolation,
    Statistics,
    frechet_distance,
    intercept_weights,
)
from imgtool.evaluation.fid.uncertainty import (
    NUM_BLOCKS,
    Replicates,
    are_pairs,
    mean_of,
    num_blocks,
)

WIDTH, COUNT, DRAWS, MEASURED = 20, 180, 100, 16
MIX = np.random.default_rng(99).standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
MIX *= np.sqrt(np.exp(-np.arange(WIDTH) / 4) + 0.02)[:, None]
SIZES = tuple(np.linspace(COUNT // 2, COUNT, 6).astype(int).tolist())


def images(rng):
    """Features, none negative, few of which carry most of the variance, as Inception's."""
    return np.maximum(rng.standard_normal((COUNT, WIDTH)) @ MIX + 0.4, 0).astype(np.float32)


def blurred(x, rng, noise, shrink):
    made = (1 - shrink) * x + shrink * 0.45 + 0.45 * noise * rng.standard_normal(x.shape)
    return np.maximum(made, 0).astype(np.float32)


def reconstructions(rng):
    x = images(rng)
    return x, blurred(x, rng, 0.1, 0.05)


def poor_reconstructions(rng):
    x = images(rng)
    return x, blurred(x, rng, 0.4, 0.1)


def one_distribution(rng):
    return images(rng), images(rng)


def two_distributions(rng):
    return images(rng), blurred(images(rng), rng, 0.5, 0.2)


CASES = {
    reconstructions: True,
    poor_reconstructions: True,
    one_distribution: False,
    two_distributions: False,
}


def line_of(real, fake):
    values = [
        frechet_distance(*(Statistics.of(side.features[:n]) for side in (real, fake)))
        for n in SIZES
    ]
    return Extrapolation(float(intercept_weights(SIZES) @ np.array(values)), SIZES)


@pytest.mark.parametrize(("case", "pairs"), CASES.items(), ids=lambda v: getattr(v, "__name__", v))
def test_errors_are_the_deviation_over_draws(case, pairs, monkeypatch):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 50)
    values, variances = [], []
    for draw in range(DRAWS):
        real, fake = map(Statistics.of, case(np.random.default_rng([1, draw])))
        kid, line = kernel_distance(real, fake, draw), line_of(real, fake)
        values.append((frechet_distance(real, fake), line.value, kid.value, kid.subsets))
        if draw < MEASURED:
            found = Replicates.of(real, fake, draw)
            assert found.pairs is pairs
            errors = found.error, found.error_of(line), kid.error, kid.subsets_error
            variances.append(np.square(errors))
    ratio = np.sqrt(np.mean(variances, axis=0)) / np.std(values, axis=0, ddof=1)
    assert ((ratio > 0.8) & (ratio < 1.25)).all(), ratio


def test_blocks_leave_little_over():
    assert num_blocks(5000) == num_blocks(5000, 5000) == NUM_BLOCKS
    assert num_blocks(119) == 17
    assert num_blocks(20) == 10
    assert num_blocks(19) == num_blocks(5000, 19) == 0


def test_pairs_are_told_from_the_features():
    rng = np.random.default_rng(0)
    x, y = reconstructions(rng)
    assert are_pairs(x, y)
    assert not are_pairs(x, y[::-1])
    assert not are_pairs(x, y[:-1])
    assert not are_pairs(*one_distribution(rng))


def test_a_side_of_moments_alone_is_no_draw():
    real, fake = map(Statistics.of, two_distributions(np.random.default_rng(3)))
    moments = Statistics(real.mu, real.sigma, None)
    alone = Replicates.of(moments, fake, 0)
    assert len(alone.dealt) == 0
    assert 0 < alone.error < 1.5 * Replicates.of(real, fake, 0).error
    assert Replicates.of(real, Statistics(fake.mu, fake.sigma, COUNT), 0) is None
    few = Statistics.of(fake.features[:12])
    assert Replicates.of(real, few, 0) is None
    assert kernel_distance(real, few, 0).error is None


def test_the_error_of_a_mean():
    """Of twice the same it is the same; the seed decides all."""
    real, fake = map(Statistics.of, reconstructions(np.random.default_rng(4)))
    one = Replicates.of(real, fake, 5)
    assert mean_of([one, one]).error == pytest.approx(one.error)
    assert Replicates.of(real, fake, 5).error == one.error


def test_kernel_distance_by_definition(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.random((41, 16), np.float32), rng.random((30, 16), np.float32) + np.float32(0.4)

    def cubed(a, b):
        return (a.astype(np.float64) @ b.astype(np.float64).T / 16 + 1) ** 3

    off = ~np.eye(41, dtype=bool), ~np.eye(30, dtype=bool)
    within = cubed(x, x)[off[0]].mean() + cubed(y, y)[off[1]].mean()
    expected = within - 2 * cubed(x, y).mean()
    for chunk in (1024, 7):
        monkeypatch.setattr(products, "TILE", chunk)
        found = kernel_distance(Statistics.of(x), Statistics.of(y), 0)
        assert found.value == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(Statistics.of(y), Statistics.of(y), 0).subsets == pytest.approx(
        kernel_distance(Statistics.of(y), Statistics.of(y), 0).value
    )
    moments = Statistics(np.zeros(16), np.eye(16), 30)
    assert kernel_distance(Statistics.of(x), moments, 0) is None
