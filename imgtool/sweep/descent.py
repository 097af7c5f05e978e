"""Trials that begin with the weights of another one, down a ladder or of what is trained first:
whether it has them yet, and waiting for it.

The pool of this machine gives a slot to a trial once the one above it has completed. A cluster's
job waits for the other's by the scheduler's dependency; as that is of jobs that have ended, well or
not, and as somebody may train one of both by hand, the job itself looks again before it trains.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import ATTEMPT_VARIABLE, holder
from imgtool.experiment.status import StatusFile
from imgtool.sweep.refresh import refresh
from imgtool.sweep.state import ACTIVE, TrialState, read_state
from imgtool.sweep.trial import Trial

POLL_SEC = 10.0
_WORDS = {
    "pending": "has not begun",
    "stopped": "has stopped",
    "dropped": "was dropped",
    "failed": "has failed",
    "diverged": "has diverged",
    "out_of_memory": "ran out of memory",
    "stale": "is stale",
}
RETRY = "the same sweep goes on with it once that has completed"


def missing(trial: Trial) -> ExperimentDir | None:
    """The trial that another one waits for; None where it has begun itself, or that has completed."""
    above = trial.above
    if above is None or list_checkpoints(trial.directory.checkpoints_dir):
        return None
    return None if read_state(above).state == "completed" else above


def why_not(found: TrialState) -> str | None:
    """Why nobody can begin with the weights of a trial; None where it has them, or is at it."""
    if found.state == "completed" or found.state in ACTIVE:
        return None
    because = f" ({found.reason})" if found.reason else ""
    return f"it begins with the weights of {found.name}, which {_WORDS[found.state]}{because}"


def descending(trials: Iterable[Trial]) -> list[Trial]:
    """Nobody before the trial with whose weights it begins."""
    return sorted(trials, key=lambda trial: trial.step)


def without(trials: Iterable[Trial]) -> dict[str, str]:
    """Of trials that are to be run, those that nobody will ever start: name -> why."""
    left: dict[str, str] = {}
    ready = {trial.directory.path for trial in trials}
    for trial in descending(trials):
        above = missing(trial)
        if above is None or above.path in ready or holder(above) is not None:
            continue
        reason = why_not(read_state(above))
        if reason is not None:
            left[trial.name] = reason
            ready.discard(trial.directory.path)
    return left


class Descent:
    """Gives a pool each trial once it can begin."""

    def __init__(self) -> None:
        self._waiting: list[Trial] = []
        self._under_way: set[Path] = set()  # directories of those that the pool has
        self._lost: list[tuple[Trial, str]] = []
        self.waits_for: Sequence[str] = ()

    def begin(self, trials: Sequence[Trial]) -> list[Trial]:
        """The first trials to run; all others come from `more`."""
        self._waiting = descending(trials)
        return self.more()

    def more(self) -> list[Trial]:
        """Those that can begin by now."""
        found: list[Trial] = []
        elsewhere: dict[str, None] = {}
        for trial in [*self._waiting]:
            ours = {one.directory.path for one in self._waiting} | self._under_way
            if trial.above is not None and trial.above.path in ours:
                continue  # its last word comes before its end
            above = missing(trial)
            if above is None:
                found.append(trial)
                self._waiting.remove(trial)
                self._under_way.add(trial.directory.path)
                continue
            reason = why_not(read_state(above))
            if reason is None or holder(above) is not None:
                elsewhere[above.path.name] = None
            else:
                self._waiting.remove(trial)
                self._lost.append((trial, reason))
        self.waits_for = tuple(elsewhere)
        return found

    def ended(self, trial: Trial, state: TrialState) -> None:
        """It has ended."""
        self._under_way.discard(trial.directory.path)

    def gone(self, trial: Trial) -> None:
        """Someone else runs it, or nobody will."""
        self._under_way.discard(trial.directory.path)

    def given_up(self) -> list[tuple[Trial, str]]:
        """Those whose weights to begin with will not come."""
        lost, self._lost = self._lost, []
        return lost

    def news(self) -> list[str]:
        """Nothing: what happens is told trial by trial."""
        return []


def refused(
    directory: ExperimentDir, above: ExperimentDir, say: Callable[[str], None]
) -> str | None:
    """Wait, in a trial's own process, until it can begin.

    Returns:
        None once it can; else why it never will, which its status.json then says as well. It
        counts as stopped, so that the same sweep goes on with it.

    Raises:
        ExperimentError: status.json cannot be written.
    """
    if list_checkpoints(directory.checkpoints_dir):
        return None
    reason = await_other(above, say)
    if reason is not None:
        number = os.environ.get(ATTEMPT_VARIABLE, "")
        attempt = int(number) if number.isdecimal() else None
        StatusFile(directory, attempt=attempt).write("stopped", reason)
    return reason


def await_other(
    above: ExperimentDir,
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    look: Callable[[Sequence[ExperimentDir]], object] = refresh,
) -> str | None:
    """Wait until a trial has completed.

    Args:
        say: is told that it is waited for.
        look: brings what is known of its cluster job up to date.

    Returns:
        None once it has; else why it will not.
    """
    told = False
    while (found := read_state(above)).state != "completed":
        if found.state not in ACTIVE and holder(above) is None:
            return why_not(found)
        if not told:
            told = True
            say(f"waiting for {found.name}, which is {found.state}")
        sleep(POLL_SEC)
        look([above])
    return None
