"""How much of a difference between experiments is noise: the rules' view of noise.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imgtool.selection.columns import BD_RATE, is_in_db, is_positive
from imgtool.selection.comparisons import differ, interval, reaches
from imgtool.selection.curves import Compared
from imgtool.selection.noise import Noise, Sample, measure
from imgtool.selection.records import Candidate
from imgtool.selection.rule_file import Criterion, Rule, sign_of


class Judge:
    """Tells equals apart from unequals, by the noise of all the candidates of a phase.

    Args:
        candidates: those whose repeats tell the noise, whether the rule's limits pass them or not.
        compared: comparisons of curves with the best of them, which take the place of noise.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rule: Rule,
        compared: Mapping[str, Compared] | None = None,
    ) -> None:
        self._candidates, self._rule = candidates, rule
        self.compared = compared or {}
        self._noises: dict[str, Noise] = {}
        self._reaches: dict[tuple[str, ...], Any] = {}
        self._means: dict[tuple[str, str], float] = {}

    def is_known(self, metric: str) -> bool:
        """Whether differences can be told from noise."""
        return metric == BD_RATE or self.noise(metric).is_known

    def noise(self, metric: str) -> Noise:
        """The noise of a metric."""
        if metric not in self._noises:
            self._noises[metric] = self._measure(metric)
        return self._noises[metric]

    def _measure(self, metric: str) -> Noise:
        samples = samples_of([c for c in self._candidates if metric in c.metrics], metric)
        assumed = self._rule.assumed_noise if metric == self._rule.metric else None
        return noise_of(samples, metric, assumed=assumed)

    def tied(self, pool: Sequence[Candidate], criterion: Criterion) -> set[str]:
        """Names of those that may be the best of the pool, by Hsu's comparison with the best."""
        metric = criterion.metric
        if metric == BD_RATE:
            return {one.name for one in pool if not self.compared[one.name].differs}
        noise = self.noise(metric)
        if not noise.is_known or len(pool) < 2:
            return set()
        pool = sorted(pool, key=lambda one: one.name)
        key = (metric, *(one.name for one in pool))
        if key not in self._reaches:
            self._reaches[key] = reaches(samples_of(pool, metric), noise).tolist()
        sign = -sign_of(metric, self._rule)
        means = [sign * self._mean(one, metric) for one in pool]
        return {
            one.name
            for one, mean, reach in zip(pool, means, self._reaches[key], strict=True)
            if all(other - mean <= far for other, far in zip(means, reach, strict=True))
        }

    def differs(self, a: Candidate, b: Candidate, metric: str) -> bool:
        """Whether a fixed pair's difference is more than noise, as far as that is known."""
        if metric == BD_RATE:
            return any(self.compared[one.name].differs for one in (a, b))
        noise = self.noise(metric)
        if not noise.is_known:
            return a.metrics[metric] != b.metrics[metric]
        key = ("pair", metric, a.name, b.name)
        if key not in self._reaches:
            first, second = samples_of([a, b], metric)
            low, high = noise.scaled(differ(first, second, noise).interval)
            self._reaches[key] = float(high - low) / 2
        return abs(self._mean(a, metric) - self._mean(b, metric)) > float(self._reaches[key])

    def _mean(self, candidate: Candidate, metric: str) -> float:
        """Over the seeds, as compared: of logarithms where the noise is of logarithms."""
        if metric in candidate.moved:
            return candidate.moved[metric]
        key = (candidate.name, metric)
        if key not in self._means:
            (sample,) = samples_of([candidate], metric)
            self._means[key] = self.noise(metric).mean(sample)
        return self._means[key]

    def shifted(self, candidate: Candidate, mean: float) -> Candidate:
        """The candidate as if another mean of the rule's metric had been seen.

        Of val_mse and val_psnr one moves the other.
        """
        metric, metrics = self._rule.metric, candidate.metrics
        before, old = metrics[metric], self._mean(candidate, metric)
        is_log = self.noise(metric).is_log
        moved = math.log(mean) if is_log else mean
        after = before * math.exp(moved - old) if is_log else before + moved - old
        new = {**metrics, metric: after}
        if metric == "val_mse" and "val_psnr" in metrics and before > 0 and after > 0:
            new["val_psnr"] -= 10 * math.log10(after / before)
        elif metric == "val_psnr" and "val_mse" in metrics:
            new["val_mse"] *= 10 ** ((before - after) / 10)
        return Candidate(
            name=candidate.name,
            runs=candidate.runs,
            metrics=new,
            deviations=candidate.deviations,
            lost=candidate.lost,
            moved={metric: moved},
        )

    def interval(self, candidate: Candidate, metric: str) -> tuple[float, float] | None:
        """Of its mean, at 95 %; None where the noise is not known."""
        if metric == BD_RATE and candidate.name in self.compared:
            return self.compared[candidate.name].interval
        noise = self.noise(metric)
        if not noise.is_known or metric not in candidate.metrics:
            return None
        return interval(samples_of([candidate], metric)[0], noise)


def noise_of(samples: Sequence[Sample], metric: str, *, assumed: float | None = None) -> Noise:
    """The noise of a metric; that of one whose repeats all agree is not known: it is exact."""
    repeated = [sample for sample in samples if sample.num_seeds > 1]
    if not samples or (repeated and all(len(set(s.values.values())) == 1 for s in repeated)):
        return Noise(std=None)
    values = [value for sample in samples for value in sample.values.values()]
    return measure(
        samples,
        positive=is_positive(metric, values),
        in_db=is_in_db(metric),
        assumed=assumed,
    )


def samples_of(candidates: Sequence[Candidate], metric: str) -> list[Sample]:
    """A metric of every candidate by seed; runs whose seed is unknown are numbered.

    With the standard error that the runs state of it themselves: `fid_se` beside `fid`.
    """
    return [
        Sample(
            name=candidate.name,
            values={
                f"run {number}" if run.seed is None else run.seed: run.metrics[metric]
                for number, run in enumerate(candidate.runs)
                if metric in run.metrics
            },
            error=candidate.metrics.get(f"{metric}_se"),
        )
        for candidate in candidates
    ]
