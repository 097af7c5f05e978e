"""Who is told what happens in a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from imgtool.sweep.running import Running
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import TrialState
from imgtool.sweep.trial import Trial


class Listener(Protocol):
    """Is told what happens, for people."""

    def started(self, trial: Trial, slot: Slot, pid: int) -> None:
        """A trial's process runs."""

    def ended(self, trial: Trial, state: TrialState) -> None:
        """It has ended, or could not be started."""

    def left(self, trial: Trial, reason: str) -> None:
        """It is not run, since someone else runs it or has just run it."""

    def tick(self, running: Sequence[Running]) -> None:
        """About once a second."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silence:
    """Hears nothing."""

    def started(self, trial: Trial, slot: Slot, pid: int) -> None: ...
    def ended(self, trial: Trial, state: TrialState) -> None: ...
    def left(self, trial: Trial, reason: str) -> None: ...
    def tick(self, running: Sequence[Running]) -> None: ...
    def note(self, text: str) -> None: ...
