"""KID, over all images and over subsets, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imgtool.evaluation.fid.statistics import Features, Floats, Statistics
from imgtool.evaluation.fid.uncertainty import num_blocks

MAX_IMAGES = 10_000  # a side
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
_SUBSET_STREAM = 8  # apart from other draws of one seed
_CHUNK = 1024


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


@dataclass(frozen=True)
class _Sums:
    """Sums of the kernel over blocks, and over subsets, of the images.

    Attributes:
        blocks: (B, B) float64.
        subsets: (S,) float64.
    """

    blocks: Floats
    subsets: Floats


def kernel_distance(real: Statistics, fake: Statistics, seed: int) -> KernelDistance | None:
    """None without features of both sides, or of fewer than 2 images.

    Args:
        seed: of the draw of subsets.
    """
    if real.features is None or fake.features is None:
        return None
    x, y = real.features[:MAX_IMAGES], fake.features[:MAX_IMAGES]
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return None
    size = min(SUBSET_SIZE, n, m)
    generator = np.random.default_rng([_SUBSET_STREAM, seed])
    chosen = [_subsets(count, size, generator) for count in (n, m)]
    blocks = max(1, num_blocks(n, m))
    parted = [_blocks(count, blocks) for count in (n, m)]
    xx, yy, xy = (
        _sums(a, b, parted[i], parted[j], chosen[i], chosen[j])
        for a, b, i, j in ((x, x, 0, 0), (y, y, 1, 1), (x, y, 0, 1))
    )
    subsets = (xx.subsets + yy.subsets) / (size * (size - 1)) - 2 * xy.subsets / size**2
    counts = np.stack([part.sum(axis=1) for part in parted])
    value = float(_of_kept(xx.blocks, yy.blocks, xy.blocks, counts, np.ones((1, blocks)))[0])
    variance = None
    if blocks > 1:
        variance = _variance(xx.blocks, yy.blocks, xy.blocks, counts, value)
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


def _sums(
    x: Features, y: Features, rows: Floats, columns: Floats, some: Floats, others: Floats
) -> _Sums:
    """Of k(x_i, y_j); of k(x_i, x_i) nothing, where both are one set."""
    blocks, subsets = np.zeros((len(rows), len(columns))), np.zeros(len(some))
    for start in range(0, len(x), _CHUNK):
        left, i = x[start : start + _CHUNK].astype(np.float64), slice(start, start + _CHUNK)
        for other in range(start if x is y else 0, len(y), _CHUNK):
            right, j = y[other : other + _CHUNK].astype(np.float64), slice(other, other + _CHUNK)
            kernel: Any = left @ right.T / x.shape[1] + 1
            kernel *= kernel * kernel
            if x is y and start == other:
                np.fill_diagonal(kernel, 0)
            part = rows[:, i] @ kernel @ columns[:, j].T
            chosen = np.einsum("sj,sj->s", some[:, i] @ kernel, others[:, j])
            if x is y and start != other:  # the pairs below the diagonal as well
                part, chosen = part + part.T, 2 * chosen
            blocks += part
            subsets += chosen
    return _Sums(blocks, subsets)


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
