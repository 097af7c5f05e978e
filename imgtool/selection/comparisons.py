"""Experiments against each other under noise: possible bests, pairs, shares, seeds to add.

Critical values are Dunnett's where one variance serves all, else from a parametric bootstrap of
Welch's statistic (Krishnamoorthy, Lu & Mathew 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
from scipy import optimize, special

from imgtool.selection.noise import DRAWS, TINY, Noise, Sample, chi_square_mean

LEVEL = 0.05  # of a comparison
MOST_SEEDS = 100  # further seeds that anybody would run
MOST_SIMULATED = 40  # experiments whose variances differ
MOST_DOF = 1e9  # stands for infinitely many


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two experiments that were named before anybody looked: first minus second.

    `difference` and `interval` (95 %) are ratios, first over second, where the noise is of
    logarithms.
    """

    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def is_different(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which experiments may be the best, with 95 % confidence for all of them at once.

    Attributes:
        best: the one that looks best.
        p: by name, how often chance alone would put the best of the others this far ahead.
        bounds: by name, simultaneous bounds of (experiment - best of the others), in the metric's
            direction; a ratio where the noise is of logarithms. A bound of 0 (ratio 1) on the bad
            side shows that it is the best, on the good side that it is not.
    """

    best: str
    p: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]

    @property
    def possible(self) -> tuple[str, ...]:
        """Those that chance could have kept from looking best."""
        return tuple(name for name, p in self.p.items() if p >= LEVEL or name == self.best)


def differ(first: Sample, second: Sample, noise: Noise) -> Difference:
    """A t test of two experiments, Welch's where variances differ.

    For a pair that was chosen beforehand; against the one that looks best, see `rivals`. An
    experiment with one seed borrows the phase's noise.

    Raises:
        ValueError: nothing is known of the noise.
    """
    gap = noise.mean(first) - noise.mean(second)
    parts = [(v / s.num_seeds, d) for s in (first, second) for v, d in [noise.of(s.name)]]
    variance = sum(part for part, _ in parts)
    dof = noise.dof
    if noise.own:  # Welch-Satterthwaite
        dof = variance**2 / sum(part**2 / dof for part, dof in parts)
    error = math.sqrt(variance)
    reach = _t_quantile(1 - LEVEL / 2, dof) * error
    low, high = noise.unscaled(np.array([gap - reach, gap + reach])).tolist()
    p = float(2 * special.stdtr(min(dof, MOST_DOF), -abs(gap) / error))
    return Difference(difference=float(noise.unscaled(gap)), interval=(low, high), p=p)


def interval(sample: Sample, noise: Noise, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an experiment's mean over seeds (geometric where logarithms are
    compared), in the metric's unit.

    Raises:
        ValueError: nothing is known of the noise.
    """
    variance, dof = noise.of(sample.name)
    reach = _t_quantile((1 + level) / 2, dof) * math.sqrt(variance / sample.num_seeds)
    mean = noise.mean(sample)
    low, high = noise.unscaled(np.array([mean - reach, mean + reach])).tolist()
    return low, high


def rivals(
    samples: Sequence[Sample], noise: Noise, *, minimize: bool, level: float = LEVEL
) -> Comparison:
    """Hsu's comparison with the best: whom chance may have kept from looking best.

    An experiment is ruled out where some other is better by more than the one-sided Dunnett bound
    with it as the control, so that the truly best is ruled out with probability `level` at most
    (Hsu 1984, constrained intervals).

    Raises:
        ValueError: nothing is known of the noise.
    """
    names = [sample.name for sample in samples]
    goodness = np.array([noise.mean(sample) for sample in samples]) * (-1 if minimize else 1)
    best = names[int(goodness.argmax())]
    if len(samples) == 1:
        noise.of(best)
        return Comparison(best=best, p={best: 1.0}, bounds={best: (math.nan, math.nan)})
    controls = [_Control(index, samples, noise) for index in range(len(samples))]
    errors = np.array([control.errors for control in controls])
    gaps = goodness[None, :] - goodness[:, None]  # gaps[i, j]: how far j is ahead of i
    p = {}
    critical = np.empty(len(samples))
    for index, control in enumerate(controls):
        others = np.arange(len(samples)) != index
        p[names[index]] = control.p(float((gaps[index] / errors[index])[others].max()))
        critical[index] = control.critical(level)
    possible = np.array([p[name] >= level or name == best for name in names])
    bounds = {}
    for index, name in enumerate(names):
        others = np.arange(len(samples)) != index
        upper = max(0.0, float((errors[index] * critical[index] - gaps[index])[others].min()))
        ahead = possible & others
        lower = 0.0
        if ahead.any():
            lower = min(0.0, float((-gaps[index] - errors[index] * critical)[ahead].min()))
        ends = (-upper, -lower) if minimize else (lower, upper)
        low, high = noise.unscaled(np.array(ends)).tolist()
        bounds[name] = (low, high)
    return Comparison(best=best, p=p, bounds=bounds)


def reaches(samples: Sequence[Sample], noise: Noise, *, level: float = LEVEL) -> np.ndarray:
    """How far the j-th has to be ahead of the i-th to rule it out, (n, n), as compared.

    It does not depend on the means: by it alone the possible bests of many reruns are found.
    Where variances differ and experiments are many, by Bonferroni, which is wider and quick.

    Raises:
        ValueError: nothing is known of the noise.
    """
    if not noise.is_equal and len(samples) > MOST_SIMULATED:
        variances, dofs = np.array([noise.of(sample.name) for sample in samples]).T
        parts = variances / np.array([sample.num_seeds for sample in samples])
        squares = parts[:, None] + parts
        freedom = squares**2 / ((parts**2 / dofs)[:, None] + parts**2 / dofs)
        return special.stdtrit(freedom, 1 - level / (len(samples) - 1)) * np.sqrt(squares)
    controls = [_Control(index, samples, noise) for index in range(len(samples))]
    return np.array([control.errors * control.critical(level) for control in controls])


def shares(
    samples: Sequence[Sample],
    noise: Noise,
    choose: Callable[[Mapping[str, float]], str | None],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """In what share of reruns of the whole phase each experiment would be chosen.

    Parametric: a rerun's mean lies around the observed one with the variance of both, 2 s^2 / n,
    s drawn by its chi-square.

    Args:
        choose: the whole rule (thresholds, frontiers, tie-breaks): name -> mean over seeds in the
            metric's unit, to the chosen name, or None.

    Raises:
        ValueError: nothing is known of the noise.
    """
    rng = np.random.default_rng(seed)
    means = np.array([noise.mean(sample) for sample in samples])
    counts = np.array([sample.num_seeds for sample in samples])
    variances, dofs = np.array([noise.of(sample.name) for sample in samples]).T
    drawn = _drawn(rng, variances, dofs, resamples, noise)
    reruns = means + rng.standard_normal(drawn.shape) * np.sqrt(2 * drawn / counts)
    found = dict.fromkeys((sample.name for sample in samples), 0)
    for rerun in noise.unscaled(reruns):
        name = choose(dict(zip(found, rerun.tolist(), strict=True)))
        if name is not None:
            found[name] += 1
    return {name: count / resamples for name, count in found.items()}


def seeds_needed(samples: Sequence[Sample], noise: Noise, *, minimize: bool) -> int | None:
    """How many further seeds of each possible best would tell them apart, if they differ by what
    they seem to; 0 if they are told apart, None if `MOST_SEEDS` would not do.

    Raises:
        ValueError: nothing is known of the noise.
    """
    possible = rivals(samples, noise, minimize=minimize).possible
    left = [sample for sample in samples if sample.name in possible]
    if len(left) < 2:
        return 0
    means = sorted((noise.mean(sample) for sample in left), reverse=not minimize)
    gap = abs(means[1] - means[0])
    variance = max(noise.of(sample.name)[0] for sample in left)
    seeds = min(sample.num_seeds for sample in left)
    repeats = sum(sample.num_seeds for sample in left) - len(left)
    for more in range(1, MOST_SEEDS + 1):
        dof = noise.dof if noise.source != "repeats" else max(1, repeats + more * len(left))
        critical = _dunnett_critical((math.sqrt(0.5),) * (len(left) - 1), dof, LEVEL)
        if gap > critical * math.sqrt(2 * variance / (seeds + more)):
            return more
    return None


class _Control:
    """One experiment as the control of all others: one-sided bounds of how far they are ahead."""

    def __init__(self, index: int, samples: Sequence[Sample], noise: Noise) -> None:
        counts = np.array([sample.num_seeds for sample in samples], dtype=np.float64)
        variances, dofs = np.array([noise.of(sample.name) for sample in samples]).T
        self._index, self._noise = index, noise
        self._parts, self._dofs = variances / counts, dofs
        self.errors = np.sqrt(self._parts[index] + self._parts)
        others = np.delete(counts, index)
        self._lambdas = tuple(np.sqrt(others / (counts[index] + others)).tolist())

    def p(self, statistic: float) -> float:
        """How often all equal experiments would put one this far ahead of the control."""
        if self._noise.is_equal:
            return 1 - _dunnett_cdf(statistic, self._lambdas, self._noise.dof)
        return float((self._simulated >= statistic).mean())

    def critical(self, level: float) -> float:
        if self._noise.is_equal:
            return _dunnett_critical(self._lambdas, self._noise.dof, level)
        return float(np.quantile(self._simulated, 1 - level))

    @cached_property
    def _simulated(self) -> np.ndarray:
        """The largest of Welch's statistics where all means are equal."""
        rng = np.random.default_rng(self._index)
        shape = (DRAWS, len(self._parts))
        means = rng.standard_normal(shape) * np.sqrt(self._parts)
        parts = chi_square_mean(rng, self._dofs, shape) * self._parts
        control = [self._index]
        statistics = (means - means[:, control]) / np.sqrt(parts + parts[:, control])
        return np.delete(statistics, self._index, 1).max(1)


def _drawn(
    rng: np.random.Generator,
    variances: np.ndarray,
    dofs: np.ndarray,
    count: int,
    noise: Noise,
) -> np.ndarray:
    """Variances that the estimates may stand for, (count, experiments); one draw where one
    variance serves all."""
    shape = (count, 1) if noise.is_equal else (count, len(variances))
    factor = chi_square_mean(rng, dofs[: shape[1]], shape)
    return variances / np.maximum(factor, TINY)


def _t_quantile(p: float, dof: float) -> float:
    return float(special.stdtrit(min(dof, MOST_DOF), p))


@lru_cache(maxsize=256)
def _dunnett_critical(lambdas: tuple[float, ...], dof: float, level: float) -> float:
    """The bound that the largest of one-sided Dunnett statistics passes with probability level."""

    def excess(bound: float) -> float:
        return _dunnett_cdf(bound, lambdas, dof) - (1 - level)

    top = _t_quantile(1 - level / (2 * len(lambdas)), dof) + 1  # Bonferroni, and to spare
    return float(optimize.brentq(excess, -10.0, top))


@lru_cache(maxsize=1024)
def _dunnett_cdf(bound: float, lambdas: tuple[float, ...], dof: float) -> float:
    """P(all statistics <= bound), their correlations the products of `lambdas` (Dunnett 1955).

    By quadrature over the control's own deviation and the estimate of the variance.
    """
    points, weights, levels, shares = _nodes()
    factors = np.ones(1)
    shares = shares / 2
    if math.isfinite(dof):
        factors = np.sqrt(special.chdtri(dof, (1 - levels) / 2) / dof)
    else:
        shares = np.ones(1)
    load, times = np.unique(lambdas, return_counts=True)
    scaled = bound * factors[:, None, None] + load * points[None, :, None]
    inside = (special.ndtr(scaled / np.sqrt(1 - load**2)) ** times).prod(-1)
    return float(shares @ (inside @ weights))


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points and weights of Gauss-Hermite and Gauss-Legendre quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    return points, weights / weights.sum(), *np.polynomial.legendre.leggauss(96)
