"""Inner products between two sides' features, tile by tile, for every measure that needs them.

They are what distances between features cost; measures that are wanted together share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from imgtool.evaluation.fid.statistics import Features, Floats

TILE = 1024  # images a side
PAIRS = ("xx", "yy", "xy")  # in the order in which they come

Tell = Callable[[int, int], None]


class Visitor(Protocol):
    """Takes tiles."""

    def take(self, pair: str, rows: slice, columns: slice, products: Floats) -> None:
        """Look at a tile.

        Args:
            pair: one of PAIRS; of `xx` and `yy` those on the diagonal and above it alone come.
            rows, columns: which images it is of.
            products: float64, not to be changed.
        """


def visit(
    x: Features,
    y: Features,
    visitors: Sequence[Visitor],
    tell: Tell = lambda done, total: None,
) -> None:
    """Show every tile to each.

    Args:
        tell: hears of tiles done and in all.
    """
    sides = {"x": x, "y": y}
    tiles = [
        (pair, rows, columns)
        for pair in PAIRS
        for rows in pieces(len(sides[pair[0]]))
        for columns in pieces(len(sides[pair[1]]))
        if pair == "xy" or rows.start <= columns.start
    ]
    for done, (pair, rows, columns) in enumerate(tiles, 1):
        left, right = sides[pair[0]][rows], sides[pair[1]][columns]
        products = left.astype(np.float64) @ right.astype(np.float64).T
        for visitor in visitors:
            visitor.take(pair, rows, columns, products)
        tell(done, len(tiles))


def pieces(count: int) -> list[slice]:
    """Runs of TILE images, and what is left."""
    return [slice(at, min(at + TILE, count)) for at in range(0, count, TILE)]
