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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.fid.statistics import Features, Floats, Statistics
from imgtool.evaluation.fid.uncertainty import FEWEST_BLOCKS

SHARES = ("precision", "recall", "density", "coverage")
_TILE = 1024  # images a side
_SPARE = 5  # times k neighbours are kept: of so many, a half has k but in 1 of 2000 cases
NUM_SPLITS = 25
_SPLIT_STREAM = 9  # apart from other draws of one seed
_ROUNDING = 1e-12  # of squared lengths: what a distance of 0 comes out as

Tell = Callable[[int, int], None]
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
    real: Statistics,
    fake: Statistics,
    k: int,
    *,
    seed: int = 0,
    closed: bool = False,
    tell: Tell = lambda done, total: None,
) -> Neighbourhoods | None:
    """None without features of both sides, or where a side has no k others to an image.

    Args:
        k: at least 1.
        seed: of the halves.
        closed: an image on the border of a neighbourhood is inside.
        tell: hears of tiles done and in all.
    """
    if real.features is None or fake.features is None:
        return None
    x, y = _Side.of(real.features), _Side.of(fake.features)
    if min(len(x), len(y)) <= k:
        return None
    members = _halves(len(x), len(y), k, seed)
    counted = _Counted(tell, *(len(side.pieces) for side in (x, y)))
    radii = [_radii(side, k, some, counted) for side, some in zip((x, y), members, strict=True)]
    found = _shares(x, y, radii, members, k, closed, counted)
    errors = None
    if len(found) > 1:
        spread = np.sqrt(np.square(found[1::2] - found[2::2]).mean(axis=0)) / 2
        errors = dict(zip(SHARES, spread.tolist(), strict=True))
    points = sum(int((some[0] == 0).sum()) for some in radii)
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


class _Counted:
    """Tiles done, of all."""

    def __init__(self, tell: Tell, rows: int, columns: int) -> None:
        self._tell, self._done = tell, 0
        self._total = rows * (rows + 1) // 2 + columns * (columns + 1) // 2 + rows * columns

    def one_more(self) -> None:
        self._done += 1
        self._tell(self._done, self._total)


@dataclass(frozen=True)
class _Side:
    """One side's features, and their squared lengths in float64."""

    features: Features
    lengths: Floats

    @classmethod
    def of(cls, features: Features) -> _Side:
        lengths = [
            np.square(features[at : at + _TILE], dtype=np.float64).sum(axis=1)
            for at in range(0, len(features), _TILE)
        ]
        return cls(features, np.concatenate(lengths))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def pieces(self) -> list[slice]:
        return [slice(at, min(at + _TILE, len(self))) for at in range(0, len(self), _TILE)]


def _squared(x: _Side, rows: slice, y: _Side, columns: slice) -> Floats:
    """Squared distances (rows, columns); those of equal features are 0."""
    left, right = (s.features[i].astype(np.float64) for s, i in ((x, rows), (y, columns)))
    scale: Any = x.lengths[rows, None] + y.lengths[None, columns]
    found = left @ right.T
    found *= -2
    found += scale
    scale *= _ROUNDING
    found[found <= scale] = 0
    return found


def _radii(side: _Side, k: int, members: Members, counted: _Counted) -> Floats:
    """(R, n): squared, among each row of members; what they are of others says nothing."""
    n = len(side)
    kept = min(n - 1, _SPARE * k)
    near = np.full((n, kept), np.inf)
    who = np.zeros((n, kept), np.int64)
    for number, rows in enumerate(side.pieces):
        for columns in side.pieces[number:]:
            tile = _squared(side, rows, side, columns)
            if rows == columns:
                np.fill_diagonal(tile, np.inf)
            _keep_nearest(near, who, rows, tile, columns)
            if rows != columns:
                _keep_nearest(near, who, columns, tile.T, rows)
            counted.one_more()
    order = np.argsort(near, axis=1)
    near, who = np.take_along_axis(near, order, 1), np.take_along_axis(who, order, 1)
    found = []
    for some in members:
        rank = np.cumsum(some[who], axis=1)
        place = np.where(rank[:, -1] >= k, np.argmax(rank >= k, axis=1), kept - 1)
        found.append(near[np.arange(n), place])
    return np.stack(found)


def _keep_nearest(near: Floats, who: Numbers, rows: slice, tile: Floats, columns: slice) -> None:
    """Take a tile's distances into the nearest of these rows, in place."""
    kept = near.shape[1]
    place = np.argpartition(tile, min(kept, tile.shape[1]) - 1, axis=1)[:, :kept]
    both = np.concatenate([near[rows], np.take_along_axis(tile, place, 1)], axis=1)
    theirs = np.concatenate([who[rows], place + columns.start], axis=1)
    best = np.argpartition(both, kept - 1, axis=1)[:, :kept]
    near[rows] = np.take_along_axis(both, best, 1)
    who[rows] = np.take_along_axis(theirs, best, 1)


def _shares(
    x: _Side,
    y: _Side,
    radii: Sequence[Floats],
    members: tuple[Members, Members],
    k: int,
    closed: bool,
    counted: _Counted,
) -> Floats:
    """(R, 4): SHARES among each row of members."""
    inside = np.less_equal if closed else np.less
    tally = _Tally.empty(*members)
    widest = radii[0].max(axis=0)[:, None], radii[1].max(axis=0)[None]
    for rows in x.pieces:
        for columns in y.pieces:
            tile = _squared(x, rows, y, columns)
            for side, reach in enumerate((widest[0][rows], widest[1][:, columns])):
                i, j = np.nonzero(inside(tile, reach))
                distance = tile[i, j]
                i, j = i + rows.start, j + columns.start
                for one, radius in enumerate(radii[side]):
                    holds = inside(distance, radius[i if side == 0 else j])
                    tally.add(one, side, i[holds], j[holds])
            counted.one_more()
    return np.stack([tally.shares(one, k) for one in range(len(radii[0]))])


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
