"""A rate ladder: trainings at falling rates, each of which begins with the weights of the one above.

The highest rate is trained in full. Every other one begins with the best weights of the next
higher rate, and trains a part of its own limits: codecs of neighbouring rates differ by little, and
what codes many bits well is quick to learn to code fewer. The family says which keys these are
(`LadderKeys`). Trials that differ in more than the rate, such as seeds, have ladders of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from imgtool.errors import ConfigError, did_you_mean
from imgtool.sweep.trial import Trial

OPTION = "--ladder"
PART = Fraction(1, 5)  # of six rates: the time of two trainings instead of six
_HINT = "a part of the iterations above 0 and up to 1, such as 1/5"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Attributes:
    part: of its limits that a training below the top trains for.
    """

    part: Fraction = PART

    def words(self, trials: Sequence[Trial]) -> str:
        """For people: what becomes of the trials, and what it saves."""
        text = (
            "ladder: the highest rate trains in full, each other one begins with the weights of "
            f"the next higher and trains {self.part} of its iterations"
        )
        limits = [trial.loaded.experiment.train.max_iter for trial in trials]
        if None in limits:
            return text
        total = sum(limit or 0 for limit in limits)
        full = sum(trial.full_iterations or 0 for trial in trials)
        return f"{text}: {total} instead of {full} in all"


def read_ladder(value: object) -> Ladder:
    """Check `--ladder-part`, or what a sweep's file has below `ladder:`.

    Args:
        value: `1/5`, or `{part: 1/5}`.

    Raises:
        ConfigError: anything wrong with it, in one line.
    """
    if isinstance(value, dict):
        for key in value:
            if key != "part":
                raise ConfigError(
                    f"ladder: unknown key {key}", hint=did_you_mean(str(key), ["part"]) or _HINT
                )
        value = value.get("part", PART)
    try:
        part = None if isinstance(value, bool) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        part = None
    if part is None or not 0 < part <= 1:
        raise ConfigError(f"ladder: part is {value!r}", hint=_HINT)
    return Ladder(part=part)
