"""The Bjontegaard delta rate: how many per cent more bits one codec needs than another.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001
(cubic); the piecewise cubic (pchip) is that of JCT-VC's spreadsheets; akima as recommended by
C. Herglotz et al., "Beyond Bjontegaard", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from imgtool.errors import NoAnswer
from imgtool.evaluation.rate_distortion.curves import Curve

Method = Literal["pchip", "akima", "cubic"]
FEWEST_POINTS: dict[Method, int] = {"pchip": 2, "akima": 3, "cubic": 4}
Floats = NDArray[np.float64]
Integral = Callable[[float, float], float]


@dataclass(frozen=True)
class BdRate:
    """How `test` compares with `anchor`.

    Attributes:
        percent: bits that test needs more (less where negative) at equal quality, on average over
            the overlap, in the logarithm of the rate.
        overlap_db: lowest and highest quality that both curves have.
        anchor_share, test_share: part of each curve's own range of quality in the overlap.
    """

    percent: float
    overlap_db: tuple[float, float]
    anchor_share: float
    test_share: float


def bd_rate(anchor: Curve, test: Curve, method: Method = "pchip") -> BdRate:
    """Compare two curves of the same metric; they may have unequal numbers of points.

    The logarithm of the rate is interpolated over quality: `pchip` and `akima` through every
    point, `cubic` one polynomial of degree 3 by least squares.

    Raises:
        NoAnswer: too few points, a curve on which more bits give no more quality, no overlap, or
            points so close that what is fitted to them runs away.
    """
    for curve in (anchor, test):
        _check(curve, method)
    low = max(anchor.quality_db[0], test.quality_db[0])
    high = min(anchor.quality_db[-1], test.quality_db[-1])
    if not high > low:
        raise NoAnswer(
            f"{anchor.name} ({_range(anchor)}) and {test.name} ({_range(test)}) have no quality "
            "in common",
            hint="a BD-rate is an average over the qualities of both; measure further points",
        )
    try:
        with np.errstate(all="ignore"):  # what is not finite is seen below
            integrals = [_integral(curve, method)(low, high) for curve in (anchor, test)]
        percent = 100 * math.expm1((integrals[1] - integrals[0]) / (high - low))
    except (ValueError, ArithmeticError):
        percent = math.inf
    if not math.isfinite(percent):
        raise NoAnswer(
            f"{method} through the points of {anchor.name} and {test.name} runs away",
            hint="points are too close to each other: leave one out, or take --method pchip",
        )
    return BdRate(
        percent=percent,
        overlap_db=(low, high),
        anchor_share=(high - low) / (anchor.quality_db[-1] - anchor.quality_db[0]),
        test_share=(high - low) / (test.quality_db[-1] - test.quality_db[0]),
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


def _integral(curve: Curve, method: Method) -> Integral:
    """Integral of ln(rate) over quality."""
    quality: Floats = np.asarray(curve.quality_db, np.float64)
    rate: Floats = np.log(np.asarray(curve.bpp, np.float64))
    if method == "cubic":
        # Fitted around 0: powers of 40 dB would cost half of the digits.
        middle = float(quality.mean())
        found, _, rank, _, _ = np.polyfit(quality - middle, rate, 3, full=True)
        if rank < len(found):
            raise ValueError("points that are one to the last digit make no polynomial of degree 3")
        whole = np.polyint(found)
        return lambda a, b: float(np.polyval(whole, b - middle) - np.polyval(whole, a - middle))
    kind = PchipInterpolator if method == "pchip" else Akima1DInterpolator
    spline = kind(quality, rate)
    return lambda a, b: float(spline.integrate(a, b))
