"""The Bjontegaard delta rate: how many per cent more bits one codec needs than another.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001
(cubic); the piecewise cubic (pchip) is that of JCT-VC's spreadsheets; akima as recommended by
C. Herglotz et al., "Beyond Bjontegaard", 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator, PPoly

from imgtool.errors import NoAnswer
from imgtool.evaluation.rate_distortion.curves import Curve

Method = Literal["pchip", "akima", "cubic"]
FEWEST_POINTS: dict[Method, int] = {"pchip": 2, "akima": 3, "cubic": 4}
WANTED_POINTS = 4  # of VCEG-M33
ROUNDING = 1e-9  # of the steepest slope: a flat piece that falls by less does not turn
Floats = NDArray[np.float64]


class NoOverlap(NoAnswer):
    """Two curves have no quality in common."""


@dataclass(frozen=True)
class BdRate:
    """How `test` compares with `anchor`.

    Attributes:
        percent: bits that test needs more (less where negative) at equal quality, on average over
            the overlap, in the logarithm of the rate.
        overlap_db: lowest and highest quality that both curves have.
        anchor_share, test_share: part of each curve's own range of quality in the overlap.
        notes: what was done with a curve of fewer than four points, for people.
    """

    percent: float
    overlap_db: tuple[float, float]
    anchor_share: float
    test_share: float
    notes: tuple[str, ...] = ()


def bd_rate(anchor: Curve, test: Curve, method: Method = "pchip") -> BdRate:
    """Compare two curves of the same metric; they may have unequal numbers of points.

    The logarithm of the rate is interpolated over quality: `pchip` and `akima` through every
    point, `cubic` one polynomial of degree 3 by least squares. A BD-rate needs four points; with
    fewer there is one where the method allows it, and it says so.

    Raises:
        NoOverlap: no quality in common.
        NoAnswer: too few points, a curve on which more bits give no more quality, points so close
            that what is fitted to them runs away, or a fit that turns round inside the overlap:
            more quality at fewer bits, which no point says.
    """
    for curve in (anchor, test):
        _check(curve, method)
    low = max(anchor.quality_db[0], test.quality_db[0])
    high = min(anchor.quality_db[-1], test.quality_db[-1])
    if not high > low:
        raise NoOverlap(
            f"{anchor.name} ({_range(anchor)}) and {test.name} ({_range(test)}) have no quality "
            "in common",
            hint="a BD-rate is an average over the qualities of both; measure further points",
        )
    try:
        with np.errstate(all="ignore"):  # what is not finite is seen below
            fits = [_fit(curve, method) for curve in (anchor, test)]
            integrals = [float(fit.integrate(low, high)) for fit in fits]
        percent = 100 * math.expm1((integrals[1] - integrals[0]) / (high - low))
    except (ValueError, ArithmeticError):
        percent = math.inf
    if not math.isfinite(percent):
        raise NoAnswer(
            f"{method} through the points of {anchor.name} and {test.name} runs away",
            hint="points are too close to each other: leave one out, or take --method pchip",
        )
    for curve, fit in zip((anchor, test), fits, strict=True):
        _refuse_turning(curve, fit, low, high, method)
    return BdRate(
        percent=percent,
        overlap_db=(low, high),
        anchor_share=(high - low) / (anchor.quality_db[-1] - anchor.quality_db[0]),
        test_share=(high - low) / (test.quality_db[-1] - test.quality_db[0]),
        notes=tuple(_of_few(curve, method) for curve in (anchor, test) if _is_short(curve)),
    )


def _is_short(curve: Curve) -> bool:
    return len(curve.bpp) < WANTED_POINTS


def _of_few(curve: Curve, method: Method) -> str:
    count = len(curve.bpp)
    what = "a straight line was drawn" if count == 2 else f"{method} went"
    return (
        f"{curve.name} has {count} points, and a BD-rate needs {WANTED_POINTS}: {what} through them"
    )


def _refuse_turning(curve: Curve, fit: PPoly, low: float, high: float, method: Method) -> None:
    """A rate that falls while quality rises is an artefact of the fit: the points rise."""
    slope = fit.derivative()
    turns = [float(x) for x in slope.derivative().roots(extrapolate=False) if low < x < high]
    inner = [float(x) for x in fit.x if low < x < high]
    at = np.array([low, *turns, *inner, high])
    with np.errstate(all="ignore"):
        falls = at[slope(at) < -ROUNDING * np.abs(slope(at)).max()]
    if len(falls):
        raise NoAnswer(
            f"{method} through the points of {curve.name} turns round inside the overlap: at "
            f"{falls[0]:.2f} dB its rate falls while quality rises",
            hint="--method pchip never does; or leave a point out that is far from the others",
        )


def _check(curve: Curve, method: Method) -> None:
    fewest = FEWEST_POINTS[method]
    if len(curve.bpp) < fewest:
        count = len(curve.bpp)
        raise NoAnswer(
            f"{curve.name} has {count} point{'' if count == 1 else 's'}; {method} needs {fewest}",
            hint="measure checkpoints of several lambdas in one `imgtool eval rd`",
        )
    points = list(zip(curve.bpp, curve.quality_db, strict=True))
    for (rate, quality), (next_rate, next_quality) in zip(points, points[1:], strict=False):
        if not (next_rate > rate and next_quality > quality):
            raise NoAnswer(
                f"{curve.name} is not monotone: {quality:.4g} dB at {rate:.4g} bpp, "
                f"{next_quality:.4g} dB at {next_rate:.4g} bpp",
                hint="one of the two is no better choice than the other: leave it out",
            )


def _range(curve: Curve) -> str:
    return f"{curve.quality_db[0]:.2f} to {curve.quality_db[-1]:.2f} dB"


def _fit(curve: Curve, method: Method) -> PPoly:
    """ln(rate) over quality (dB), piecewise."""
    quality: Floats = np.asarray(curve.quality_db, np.float64)
    rate: Floats = np.log(np.asarray(curve.bpp, np.float64))
    if method == "cubic":
        # Fitted around 0: powers of 40 dB would cost half of the digits.
        middle = float(quality.mean())
        found, _, rank, _, _ = np.polyfit(quality - middle, rate, 3, full=True)
        if rank < len(found):
            raise ValueError("points that are one to the last digit make no polynomial of degree 3")
        ends = quality[[0, -1]]
        about = np.poly1d(found)
        # The same polynomial in powers of the distance from the lowest point.
        terms = [about.deriv(k)(ends[0] - middle) / math.factorial(k) for k in (3, 2, 1)]
        return PPoly(np.array([*terms, about(ends[0] - middle)])[:, None], ends)
    kind = PchipInterpolator if method == "pchip" else Akima1DInterpolator
    return kind(quality, rate)
