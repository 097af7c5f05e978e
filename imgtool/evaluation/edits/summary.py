"""Means over pairs of faces, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.metrics import LEVEL, SEED

Values = NDArray[np.float64]
_AT_ONCE = 50  # resamples: N weights each


def summarised(
    of_pairs: Mapping[str, tuple[Values, Values] | Values],
    num_resamples: int,
    *,
    means: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float | None]:
    """NAME, NAME_se, NAME_low, NAME_high of each: as `evaluation.metrics` has them, of pairs.

    Args:
        of_pairs: name -> values (N,), whose mean is wanted; or two of them, whose sums' ratio is.
            All are drawn again together. None where a ratio has nothing below its line.
        means: further names, of the mean of several of these; None where one of them is.
    """
    above = np.stack([v[0] if isinstance(v, tuple) else v for v in of_pairs.values()], axis=1)
    below = np.stack(
        [v[1] if isinstance(v, tuple) else np.ones(len(above)) for v in of_pairs.values()], axis=1
    )
    drawn = _drawn(above, below, num_resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = above.sum(0) / below.sum(0)
    column = {name: place for place, name in enumerate(of_pairs)}
    parts = {name: [column[name]] for name in of_pairs}
    parts |= {name: [column[one] for one in several] for name, several in (means or {}).items()}
    found: dict[str, float | None] = {}
    for name, columns in parts.items():
        found |= _told(name, seen[columns].mean(), drawn[:, columns].mean(1), len(above))
    return found


def _drawn(above: Values, below: Values, num_resamples: int) -> Values:
    """Ratios of the sums over pairs that are drawn again, (num_resamples, number of columns)."""
    count, rng, ratios = len(above), np.random.default_rng(SEED), []
    for start in range(0, num_resamples, _AT_ONCE):
        draws = min(_AT_ONCE, num_resamples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), draws).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append((times @ above) / (times @ below))
    return np.concatenate(ratios)


def _told(name: str, value: float, drawn: Values, count: int) -> dict[str, float | None]:
    known = drawn[np.isfinite(drawn)]
    keys = (f"{name}_se", f"{name}_low", f"{name}_high")
    if not np.isfinite(value):
        return dict.fromkeys((name, *keys))
    if count < 2 or len(known) < 2:
        return {name: float(value), **dict.fromkeys(keys)}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = map(float, (np.std(known, ddof=1), low, high))
    return {name: float(value), **dict(zip(keys, ends, strict=True))}
