"""What a trial of this machine's pool has left to see, and what its silence means."""

from __future__ import annotations

import os
import signal

from imgtool.experiment.job import job_path
from imgtool.experiment.layout import ExperimentDir
from imgtool.process.child import KILLED
from imgtool.sweep.choose import why_not
from imgtool.sweep.state import BROKEN, complaint, read_state
from imgtool.sweep.trial import Trial
from imgtool.units import format_duration


def verdict(
    trial: Trial, code: int, *, after_sec: float, asked: str | None, forced: bool
) -> tuple[str, str]:
    """State and reason of a trial that ended without a word of its own.

    Args:
        code: its exit code, 128 + n for signal n.
        after_sec: it ran so long.
        asked: why it was asked to stop; None when it was not.
        forced: it did not stop as asked, and got TERM or KILL.
    """
    if asked or code == 128 + signal.SIGINT:
        why = asked or "SIGINT"
        how = "it did not stop in time and was killed" if forced else "before it could save"
        return "stopped", f"{why}; {how}" if forced else f"{why}, {how}"
    if code == KILLED:
        return "failed", "killed (perhaps out of memory)"
    last = complaint(trial.directory.child_log_path)
    what = f"it ended with code {code} after {format_duration(after_sec)}"
    return "failed", f"{what}: {last}"[:500] if last else f"{what} and said nothing"


def done_meanwhile(trial: Trial, *, changed: bool) -> str | None:
    """Why a trial that was to be run, and is ours now, has become someone else's.

    Args:
        changed: its `traces` are not what they were.
    """
    found = read_state(trial.directory)
    if changed:
        return f"another sweep has just run it: {found.state}"
    return why_not(trial, found, BROKEN) if found.state == "completed" else None


def traces(directory: ExperimentDir) -> tuple[tuple[int, int] | None, ...]:
    """What changes when anybody runs the trial."""
    return stamp(directory), _stamp_of(job_path(directory))


def stamp(directory: ExperimentDir) -> tuple[int, int] | None:
    """What changes when status.json is written; None while there is none."""
    return _stamp_of(directory.status_path)


def _stamp_of(path: os.PathLike[str]) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_ino
