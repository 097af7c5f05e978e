"""KID, over all images and over subsets, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imgtool.evaluation.fid.products import PAIRS, visit
from imgtool.evaluation.fid.statistics import Floats, Statistics
from imgtool.evaluation.fid.uncertainty import num_blocks

MAX_IMAGES = 10_000  # a side
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
_SUBSET_STREAM = 8  # apart from other draws of one seed


@dataclass(frozen=True)
class KernelDistance:
    """KID (Binkowski et al. 2018): unbiased squared MMD of the kernel (x.y / d + 1)^3.

    Attributes:
        value: over all images (the first 10,000 of each side); may be slightly negative.
        error: its standard error; None of fewer than 20 images.
        subsets: mean over 100 pairs of subsets of 1000 images, or of all where there are fewer.
        subsets_error: its standard error, of which the draw of subsets is a part.
        subsets_spread: standard deviation over the subsets, as other tools print it: no error of
            the mean.
    """

    value: float
    error: float | None
    subsets: float
    subsets_error: float | None
    subsets_spread: float


def kernel_distance(real: Statistics, fake: Statistics, seed: int) -> KernelDistance | None:
    """As `KernelSums`, alone."""
    found = KernelSums.of(real, fake, seed)
    if found is None:
        return None
    assert real.features is not None
    assert fake.features is not None
    visit(real.features[:MAX_IMAGES], fake.features[:MAX_IMAGES], [found])
    return found.result()


class KernelSums:
    """Sums of the kernel over blocks and subsets of images, of the products that it is shown.

    Args:
        n, m: images of the sides.
        width: numbers of a feature.
        seed: of the draw of subsets.
    """

    most: int | None = MAX_IMAGES  # images that it looks at

    def __init__(self, n: int, m: int, width: int, seed: int) -> None:
        counts = self._counts = [min(n, MAX_IMAGES), min(m, MAX_IMAGES)]
        self._width, self._size = width, min(SUBSET_SIZE, *counts)
        generator = np.random.default_rng([_SUBSET_STREAM, seed])
        self._chosen = [_subsets(count, self._size, generator) for count in counts]
        blocks = max(1, num_blocks(*counts))
        self._parted = [_blocks(count, blocks) for count in counts]
        self._of_blocks = {pair: np.zeros((blocks, blocks)) for pair in PAIRS}
        self._of_subsets = {pair: np.zeros(NUM_SUBSETS) for pair in PAIRS}

    @classmethod
    def of(cls, real: Statistics, fake: Statistics, seed: int) -> KernelSums | None:
        """None without features of both sides, or of fewer than 2 images."""
        if real.features is None or fake.features is None:
            return None
        n, m = len(real.features), len(fake.features)
        return cls(n, m, real.features.shape[1], seed) if min(n, m) >= 2 else None

    def take(self, pair: str, rows: slice, columns: slice, products: Floats) -> None:
        """Add k(x_i, y_j); of k(x_i, x_i) nothing."""
        x, y = (int(side == "y") for side in pair)
        kernel: Any = products[: max(0, self._counts[x] - rows.start)]
        kernel = kernel[:, : max(0, self._counts[y] - columns.start)] / self._width + 1
        kernel *= kernel * kernel
        if x == y and rows == columns:
            np.fill_diagonal(kernel, 0)
        part = self._parted[x][:, rows] @ kernel @ self._parted[y][:, columns].T
        inside = np.einsum(
            "sj,sj->s", self._chosen[x][:, rows] @ kernel, self._chosen[y][:, columns]
        )
        if x == y and rows != columns:  # the pairs below the diagonal as well
            part, inside = part + part.T, 2 * inside
        self._of_blocks[pair] += part
        self._of_subsets[pair] += inside

    def result(self) -> KernelDistance:
        """Once all tiles have come."""
        size, of = self._size, self._of_subsets
        subsets = (of["xx"] + of["yy"]) / (size * (size - 1)) - 2 * of["xy"] / size**2
        counts = np.stack([part.sum(axis=1) for part in self._parted])
        xx, yy, xy = (self._of_blocks[pair] for pair in PAIRS)
        blocks = len(xx)
        value = float(_of_kept(xx, yy, xy, counts, np.ones((1, blocks)))[0])
        variance = _variance(xx, yy, xy, counts, value) if blocks > 1 else None
        drawn = float(subsets.var(ddof=1)) / NUM_SUBSETS
        return KernelDistance(
            value,
            None if variance is None else float(np.sqrt(variance)),
            float(subsets.mean()),
            None if variance is None else float(np.sqrt(variance + drawn)),
            float(subsets.std()),
        )


def _subsets(count: int, size: int, generator: np.random.Generator) -> Floats:
    """(S, count): 1 where an image is in a subset; no image twice in one."""
    found = np.zeros((NUM_SUBSETS, count))
    for row in found:
        row[generator.choice(count, size, replace=False)] = 1
    return found


def _blocks(count: int, blocks: int) -> Floats:
    """(B, count): 1 where an image is in a block."""
    found = np.zeros((blocks, count))
    found[np.arange(count) * blocks // count, np.arange(count)] = 1
    return found


def _of_kept(xx: Floats, yy: Floats, xy: Floats, counts: Floats, kept: Floats) -> Floats:
    """(K,): KID of the blocks that each row of kept (K, B) marks with 1."""
    n, m = kept @ counts[0], kept @ counts[1]
    inside_x, inside_y, across = (((kept @ sums) * kept).sum(axis=1) for sums in (xx, yy, xy))
    found = inside_x / (n * (n - 1)) + inside_y / (m * (m - 1)) - 2 * across / (n * m)
    return np.asarray(found)


def _variance(xx: Floats, yy: Floats, xy: Floats, counts: Floats, value: float) -> float:
    """Of KID: jackknife over blocks of both sides, less what it counts twice.

    The quadratic part is known from pairs of blocks (Efron & Stein 1981, section 4).
    """
    b = len(xx)
    i, j = np.triu_indices(b, 1)
    without = 1 - np.eye(b)
    one = _of_kept(xx, yy, xy, counts, without)
    both = _of_kept(xx, yy, xy, counts, without[i] * without[j])
    quadratic = b * value - (b - 1) * (one[i] + one[j]) + (b - 2) * both
    total = float(one.var()) * (b - 1)
    return total - min(float(quadratic.var()) / 2, total / 2)
