"""Precision, recall, density and coverage, with standard errors.

The neighbourhood of an image is the ball about its feature that reaches to the k-th nearest other
image of its own side. Precision is the share of fakes in some real image's neighbourhood, density
how many of those a fake lies in, over k; recall is the share of real images in some fake's
neighbourhood (Kynkaanniemi et al. 2019), and coverage the share of real images with a fake in
their own (Naeem et al. 2020).

Distances are float64, in tiles: memory grows with the images, not with their pairs. Few pairs
reach into a neighbourhood; what a jackknife over blocks of images needs is counted of them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.fid.statistics import Features, Floats, Statistics
from imgtool.evaluation.fid.uncertainty import num_blocks

SHARES = ("precision", "recall", "density", "coverage")
_TILE = 1024  # images a side
_SPARE = 4  # times k neighbours are kept, so that k are left where a block is left out
_ROUNDING = 1e-12  # of squared lengths: what a distance of 0 comes out as
_NONE = -1  # in place of a block

Tell = Callable[[int, int], None]
Numbers = NDArray[np.int64]


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
    closed: bool = False,
    tell: Tell = lambda done, total: None,
) -> Neighbourhoods | None:
    """None without features of both sides, or where a side has no k others to an image.

    Args:
        k: at least 1.
        closed: an image on the border of a neighbourhood is inside.
        tell: hears of tiles done and in all.
    """
    if real.features is None or fake.features is None:
        return None
    x, y = _Side.of(real.features), _Side.of(fake.features)
    if min(len(x), len(y)) <= k:
        return None
    blocks = max(1, num_blocks(len(x), len(y)))
    counted = _Counted(tell, *(len(side.pieces) for side in (x, y)))
    radii = [_radii(side, k, blocks, counted) for side in (x, y)]
    found = _shares(x, y, radii, k, closed, counted)
    errors = None
    if blocks > 1:
        spread = found[1:].std(axis=0) * np.sqrt(blocks - 1)
        errors = dict(zip(SHARES, spread.tolist(), strict=True))
    points = sum(int((some[0] == 0).sum()) for some in radii)
    return Neighbourhoods(dict(zip(SHARES, found[0].tolist(), strict=True)), errors, points)


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

    def block_of(self, blocks: int) -> Numbers:
        """(n,): the block of each image."""
        return np.arange(len(self)) * blocks // len(self)


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


def _radii(side: _Side, k: int, blocks: int, counted: _Counted) -> Floats:
    """(1 + B, n): squared, of all images, and without each block."""
    n = len(side)
    kept = min(n - 1, _SPARE * k)
    near = np.full((n, kept), np.inf)
    who = np.full((n, kept), _NONE, np.int64)
    block = side.block_of(blocks)
    for number, rows in enumerate(side.pieces):
        for columns in side.pieces[number:]:
            tile = _squared(side, rows, side, columns)
            if rows == columns:
                np.fill_diagonal(tile, np.inf)
            _keep_nearest(near, who, rows, tile, block[columns])
            if rows != columns:
                _keep_nearest(near, who, columns, tile.T, block[rows])
            counted.one_more()
    order = np.argsort(near, axis=1)
    near, who = np.take_along_axis(near, order, 1), np.take_along_axis(who, order, 1)
    found = [near[:, k - 1]]
    for one in range(blocks if blocks > 1 else 0):
        rank = np.cumsum(who != one, axis=1)
        place = np.where(rank[:, -1] >= k, np.argmax(rank == k, axis=1), kept - 1)
        found.append(near[np.arange(n), place])
    return np.stack(found)


def _keep_nearest(near: Floats, who: Numbers, rows: slice, tile: Floats, block: Numbers) -> None:
    """Take a tile's distances into the nearest of these rows, in place."""
    kept = near.shape[1]
    if tile.shape[1] > kept:
        place = np.argpartition(tile, kept - 1, axis=1)[:, :kept]
        tile, theirs = np.take_along_axis(tile, place, 1), block[place]
    else:
        theirs = np.broadcast_to(block, tile.shape)
    both = np.concatenate([near[rows], tile], axis=1)
    blocks = np.concatenate([who[rows], theirs], axis=1)
    best = np.argpartition(both, kept - 1, axis=1)[:, :kept]
    near[rows] = np.take_along_axis(both, best, 1)
    who[rows] = np.take_along_axis(blocks, best, 1)


def _shares(
    x: _Side, y: _Side, radii: list[Floats], k: int, closed: bool, counted: _Counted
) -> Floats:
    """(1 + B, 4): SHARES of all images, and without each block of both sides."""
    of_real, of_fake = radii
    replicates = len(of_real)
    blocks = max(1, replicates - 1)
    block_x, block_y = x.block_of(blocks), y.block_of(blocks)
    hits = np.zeros((replicates, len(y)), np.int64)  # neighbourhoods that a fake lies in
    covered, recalled = (np.zeros((replicates, len(x)), bool) for _ in range(2))
    inside = np.less_equal if closed else np.less
    widest = of_real.max(axis=0), of_fake.max(axis=0)
    for rows in x.pieces:
        for columns in y.pieces:
            tile = _squared(x, rows, y, columns)
            for reach, radius, by_real in (
                (widest[0][rows, None], of_real, True),
                (widest[1][None, columns], of_fake, False),
            ):
                i, j = np.nonzero(inside(tile, reach))
                distance = tile[i, j]
                i, j = i + rows.start, j + columns.start
                for one in range(replicates):
                    holds = inside(distance, radius[one, i if by_real else j])
                    if one:
                        holds &= (block_x[i] != one - 1) & (block_y[j] != one - 1)
                    if by_real:
                        hits[one] += np.bincount(j[holds], minlength=len(y))
                        covered[one, i[holds]] = True
                    else:
                        recalled[one, i[holds]] = True
            counted.one_more()
    found = np.empty((replicates, 4))
    for one in range(replicates):
        reals = block_x != one - 1 if one else slice(None)
        fakes = block_y != one - 1 if one else slice(None)
        mine = hits[one, fakes]
        found[one] = (
            (mine > 0).mean(), recalled[one, reals].mean(), mine.mean() / k,
            covered[one, reals].mean(),
        )  # fmt: skip
    return found
