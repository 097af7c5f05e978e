"""How long a command may run: what the user says, capped by what the job has left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imgtool.errors import UsageError
from imgtool.schedulers import registry
from imgtool.schedulers.base import LIMIT_VARIABLE
from imgtool.units import format_duration

SAFETY_SEC = 60.0


@dataclass(frozen=True)
class Budget:
    """Seconds that a command may run, and where the number comes from."""

    seconds: float
    source: Literal["duration", "run limit"]
    notes: list[str] = field(default_factory=list)


def choose(
    duration_sec: float | None,
    *,
    margin_sec: float,
    environment: Mapping[str, str] = os.environ,
) -> Budget:
    """The smaller of `duration_sec` and what the job's run limit leaves, less the margin.

    The run limit is IMGTOOL_RUN_LIMIT_SEC, in seconds from now, or, in a cluster's job, what
    its scheduler says. A limit that cannot be found out caps nothing.

    Args:
        duration_sec: what the user asked for; None leaves it to the run limit.
        margin_sec: time that stopping may take, kept free before the run limit.

    Raises:
        UsageError: a duration of 0, or neither a duration nor a run limit.
    """
    if duration_sec is not None and duration_sec <= 0:
        raise UsageError("--duration is 0", hint="give a time such as 3h or 90m")
    left, notes = _time_left(environment)
    if left is None:
        if duration_sec is None:
            raise UsageError(
                "there is no --duration and no run limit of a job",
                hint="give a time such as --duration 3h",
            )
        return Budget(duration_sec, "duration", notes)
    cap = left - margin_sec
    if cap < left / 2:
        cap = left / 2
        notes.append(
            f"the job has {format_duration(left)} left, little beside the "
            f"{format_duration(margin_sec)} that stopping may take: half of it is used"
        )
    if duration_sec is not None and duration_sec <= cap:
        return Budget(duration_sec, "duration", notes)
    notes.append(f"capped by the job's run limit: {format_duration(cap)}")
    return Budget(cap, "run limit", notes)


def _time_left(environment: Mapping[str, str]) -> tuple[float | None, list[str]]:
    given = environment.get(LIMIT_VARIABLE)
    if given:
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if 0 < seconds < float("inf"):
            return seconds, []
        raise UsageError(
            f"{LIMIT_VARIABLE} is {given!r}", hint="set it to seconds, such as 86400, or unset it"
        )
    scheduler = registry.of_job(environment)
    if scheduler is None:
        return None, []
    left = scheduler.time_left(environment)
    if left is None:
        job = environment[scheduler.id_variable]
        return None, [f"the run limit of job {job} is unknown; the budget is not capped"]
    return left, []
