"""Precision, recall, density and coverage, with standard errors.

The neighbourhood of an image is the ball about its feature that reaches to the k-th nearest other
image of its own side. Precision is the share of fakes in some real image's neighbourhood, density
how many of those a fake lies in, over k; recall is the share of real images in some fake's
neighbourhood (Kynkaanniemi et al. 2019), and coverage the share of real images with a fake in
their own (Naeem et al. 2020).

Distances are float64, in tiles: memory grows with the images, not with their pairs.

Errors come from halves: both sides are parted at random, the halves share no image, and the
variance of numbers of half the images is twice theirs. (A jackknife over blocks gives 1.1 to 2.2
times the deviation over draws, as neighbourhoods are far from linear in the images.) Few pairs
reach into a neighbourhood, so that halves cost little more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.fid.products import pieces, visit
from imgtool.evaluation.fid.statistics import Features, Floats, Statistics
from imgtool.evaluation.fid.uncertainty import FEWEST_BLOCKS

SHARES = ("precision", "recall", "density", "coverage")
_SPARE = 5  # times k neighbours are kept: of so many, a half has k but in 1 of 2000 cases
NUM_SPLITS = 25
_SPLIT_STREAM = 9  # apart from other draws of one seed
_ROUNDING = 1e-12  # of squared lengths: what a distance of 0 comes out as

Numbers = NDArray[np.int64]
Members = NDArray[np.bool_]


@dataclass(frozen=True)
class Neighbourhoods:
    """The four numbers.

    Attributes:
        values: by SHARES. Density may exceed 1.
        errors: their standard errors, images of both sides counting as drawn by chance; None of
            fewer than 20 images.
        num_points: images whose neighbourhood is a point: k others are the same image.
    """

    values: dict[str, float]
    errors: dict[str, float] | None
    num_points: int


def neighbourhoods(
    real: Statistics, fake: Statistics, k: int, *, seed: int = 0, closed: bool = False
) -> Neighbourhoods | None:
    """As `Manifolds`, alone."""
    found = Manifolds.of(real, fake, k, seed=seed, closed=closed)
    if found is None:
        return None
    assert real.features is not None
    assert fake.features is not None
    visit(real.features, fake.features, [found])
    return found.result()


class Manifolds:
    """Finds neighbourhoods, and what lies in them, of the products that it is shown.

    Args:
        k: at least 1.
        seed: of the halves.
        closed: an image on the border of a neighbourhood is inside.
    """

    most: int | None = None  # images that it looks at

    def __init__(self, x: Features, y: Features, k: int, *, seed: int, closed: bool) -> None:
        self._k = k
        self._inside = np.less_equal if closed else np.less
        self._members = _halves(len(x), len(y), k, seed)
        self._sides = [_Nearest(side, k) for side in (x, y)]
        self._tally = _Tally.empty(*self._members)

    @classmethod
    def of(
        cls, real: Statistics, fake: Statistics, k: int, *, seed: int = 0, closed: bool = False
    ) -> Manifolds | None:
        """None without features of both sides, or where a side has no k others to an image."""
        if real.features is None or fake.features is None:
            return None
        if min(len(real.features), len(fake.features)) <= k:
            return None
        return cls(real.features, fake.features, k, seed=seed, closed=closed)

    def take(self, pair: str, rows: slice, columns: slice, products: Floats) -> None:
        """Take a tile; those of each side with itself come first."""
        x, y = (self._sides[side == "y"] for side in pair)
        tile = _squared(products, x.lengths[rows], y.lengths[columns])
        if pair == "xy":
            self._count(rows, columns, tile)
            return
        if rows == columns:
            np.fill_diagonal(tile, np.inf)
        x.keep(rows, tile, columns)
        if rows != columns:
            x.keep(columns, tile.T, rows)

    @cached_property
    def _radii(self) -> list[Floats]:
        """(R, n) and (R, m) squared, once both sides' own tiles have come."""
        return [
            side.radii(self._k, some) for side, some in zip(self._sides, self._members, strict=True)
        ]

    @cached_property
    def _widest(self) -> list[Floats]:
        return [radii.max(axis=0) for radii in self._radii]

    def _count(self, rows: slice, columns: slice, tile: Floats) -> None:
        reaches = self._widest[0][rows, None], self._widest[1][None, columns]
        for side, reach in enumerate(reaches):
            i, j = np.nonzero(self._inside(tile, reach))
            distance = tile[i, j]
            i, j = i + rows.start, j + columns.start
            for one, radius in enumerate(self._radii[side]):
                holds = self._inside(distance, radius[i if side == 0 else j])
                self._tally.add(one, side, i[holds], j[holds])

    def result(self) -> Neighbourhoods:
        """Once all tiles have come."""
        found = np.stack([self._tally.shares(one, self._k) for one in range(len(self._radii[0]))])
        errors = None
        if len(found) > 1:
            spread = np.sqrt(np.square(found[1::2] - found[2::2]).mean(axis=0)) / 2
            errors = dict(zip(SHARES, spread.tolist(), strict=True))
        points = sum(int((radii[0] == 0).sum()) for radii in self._radii)
        return Neighbourhoods(dict(zip(SHARES, found[0].tolist(), strict=True)), errors, points)


def _halves(n: int, m: int, k: int, seed: int) -> tuple[Members, Members]:
    """(1 + 2 S, n) and (1 + 2 S, m): all images, and S times two halves; all alone of few.

    Where the sides are equally many their halves have the same places: pairs stay together.
    """
    if min(n, m) < max(2 * FEWEST_BLOCKS, 2 * (k + 1)):
        return np.ones((1, n), bool), np.ones((1, m), bool)
    generator = np.random.default_rng([_SPLIT_STREAM, seed])
    found = np.zeros((1 + 2 * NUM_SPLITS, n), bool), np.zeros((1 + 2 * NUM_SPLITS, m), bool)
    for some in found:
        some[0] = True
    for one in range(1, 1 + 2 * NUM_SPLITS, 2):
        order = generator.permutation(n)
        for some, own in zip(
            found, (order, order if n == m else generator.permutation(m)), strict=True
        ):
            half = len(own) // 2
            some[one, own[:half]] = some[one + 1, own[half : 2 * half]] = True
    return found


class _Nearest:
    """One side's squared lengths, and its images' nearest others."""

    def __init__(self, features: Features, k: int) -> None:
        n = len(features)
        squares = [np.square(features[i], dtype=np.float64).sum(axis=1) for i in pieces(n)]
        self.lengths = np.concatenate(squares)
        self._kept = min(n - 1, _SPARE * k)
        self._near = np.full((n, self._kept), np.inf)
        self._who = np.zeros((n, self._kept), np.int64)

    def keep(self, rows: slice, tile: Floats, columns: slice) -> None:
        """Take a tile's distances into the nearest of these rows."""
        kept = self._kept
        place = np.argpartition(tile, min(kept, tile.shape[1]) - 1, axis=1)[:, :kept]
        both = np.concatenate([self._near[rows], np.take_along_axis(tile, place, 1)], axis=1)
        theirs = np.concatenate([self._who[rows], place + columns.start], axis=1)
        best = np.argpartition(both, kept - 1, axis=1)[:, :kept]
        self._near[rows] = np.take_along_axis(both, best, 1)
        self._who[rows] = np.take_along_axis(theirs, best, 1)

    def radii(self, k: int, members: Members) -> Floats:
        """(R, n): squared, among each row of members; what they are of others says nothing."""
        order = np.argsort(self._near, axis=1)
        near, who = (np.take_along_axis(some, order, 1) for some in (self._near, self._who))
        found = []
        for some in members:
            rank = np.cumsum(some[who], axis=1)
            place = np.where(rank[:, -1] >= k, np.argmax(rank >= k, axis=1), self._kept - 1)
            found.append(near[np.arange(len(near)), place])
        return np.stack(found)


def _squared(products: Floats, left: Floats, right: Floats) -> Floats:
    """Squared distances (rows, columns) of squared lengths; those of equal features are 0."""
    scale: Any = left[:, None] + right[None]
    found: Any = scale - 2 * products
    scale *= _ROUNDING
    found[found <= scale] = 0
    return found


@dataclass(frozen=True)
class _Tally:
    """What lies in neighbourhoods, among each row of members.

    Attributes:
        reals, fakes: (R, n) and (R, m), the members.
        hits: (R, m): real images in whose neighbourhoods a fake lies.
        covered, recalled: (R, n): whether a real image's own has a fake, and whether it lies in one's.
    """

    reals: Members
    fakes: Members
    hits: Numbers
    covered: Members
    recalled: Members

    @classmethod
    def empty(cls, reals: Members, fakes: Members) -> _Tally:
        hits = np.zeros(fakes.shape, np.int64)
        return cls(reals, fakes, hits, np.zeros_like(reals), np.zeros_like(reals))

    def add(self, one: int, side: int, i: Numbers, j: Numbers) -> None:
        """Pairs of real and fake images within the neighbourhood of that side's."""
        if one:
            both = self.reals[one, i] & self.fakes[one, j]
            i, j = i[both], j[both]
        if side == 0:
            self.hits[one] += np.bincount(j, minlength=self.hits.shape[1])
            self.covered[one, i] = True
        else:
            self.recalled[one, i] = True

    def shares(self, one: int, k: int) -> Floats:
        """(4,): SHARES."""
        mine, reals = self.hits[one, self.fakes[one]], self.reals[one]
        covered, recalled = self.covered[one, reals].mean(), self.recalled[one, reals].mean()
        return np.array([(mine > 0).mean(), recalled, mine.mean() / k, covered])
