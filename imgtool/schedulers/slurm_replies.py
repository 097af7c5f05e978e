"""What squeue, sacct, scontrol and sbatch print, read. Pure functions, torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from imgtool.schedulers.base import JobState, Key, Seen

# The name comes last, for it may hold anything. A bar ends each field, whatever its length.
FIELDS = "ArrayJobID:|,ArrayTaskID:|,State:|,exit_code:|,Reason:|,Name:|"
RECORDS = "JobID,State,ExitCode,JobName"

_STATES: dict[str, JobState] = {
    "PENDING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_FED": "waiting",
    "REQUEUE_HOLD": "held",
    "RESV_DEL_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "COMPLETING": "running",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "COMPLETED": "done",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "BOOT_FAIL": "failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "timed_out",
    "DEADLINE": "timed_out",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}
_HELD = re.compile(r"JobHeld|_held$|held state|JobHoldMaxRequeue")
# Reasons that no other job's end takes away.
_NEVER = re.compile(
    r"PartitionTimeLimit|PartitionConfig|DependencyNeverSatisfied|BadConstraints|DeadLine|"
    r"Invalid(?:Account|QOS)|(?:Account|QOS)NotAllowed|MaxMemPerLimit|"
    r"(?:Assoc|QOS)Max\w*PerJob|(?:Assoc|QOS)MaxWall|QOSMin"
)
# What the state or the exit code says already.
_PLAIN = {"", "None", "N/A", "NonZeroExitCode", "RaisedSignal", "TimeLimit", "JobLaunchFailure"}
_TELLING = {"NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "DEADLINE", "REVOKED"}
_SETUP_SIGNAL = 53  # Slurm's own: the job could not be set up, such as its log not opened


@dataclass(frozen=True)
class Row:
    """One job, or element of an array, as squeue or sacct has it."""

    key: Key
    name: str
    seen: Seen


def parse_queue(text: str) -> list[Row]:
    """What `squeue -h -r -t all -O FIELDS` prints; other lines are skipped."""
    rows = []
    for line in text.splitlines():
        words = line.split("|", 5)
        if len(words) < 6 or not _is_number(words[0]):
            continue
        job_id, indices, state, code, reason, name = words
        seen = seen_of(state, reason.strip(), exit_code=_of_wait(code.strip()))
        name = name.rstrip().removesuffix("|")
        rows += [Row((int(job_id), index), name, seen) for index in _indices(indices)]
    return rows


def parse_records(text: str) -> list[Row]:
    """What `sacct -X -n -P -o RECORDS` prints; other lines are skipped."""
    rows = []
    for line in text.splitlines():
        words = line.split("|", 3)
        match = re.fullmatch(r"(\d{1,10})(?:_(\d+|\[.*\]))?", words[0].strip(), re.ASCII)
        if len(words) < 4 or match is None:
            continue
        code, _, number = words[2].strip().partition(":")
        exit_code = _of_code(int(code), int(number)) if _are_numbers(code, number) else None
        indices = _indices((match[2] or "").strip("[]"))
        seen = seen_of(words[1], "", exit_code=exit_code)
        rows += [Row((int(match[1]), index), words[3], seen) for index in indices]
    return rows


def seen_of(state: str, reason: str, *, exit_code: int | None) -> Seen:
    """A state of Slurm's, such as `PENDING` or `CANCELLED by 1000`, in our words.

    A state that is not known counts as running: what lives is not started again.
    """
    word = (state.split() or [""])[0].rstrip("+")
    ours = _STATES.get(word, "running")
    if ours == "waiting":
        if _HELD.search(reason):
            ours = "held"
        elif _NEVER.search(reason):
            ours = "never"
        return Seen(state=ours, reason=None if reason in _PLAIN else reason)
    if ours in ("held", "running", "suspended"):
        known = word in _STATES
        return Seen(state=ours, reason=None if known and ours != "held" else word or None)
    if not exit_code and ours != "done":
        exit_code = None  # nobody asked the job
    told = word if word in _TELLING else None
    if ours == "failed" and exit_code == 128 + _SETUP_SIGNAL:
        exit_code, told = None, told or "the job could not be set up: see its log's folder"
    if told is None and ours == "failed" and reason not in _PLAIN:
        told = reason
    return Seen(state=ours, exit_code=exit_code, reason=told)


def parse_submitted(text: str) -> int | None:
    """The id in the reply of `sbatch --parsable`: a line `ID` or `ID;cluster`."""
    found = re.findall(r"(?m)^(\d{1,10})(?:;\S+)?\s*$", text, re.ASCII)
    return int(found[-1]) if found else None


def parse_time(text: str) -> float | None:
    """Seconds in `1-02:03:04`, `02:03:04`, `3:04` or `30`; None for UNLIMITED and the like."""
    form = r"(?:(\d{1,6})-)?(?:(?:(\d{1,6}):)?(\d{1,6}):)?(\d{1,6})"
    match = re.fullmatch(form, text.strip(), re.ASCII)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(word or 0) for word in match.groups())
    return ((days * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Partitions by name, from `scontrol -o show partition`: a line of `Key=Value` words each."""
    found = {}
    for line in text.splitlines():
        words = dict(re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", line))
        if "PartitionName" in words:
            found[words["PartitionName"]] = words
    return found


def _indices(text: str) -> Iterator[int]:
    """Of `7`, or `1-3,7-11:2%2` where elements are still one; 0 where there is no array."""
    text = text.strip().partition("%")[0]
    if not text or text == "N/A":
        yield 0
        return
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,8})(?:-(\d{1,8})(?::(\d{1,8}))?)?", part, re.ASCII)
        if match is not None:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            yield from range(first, last + 1, max(1, step))


def _of_wait(text: str) -> int | None:
    """An exit code from the status of wait(2)."""
    return _of_code(int(text) >> 8, int(text) & 0x7F) if _is_number(text) else None


def _of_code(code: int, number: int) -> int:
    return 128 + number if number else code


def _are_numbers(*texts: str) -> bool:
    return all(_is_number(text) for text in texts)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d{1,10}\s*", text, re.ASCII) is not None
