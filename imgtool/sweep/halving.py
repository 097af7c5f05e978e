"""What a sweep's `halving` says: rungs at which trials pause, and how many of them go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from imgtool.errors import ConfigError, UsageError, UserError, did_you_mean
from imgtool.models import registry
from imgtool.sweep.trial import Trial
from imgtool.units import parse_interval

KEYS = ("rungs", "keep", "metric")
KEEP = Fraction(1, 3)
EXAMPLE = "such as rungs=1ep,3ep,10ep keep=1/3 metric=val_mse"


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Attributes:
    rungs: where trials pause, rising: iterations, or epochs such as 3ep.
    keep: the part that goes on from a rung, between 0 and 1.
    metric: what tells the best; None for what the trials' family calls best.
    """

    rungs: tuple[int | str, ...]
    keep: Fraction = KEEP
    metric: str | None = None

    def words(self, metric: str) -> str:
        """For people, with the metric that decides."""
        rungs = ", ".join(map(str, self.rungs))
        return (
            f"halving: trials pause at {rungs}; the best {self.keep} by {metric} and who is within "
            "the noise of them go on, the others are dropped"
        )

    def told(self) -> dict[str, Any]:
        """As a file has it."""
        return {
            "rungs": [str(rung) for rung in self.rungs],
            "keep": str(self.keep),
            "metric": self.metric,
        }


def read_halving(value: object) -> Halving:
    """Check the words of `--halving`, or what a sweep's file has below `halving:`.

    Args:
        value: `rungs=1ep,3ep keep=1/3 metric=val_mse`, or the same as a mapping.

    Raises:
        ConfigError: anything wrong with them, in one line.
    """
    given = _split(value) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"halving is {value!r}, expected rungs, keep and metric", hint=EXAMPLE)
    for key in given:
        if key not in KEYS:
            raise ConfigError(
                f"halving: unknown key {key}", hint=did_you_mean(str(key), list(KEYS)) or EXAMPLE
            )
    metric = given.get("metric")
    if metric is not None and (not isinstance(metric, str) or not metric.strip()):
        raise ConfigError(f"halving: metric is {metric!r}, expected a name", hint=EXAMPLE)
    return Halving(
        rungs=_rungs(given.get("rungs")), keep=_keep(given.get("keep", "1/3")), metric=metric
    )


def _split(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"halving: {word!r} is no key=value", hint=EXAMPLE)
        if key in found:
            raise ConfigError(f"halving: {key} is given twice", hint="keep one of them")
        found[key] = value
    return found


def _rungs(value: object) -> tuple[int | str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if isinstance(words, int) and not isinstance(words, bool):
        words = [words]
    if not isinstance(words, Sequence) or not words:
        what = "there are no rungs" if value is None else f"rungs is {value!r}, expected a list"
        raise ConfigError(f"halving: {what}", hint=EXAMPLE)
    try:
        rungs = tuple(parse_interval(str(word)) for word in words)
    except UserError as error:
        raise ConfigError(f"halving: rungs: {error}", hint=error.hint) from error
    if len({isinstance(rung, str) for rung in rungs}) > 1:
        raise ConfigError(
            "halving: rungs has iterations and epochs", hint="write all of them in one of both"
        )
    sizes = [size_of(rung) for rung in rungs]
    if any(later <= earlier for earlier, later in zip(sizes, sizes[1:], strict=False)):
        raise ConfigError("halving: rungs does not rise", hint=EXAMPLE)
    return rungs


def _keep(value: object) -> Fraction:
    try:
        keep = None if isinstance(value, bool) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        keep = None
    if keep is None or not 0 < keep < 1:
        raise ConfigError(
            f"halving: keep is {value!r}, expected a part between 0 and 1",
            hint="such as keep=1/3, which drops two of three at every rung",
        )
    return keep


def size_of(rung: int | str) -> int:
    """Iterations or epochs."""
    return rung if isinstance(rung, int) else int(rung.removesuffix("ep"))


def metric_of(halving: Halving, trials: Sequence[Trial]) -> str:
    """What decides at the rungs of these trials.

    Raises:
        UsageError: nobody says so, or it measures different things; the trainings end before the
            first rung.
    """
    for trial in trials:
        _refuse_late(halving, trial)
    metric = halving.metric or _own_metric(trials)
    lambdas = {getattr(trial.loaded.experiment.loss, "lmbda", None) for trial in trials}
    if metric.endswith("rd_loss") and len(lambdas) > 1:
        raise UsageError(
            f"halving: {metric} at different lambdas are different measures",
            hint="a sweep for each lambda, or another metric",
        )
    return metric


def _refuse_late(halving: Halving, trial: Trial) -> None:
    train, first = trial.loaded.experiment.train, halving.rungs[0]
    last = train.epochs if isinstance(first, str) else train.max_iter
    if last is not None and last <= size_of(first):
        key = "epochs" if isinstance(first, str) else "max_iter"
        raise UsageError(
            f"halving: {trial.name} ends at the first rung, {first}, or before (train.{key} {last})",
            hint="give an earlier rung, or leave halving out",
        )


def _own_metric(trials: Sequence[Trial]) -> str:
    found: dict[str, Trial] = {}
    for trial in trials:
        schema, chosen = registry.schema(trial.family), trial.loaded.experiment.train.monitor
        if chosen is None and not schema.has_best:
            raise UsageError(
                f"halving: {trial.family} has no metric of its own that tells better weights",
                hint=f"name one, such as metric={schema.monitor}",
            )
        found.setdefault(chosen or schema.monitor, trial)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise UsageError(
            f"halving: {a.name} calls {first} best and {b.name} {second}",
            hint=f"say which one decides, such as metric={first}",
        )
    return next(iter(found))
