"""Distances between sets of features, in float64.

With S1, S2 the covariances of n1, n2 features of d numbers, and any A, B with A A^T = S1 and
B B^T = S2, the trace of (S1 S2)^(1/2) is the sum of the singular values of A^T B. A is a
Cholesky factor, pivoted and cut at the rank where S1 is singular, or, where n <= d, the features
themselves: that keeps 11 digits where general matrix square roots keep 5 and may turn complex.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from imgtool.errors import NoAnswer

Floats = NDArray[np.float64]
Features = NDArray[np.float32]

NUM_SIZES = 6  # of the extrapolation
_CHUNK = 1024
_NEGLIGIBLE = 1e-8
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features.

    Attributes:
        mu: (d,) float64.
        sigma: (d, d) float64, unbiased.
        n: features that went in; None where a foreign file does not say.
        features: (n, d) float32 in an order drawn at random; None where only moments are kept.
    """

    mu: Floats
    sigma: Floats
    n: int | None
    features: Features | None = None

    @classmethod
    def of(cls, features: Features) -> Statistics:
        """Of all rows.

        Raises:
            NoAnswer: fewer than two, or values that are not finite.
        """
        n, d = features.shape
        if n < 2:
            raise NoAnswer(f"{n} images are too few for a covariance", hint="give at least 2")
        mu = features.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mu).all():
            raise NoAnswer(
                "features are not finite", hint="look at the images; train further or anew"
            )
        return cls(mu, _scatter(features, mu) / (n - 1), n, features)

    def without(self, rows: slice) -> Statistics:
        """Of the features less a run of them; moments alone stay as they are."""
        if self.features is None:
            return self
        n, block = len(self.features), self.features[rows]
        left = n - len(block)
        if left <= len(self.mu):
            return Statistics.of(np.delete(self.features, rows, axis=0))
        shift = (block - self.mu).sum(axis=0) / -left  # of the mean
        scatter = self.sigma * (n - 1) - _scatter(block, self.mu) - left * np.outer(shift, shift)
        return Statistics(self.mu + shift, scatter / (left - 1), left)

    def prefixes(self, sizes: Sequence[int]) -> Iterator[Statistics]:
        """Of the first n features for each n, ascending, all above d: one pass over the features.

        Moments alone are known that do not grow.
        """
        if self.features is None:
            yield from (self for _ in sizes)
            return
        scatter, total, done = np.zeros_like(self.sigma), np.zeros_like(self.mu), 0
        for n in sizes:
            block = self.features[done:n]
            scatter += _scatter(block, self.mu)
            total += (block - self.mu).sum(axis=0)
            shift, done = total / n, n
            sigma = (scatter - n * np.outer(shift, shift)) / (n - 1)
            yield Statistics(self.mu + shift, sigma, n)

    @property
    def is_few(self) -> bool:
        """Whether sigma is known to be singular, as of no more images than numbers."""
        return self.n is not None and self.n <= len(self.mu)

    @cached_property
    def cholesky(self) -> Floats | None:
        """Lower triangular (d, d) float64; None where sigma is singular."""
        if self.is_few:
            return None
        potrf: Any = linalg.get_lapack_funcs("potrf", (self.sigma,))
        found, failed = potrf(self.sigma, lower=1, clean=1)
        pivots = np.diag(found)
        if failed or pivots.min() ** 2 <= _EPSILON * len(pivots) * pivots.max() ** 2:
            return None
        return np.asarray(found)

    @cached_property
    def _pivoted(self) -> Floats:
        """As `factor`, of a sigma that is singular."""
        # It stops at the rank: what rounding leaves of a zero has a root of 1e-8.
        pstrf: Any = linalg.get_lapack_funcs("pstrf", (self.sigma,))
        smallest = _EPSILON * len(self.mu) * float(np.diag(self.sigma).max())
        found, pivots, rank, _ = pstrf(self.sigma, lower=1, tol=smallest)
        root = np.zeros((len(self.mu), rank))
        root[pivots - 1] = np.tril(found)[:, :rank]
        return root

    @cached_property
    def _contrasts(self) -> Floats:
        """(d, n - 1): as `factor`, of few features.

        The reflection that takes the constant direction to the first row leaves no row that is
        zero, as subtracting the mean would: its eigenvalue's rounding error has a large root.
        """
        assert self.features is not None
        y = self.features.astype(np.float64) - self.mu
        n = len(y)
        v = np.full(n, 1 / np.sqrt(n))
        v[0] += 1.0
        y -= np.outer(v * (2 / (v @ v)), v @ y)
        return y[1:].T / np.sqrt(n - 1)

    @property
    def factor(self) -> Floats:
        """(d, r) float64 with factor factor^T = sigma, r its rank; computed once."""
        if self.cholesky is not None:
            return self.cholesky
        return self._contrasts if self.is_few and self.features is not None else self._pivoted


def _scatter(features: Features, centre: Floats) -> Floats:
    """(d, d) float64: sum of outer products about a centre, in pieces."""
    total = np.zeros((len(centre), len(centre)))
    for start in range(0, len(features), _CHUNK):
        piece = features[start : start + _CHUNK] - centre
        total += piece.T @ piece
    return total


def frechet_distance(real: Statistics, fake: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017, equation 6.

    What `real` needs for it is computed once and kept.
    """
    spread = float(np.trace(real.sigma) + np.trace(fake.sigma))
    shift = real.mu - fake.mu
    distance = float(shift @ shift) + spread - 2 * _trace_of_root(real, fake)
    scale = max(spread, float(real.mu @ real.mu), float(fake.mu @ fake.mu))
    return 0.0 if -_NEGLIGIBLE * scale < distance < 0 else distance


def _trace_of_root(one: Statistics, other: Statistics) -> float:
    if other.is_few:
        one, other = other, one
    if one.cholesky is not None:
        values = _eigenvalues(one, other)
        doubtful = values[0] <= _EPSILON * len(values) * values[-1]
        if not (doubtful and other.cholesky is None):
            return float(np.sqrt(np.clip(values, 0, None)).sum())
        one, other = other, one  # no eigenvalue that should be 0: its rounding has a root of 1e-8
    if one.factor.size == 0:  # all images are one
        return 0.0
    if other.cholesky is not None:
        return float(np.sqrt(np.clip(_eigenvalues(one, other), 0, None)).sum())
    product = one.factor.T @ other.factor
    if product.size == 0:
        return 0.0
    return float(linalg.svdvals(product, check_finite=False, overwrite_a=True).sum())


def _eigenvalues(one: Statistics, other: Statistics) -> Floats:
    """Of S1 S2 as far as S1's rank goes, ascending."""
    if one.cholesky is None:
        gram = one.factor.T @ other.sigma @ one.factor
    else:  # one triangle of L^T S2 L, for a quarter of the operations
        sygst: Any = linalg.get_lapack_funcs("sygst", (other.sigma,))
        gram, _ = sygst(other.sigma, one.cholesky, itype=2, lower=1)
    return linalg.eigvalsh(gram, lower=True, check_finite=False, overwrite_a=True)


@dataclass(frozen=True)
class Extrapolation:
    """FID at infinitely many images.

    Attributes:
        value: where the line in 1 / n meets 0.
        sizes: n of the fakes that the line goes through.
    """

    value: float
    sizes: tuple[int, ...]

    @property
    def weights(self) -> Floats:
        """What `value` takes of the distance at each size."""
        return intercept_weights(self.sizes)


def extrapolate(real: Statistics, fake: Statistics) -> Extrapolation | None:
    """FID-infinity (Chong & Forsyth 2020): a line in 1 / n through 6 sizes, n / 2 to n.

    Both sides shrink together where both sides' features are known, as both bias it. None where
    the smallest size would be less than d on either side: below it FID is not linear in 1 / n.
    """
    if fake.features is None or real.n is None:
        return None
    n, width = fake.features.shape
    smallest = max(width, n // 2)
    ratio = real.n / n if real.features is not None else 1.0
    if n < 1.2 * smallest or smallest * ratio < width:
        return None
    sizes = np.linspace(smallest, n, NUM_SIZES).round().astype(int).tolist()
    reals = real.prefixes([round(size * ratio) for size in sizes])
    pairs = zip(reals, fake.prefixes(sizes), strict=True)
    found = [frechet_distance(some, others) for some, others in pairs]
    return Extrapolation(float(intercept_weights(sizes) @ np.array(found)), tuple(sizes))


def intercept_weights(sizes: Sequence[int]) -> Floats:
    """Weights of the values at these n in the height at 0 of their least-squares line in 1 / n."""
    line = np.stack([np.ones(len(sizes)), 1 / np.array(sizes, np.float64)], axis=1)
    return np.asarray(np.linalg.pinv(line)[0])
