"""How long a command may run: what the user says, capped by what the LSF job has left."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imgtool.errors import UsageError
from imgtool.units import format_duration

LIMIT_VARIABLE = "IMGTOOL_RUN_LIMIT_SEC"
ASK_SEC = 20.0
SAFETY_SEC = 60.0
_FIELDS = "time_left runtimelimit run_time delimiter='^'"


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

    The run limit is IMGTOOL_RUN_LIMIT_SEC, in seconds from now, or, in an LSF job, what one
    question to bjobs says. A limit that cannot be found out caps nothing.

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
                "there is no --duration and no run limit of an LSF job",
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
    job = environment.get("LSB_JOBID")
    if not job:
        return None, []
    index = environment.get("LSB_JOBINDEX", "0")
    answer = _ask_bjobs(f"{job}[{index}]" if index.isdigit() and index != "0" else job, environment)
    left = parse_time_left(answer)
    if left is None:
        return None, [f"the run limit of job {job} is unknown; the budget is not capped"]
    return left, []


def _ask_bjobs(job: str, environment: Mapping[str, str]) -> str:
    """What bjobs prints about `job`; nothing when it fails or hangs."""
    try:
        return subprocess.run(
            ["bjobs", "-noheader", "-o", _FIELDS, job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ASK_SEC,
            env=dict(environment),
            text=True,
            errors="replace",
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def parse_time_left(text: str) -> float | None:
    """Seconds left to a job, from a line `time_left^runtimelimit^run_time` of bjobs.

    time_left is hours:minutes with L (of the run limit), E or X (of an estimate, which ends no
    job); runtimelimit is minutes, perhaps with a host or `min` behind; run_time is seconds.
    With LSB_HMS_TIME_FORMAT all three are hours:minutes:seconds. Unset values are `-`.
    """
    rows = [line.split("^") for line in text.splitlines() if line.count("^") == 2]
    if len(rows) != 1:
        return None
    left_text, limit_text, used_text = (word.strip() for word in rows[0])
    found = []
    limit, used = _clock(limit_text, unit_sec=60.0), _clock(used_text, unit_sec=1.0)
    if limit is not None and used is not None:
        found.append(limit - used)
    if left_text.endswith("L"):
        left = _clock(left_text, unit_sec=60.0)
        if left is not None:
            found.append(left)
    return max(0.0, min(found)) if found else None


def _clock(text: str, *, unit_sec: float) -> float | None:
    """Seconds in `1:30`, `01:30:00`, `90.0/host`, `90.0 min`, `5400 second(s)`; else None.

    Args:
        unit_sec: what a number without colons counts.
    """
    if match := re.match(r"(\d+):(\d\d)(?::(\d\d))?(?!\d)", text):
        return int(match[1]) * 3600.0 + int(match[2]) * 60.0 + int(match[3] or 0)
    if match := re.match(r"(\d+(?:\.\d+)?)(?=$|[ /])", text):
        return float(match[1]) * unit_sec
    return None
