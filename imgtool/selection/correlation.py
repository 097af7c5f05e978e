"""How far cheap measures of a latent rank autoencoders as generation does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from imgtool.selection.columns import GFID, direction
from imgtool.selection.records import Candidate, Selection

# Measures that cost no generative model, as they begin; costs and counts are none.
_BEGINNINGS = (
    *("val_mse", "val_psnr", "val_ssim", "val_ms_ssim", "val_lpips", "val_highpass_psnr"),
    *("val_seg_boundary_miou", "val_kld", "kld", "midpoint_energy", "end_energy", "path_length"),
    *("active_share", "spectrum", "high_frequency", "equivariance", "flow_floor", "latent_dims"),
    *("latent_positions", "fid", f"{GFID}_floor"),
)
_ENDS = ("_se", "_low", "_high")  # of what goes with a measure
_EXACT = 7  # points whose 5,040 pairings are all looked at
_DRAWS = 9999  # of more points
FEW = 3  # with fewer there is no order to speak of


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """One measure's order beside that of gFID.

    Attributes:
        measure: its name.
        num: autoencoders that have both.
        spearman, kendall: 1 where the measure ranks as gFID does, -1 where it ranks the other way
            round. A measure whose name does not tell which way it is better counts as better
            where it is lower.
        interval: of Spearman's, at 95 %; None with fewer than five.
        p: two-sided, of Kendall's, by pairings.
    """

    measure: str
    num: int
    spearman: float
    kendall: float
    interval: tuple[float, float] | None
    p: float


def correlations(selection: Selection) -> list[Correlation]:
    """Of every cheap measure that at least three autoencoders have, the closest to gFID first."""
    candidates = [v.candidate for v in selection.verdicts if GFID in v.candidate.metrics]
    names = dict.fromkeys(name for one in candidates for name in one.metrics if is_cheap(name))
    if "val_mse" in names:
        names.pop("val_psnr", None)  # nearly the same order told twice
    found = [one for name in names if (one := _correlation(candidates, name)) is not None]
    return sorted(found, key=lambda one: (-abs(one.kendall), -abs(one.spearman), one.measure))


def is_cheap(metric: str) -> bool:
    """Whether it is a measure of a latent that needs no generative model."""
    return metric.startswith(_BEGINNINGS) and not metric.endswith(_ENDS) and metric != GFID


def _correlation(candidates: Sequence[Candidate], measure: str) -> Correlation | None:
    """None where too few have it, or one of both is the same everywhere."""
    sign = -1.0 if direction(measure) == "max" else 1.0
    pairs = [
        (sign * one.metrics[measure], one.metrics[GFID])
        for one in candidates
        if measure in one.metrics
    ]
    if len(pairs) < FEW or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    x, y = np.array(pairs, dtype=np.float64).T
    rho = float(stats.spearmanr(x, y).statistic)
    return Correlation(
        measure=measure,
        num=len(pairs),
        spearman=rho,
        kendall=float(stats.kendalltau(x, y).statistic),
        interval=_interval(rho, len(pairs)),
        p=_p(x, y),
    )


def _p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided: how often chance alone pairs them as closely, ties and all; of few points over
    every pairing, of more over random ones."""
    order = np.sign(y[:, None] - y)

    def concordance(permuted: np.ndarray, axis: int = -1) -> np.ndarray:
        """Tau but for a factor that no pairing changes."""
        moved = np.moveaxis(permuted, axis, -1)
        return np.asarray(
            (np.sign(moved[..., :, None] - moved[..., None, :]) * order).sum((-2, -1))
        )

    found = stats.permutation_test(  # type: ignore[attr-defined]
        (x,),
        concordance,
        vectorized=True,
        permutation_type="pairings",
        n_resamples=math.factorial(len(x)) if len(x) <= _EXACT else _DRAWS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _interval(rho: float, num: int) -> tuple[float, float] | None:
    """Of Spearman's rho at 95 %, by Fisher's z with the error of Bonett and Wright (2000); of 1
    as of what lies half a step below it, the steps being those of so few ranks."""
    if num < 5:
        return None
    most = 1 - 6 / (num * (num**2 - 1))
    z = math.atanh(max(-most, min(most, rho)))
    reach = float(special.ndtri(0.975)) * math.sqrt((1 + rho**2 / 2) / (num - 3))
    return math.tanh(z - reach), math.tanh(z + reach)


def told(found: Sequence[Correlation]) -> str:
    """How much so few points can say, in a sentence or two."""
    num = max(one.num for one in found)
    least = 2 / math.factorial(num)
    words = f"n = {num}: even the very same order has p = {least:.2g} (two-sided)"
    if least > 0.05:
        words += ", so that no measure can be told from chance here: it says little"
    elif num < 10:
        words += f", and the intervals are wide: n = {num} says little"
    if len(found) > 1:
        chance = 1 - (1 - 0.05) ** len(found)
        words += (
            f". Of {len(found)} measures without any bearing one comes out with p < 0.05 in "
            f"up to {chance:.0%} of studies"
        )
    return f"{words}."
