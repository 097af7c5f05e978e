"""Means over pairs of faces, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.metrics import LEVEL, SEED

Values = NDArray[np.float64]
_AT_ONCE = 50  # resamples: N weights each


def summarised(
    of_pairs: Mapping[str, tuple[Values, Values] | Values], num_resamples: int
) -> dict[str, float | None]:
    """NAME, NAME_se, NAME_low, NAME_high of each: as `evaluation.metrics` has them, of pairs.

    Args:
        of_pairs: name -> values (N,), whose mean is wanted; or two of them, whose sums' ratio is.
            All are drawn again together. None where a ratio has nothing below its line.
    """
    above = np.stack([v[0] if isinstance(v, tuple) else v for v in of_pairs.values()], axis=1)
    below = np.stack(
        [v[1] if isinstance(v, tuple) else np.ones(len(above)) for v in of_pairs.values()], axis=1
    )
    count = len(above)
    rng, ratios = np.random.default_rng(SEED), []
    for start in range(0, num_resamples, _AT_ONCE):
        draws = min(_AT_ONCE, num_resamples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), draws).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append((times @ above) / (times @ below))
    drawn = np.concatenate(ratios)
    found: dict[str, float | None] = {}
    for column, name in enumerate(of_pairs):
        total = below[:, column].sum()
        found[name] = float(above[:, column].sum() / total) if total else None
        known = drawn[:, column][np.isfinite(drawn[:, column])]
        keys = (f"{name}_se", f"{name}_low", f"{name}_high")
        if count < 2 or len(known) < 2 or not total:
            found |= dict.fromkeys(keys)
            continue
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = map(float, (np.std(known, ddof=1), low, high))
        found |= dict(zip(keys, ends, strict=True))
    return found
