"""How much of a metric is chance: the noise of a phase, from its repeats.

Positive metrics that are not in dB are compared by their logarithms, so that a difference is a
ratio. One noise level serves a whole phase: the variance within experiments, pooled; where the
same seeds ran in three experiments or more, the residual of experiment + seed (what a seed does
to all of them alike is no noise of a comparison).

Where variances differ, every experiment keeps its own. Whether they do is asked by Bartlett's
statistic against its simulated distribution, at 30 % or 40 %, since a difference that is overlooked
costs more than one that is imagined (Bancroft 1964): of phases half of whose experiments are four
times as noisy it finds half and more; Brown and Forsythe's medians find none with two seeds and a
fifth with three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

# Of the question whether variances differ: the fewer degrees of freedom, the less is seen of it.
EQUALITY_LEVEL, EQUALITY_LEVEL_OF_FEW, FEW_DOF = 0.3, 0.4, 10
DRAWS = 20_000  # of a simulated distribution
TINY = 1e-12  # of the pooled variance: seeds that agree to the last digit still have one
FAR = 600.0  # exp of it, and of as much again below 1, is still a float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One experiment: its metric by seed, all finite, at least one.

    `error` is the standard error with which one value was measured, where it is known (of a FID);
    it is a lower bound of the noise, and all that is known where nothing was repeated.
    """

    name: str
    values: Mapping[int | str, float]
    error: float | None = None

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values.values()):
            raise ValueError(f"{self.name} needs values, all of them finite")

    @property
    def num_seeds(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much one value of an experiment moves with its seed.

    Attributes:
        std: standard deviation of one value, of its logarithm where `is_log`; None if unknown.
        dof: degrees of freedom of `std`; infinite where it was assumed.
        source: "repeats", "assumed", "measurement" (the values' own standard errors: seeds may
            add to them), or None.
        is_log: the metric is compared by its logarithm.
        is_crossed: seeds' common effect was taken out.
        equality: p of equal variances; None where that could not be asked.
        own: (variance, degrees of freedom) by experiment, where variances differ; else empty.
    """

    std: float | None
    dof: float = 0.0
    source: str | None = None
    is_log: bool = False
    is_crossed: bool = False
    equality: float | None = None
    own: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return self.std is not None

    @property
    def is_equal(self) -> bool:
        """One variance serves all experiments."""
        return not self.own

    def of(self, name: str) -> tuple[float, float]:
        """Variance of one value of this experiment, and its degrees of freedom.

        Raises:
            ValueError: nothing is known of the noise.
        """
        if self.std is None:
            raise ValueError("nothing is known of the noise")
        return self.own.get(name, (self.std**2, self.dof))

    def scaled(self, values: Sequence[float] | float) -> np.ndarray:
        """Values as they are compared: their logarithms where `is_log`."""
        array = np.asarray(values, dtype=np.float64)
        return np.log(array) if self.is_log else array

    def unscaled(self, values: np.ndarray | float) -> np.ndarray:
        """In the metric's unit; of logarithms what no float could hold stays just within one."""
        return np.exp(np.clip(values, -FAR, FAR)) if self.is_log else np.asarray(values)

    def mean(self, sample: Sample) -> float:
        """Mean over seeds, as compared."""
        return float(self.scaled(list(sample.values.values())).mean())


def measure(
    samples: Sequence[Sample],
    *,
    positive: bool,
    in_db: bool = False,
    assumed: float | None = None,
) -> Noise:
    """The noise of a phase.

    Args:
        samples: every experiment with a finite value, also those with one seed.
        positive: the metric cannot be negative.
        in_db: it is a logarithm already.
        assumed: a standard deviation of one value (relative for positive metrics, which is of the
            logarithm to first order); taken where nothing was repeated.
    """
    everything = [value for sample in samples for value in sample.values.values()]
    is_log = positive and not in_db and all(value > 0 for value in everything)
    scale = np.log if is_log else np.asarray
    repeated = [sample for sample in samples if sample.num_seeds > 1]
    seeds: list[int | str] = []
    least = _measured(samples, is_log)
    if not repeated:
        std, source = (assumed, "assumed") if assumed is not None else (least, "measurement")
        dof = math.inf if std is not None else 0.0
        return Noise(std=std, dof=dof, source=source if std is not None else None, is_log=is_log)
    is_crossed = _is_crossed(samples)
    if is_crossed:
        seeds = list(samples[0].values)
        table = np.stack([scale([sample.values[seed] for seed in seeds]) for sample in samples])
        num_dofs = (len(samples) - 1) * (len(seeds) - 1) / len(samples)
        dofs, sums = np.full(len(samples), num_dofs), _residual_squares(table)
    else:
        values = [scale(list(sample.values.values())) for sample in repeated]
        dofs = np.array([len(v) - 1.0 for v in values])
        sums = np.array([((v - v.mean()) ** 2).sum() for v in values])
    floor = (least or 0.0) ** 2
    pooled = max(float(sums.sum() / dofs.sum()), floor, np.finfo(float).tiny)
    variances = np.maximum(sums / dofs, max(floor, TINY * pooled))
    equality = None
    if len(variances) > 1:
        null = _equal_phases(tuple(dofs.tolist()), len(seeds))
        equality = float((null >= _bartlett(variances, dofs)).mean())
    level = EQUALITY_LEVEL_OF_FEW if dofs.sum() < FEW_DOF else EQUALITY_LEVEL
    differ = equality is not None and equality < level
    names = [sample.name for sample in repeated]
    own = zip(names, zip(variances.tolist(), dofs.tolist(), strict=True), strict=True)
    return Noise(
        std=math.sqrt(pooled),
        dof=float(dofs.sum()),
        source="repeats",
        is_log=is_log,
        is_crossed=is_crossed,
        equality=equality,
        own=dict(own) if differ else {},
    )


def _measured(samples: Sequence[Sample], is_log: bool) -> float | None:
    """Root mean square of the values' own standard errors; None where one has none."""
    errors = []
    for sample in samples:
        if sample.error is None:
            return None
        mean = float(np.mean(list(sample.values.values())))
        errors.append(sample.error / mean if is_log else sample.error)
    found = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
    return found or None


def _is_crossed(samples: Sequence[Sample]) -> bool:
    """The same seeds ran everywhere, and in more than a pair (which would be a paired test)."""
    first = set(samples[0].values)
    return len(samples) > 2 and len(first) > 1 and all(set(s.values) == first for s in samples)


def _residual_squares(table: np.ndarray) -> np.ndarray:
    """(…, experiments, seeds) to each experiment's squares beside experiment + seed, summed."""
    means = table.mean(-1, keepdims=True) + table.mean(-2, keepdims=True)
    residual = table - means + table.mean((-2, -1), keepdims=True)
    return np.asarray((residual**2).sum(-1))


def _bartlett(variances: np.ndarray, dofs: np.ndarray) -> np.ndarray:
    """(…, experiments) to Bartlett's statistic, without its correction: it is simulated."""
    pooled = (variances * dofs).sum(-1) / dofs.sum()
    return np.asarray(dofs.sum() * np.log(pooled) - (dofs * np.log(variances)).sum(-1))


@lru_cache(maxsize=64)
def _equal_phases(dofs: tuple[float, ...], num_crossed: int) -> np.ndarray:
    """Bartlett's statistic of phases whose variances are equal; `num_crossed` seeds ran in all of
    their experiments, 0 if they did not."""
    rng, each = np.random.default_rng(0), np.array(dofs)
    if num_crossed:
        tables = rng.standard_normal((DRAWS, len(dofs), num_crossed))
        return _bartlett(_residual_squares(tables) / each + TINY, each)
    return _bartlett(chi_square_mean(rng, each, (DRAWS, len(dofs))) + TINY, each)


def chi_square_mean(
    rng: np.random.Generator, dofs: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Chi-square over its degrees of freedom; 1 where they are infinite."""
    is_finite = np.isfinite(dofs)
    safe = np.where(is_finite, dofs, 1.0)
    return np.where(is_finite, rng.chisquare(safe, shape) / safe, 1.0)
