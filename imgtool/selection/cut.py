"""Who goes on from a rung of a sweep: the best part, and whom only noise sets apart from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imgtool.errors import UsageError
from imgtool.selection.columns import direction
from imgtool.selection.comparisons import reaches
from imgtool.selection.judge import noise_of
from imgtool.selection.noise import Sample

Values = Mapping[str, Mapping[int | str, float]]  # experiment -> seed -> value


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Attributes:
    order: names, best first, by their means over seeds; equals stay in the order given.
    rises: those that go on: the first of the order, their equals, and those that may belong to
        them as far as the noise tells.
    std: the noise, of the metric's logarithm where `is_log`; None where it is not known.
    """

    order: tuple[str, ...]
    rises: frozenset[str]
    std: float | None = None
    is_log: bool = False


class Cutter:
    """Ranks experiments by one metric.

    Raises:
        UsageError: its name does not tell which way it is better.
    """

    def __init__(self, metric: str) -> None:
        found = direction(metric)
        if found is None:
            raise UsageError(
                f"whether a high or a low {metric} is better cannot be told from its name",
                hint="name another metric, such as metric=val_mse",
            )
        self.metric = metric
        self._sign = -1 if found == "max" else 1

    def order(self, values: Values) -> list[str]:
        """Names, best first."""
        return sorted(values, key=lambda name: self._sign * _mean(values[name]))

    def cut(self, values: Values, num_kept: int) -> Cut:
        """Cut off all but the best `num_kept`.

        An experiment stays out where `num_kept` others or more are ahead of it by more than the
        bound of Hsu's comparison with it as the control (`comparisons.reaches`): of a truly good
        one at least one of those is not better, so that it is dropped with 5 % at most. Where no
        noise is known, equals of the last one go on with it.
        """
        order = self.order(values)
        if num_kept >= len(order):
            return Cut(order=tuple(order), rises=frozenset(order))
        last = _mean(values[order[num_kept - 1]])
        rises = set(order[:num_kept]) | {n for n in order if _mean(values[n]) == last}
        samples = [Sample(name=name, values=values[name]) for name in order]
        noise = noise_of(samples, self.metric)
        if noise.is_known:
            means = [-self._sign * noise.mean(sample) for sample in samples]
            for name, mean, reach in zip(order, means, reaches(samples, noise), strict=True):
                ahead = sum(other - mean > far for other, far in zip(means, reach, strict=True))
                rises |= {name} if ahead < num_kept else set()
        return Cut(order=tuple(order), rises=frozenset(rises), std=noise.std, is_log=noise.is_log)


def _mean(values: Mapping[int | str, float]) -> float:
    return sum(values.values()) / len(values)
