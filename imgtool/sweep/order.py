"""Which trials a pool is given, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from imgtool.sweep.state import TrialState
from imgtool.sweep.trial import Trial


class Order(Protocol):
    """Says what is to be run after the first trials: at rungs (`Race`), down a ladder (`Descent`)."""

    @property
    def waits_for(self) -> Sequence[str]:
        """Names of trials that others run, and without which something cannot begin."""

    def more(self) -> list[Trial]:
        """What is to be run now that all that was given out before has begun."""

    def ended(self, trial: Trial, state: TrialState) -> None:
        """A trial's process has ended."""

    def gone(self, trial: Trial) -> None:
        """Someone else runs it."""

    def given_up(self) -> list[tuple[Trial, str]]:
        """What will not be run, and why, since this was last asked."""

    def news(self) -> list[str]:
        """What there is to tell since this was last asked."""
