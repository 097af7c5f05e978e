"""What has become of a trial, told from the small files in its directory. Torch-free and quick.

status.json is the trainer's own word; job.json is that of whoever started it (this machine's
pool, or a cluster). The number of the start that each is about tells which is the later; that
counts, and silence counts as death after five minutes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from imgtool.errors import ExitCode
from imgtool.experiment import job as job_file
from imgtool.experiment.alive import is_process, parse_time
from imgtool.experiment.job import is_last_word, speaks_of
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.process.child import KILLED
from imgtool.schedulers.base import ALIVE, ENDED, JOB_STATES, WAITING

StateName = Literal[
    "pending",
    "submitted",
    "running",
    "stopped",
    "completed",
    "dropped",
    "failed",
    "diverged",
    "out_of_memory",
    "stale",
]
STATES: tuple[StateName, ...] = StateName.__args__  # type: ignore[attr-defined]
ACTIVE = frozenset({"submitted", "running"})
BROKEN = frozenset({"failed", "diverged", "out_of_memory", "stale"})
STALE_SEC = 300.0

_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "memoryerror",
    "memlimit",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
)
_TAIL_BYTES = 65536
# What a job's end means for a trainer that had no last word.
_ENDS: dict[str, tuple[StateName, str]] = {
    "out_of_memory": ("out_of_memory", "the cluster ended it"),
    "timed_out": ("failed", "its time ran out before it had saved"),
    "preempted": ("stopped", "pre-empted"),
    "cancelled": ("stopped", "cancelled"),
}


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """One experiment as it looks from outside.

    Attributes:
        name: of its directory.
        path: the directory.
        state: one of STATES.
        reason: why, in a few words.
        warning: what the trainer said of this run's start that others should know; None for none.
        identity: as the sweep knows it, else as status.json says (with the data's fingerprint).
        loss: the last logged training loss.
        metrics: the last known val_* values.
        best: metric, value and iteration of the best validation.
        paused: where it paused as it was told to: at, iteration, metrics; None where it did not.
        dropped: at which rung, and by what (rung, metric, value, place, of, num_kept).
        checkpoint: the newest that the trainer named.
        elapsed_sec: trained so far, over all starts.
        heartbeat_age_sec: since the trainer's last sign of life; 0 where clocks disagree.
        job: job.json.
        log: child.log, else train.log, else the cluster job's; None when there is none.
        exit_code: of the process or job; None while it runs, or when nobody saw the end.
    """

    name: str
    path: Path
    state: StateName
    reason: str | None = None
    warning: str | None = None
    identity: str | None = None
    iteration: int | None = None
    max_iteration: int | None = None
    epoch: float | None = None
    eta_sec: float | None = None
    loss: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None
    paused: Mapping[str, Any] | None = None
    dropped: Mapping[str, Any] | None = None
    checkpoint: str | None = None
    elapsed_sec: float | None = None
    heartbeat_age_sec: float | None = None
    job: Mapping[str, Any] | None = None
    log: Path | None = None
    exit_code: int | None = None

    def record(self, **known: Any) -> dict[str, Any]:
        """The `experiment` record.

        Args:
            known: what the sweep knows besides: name, also, phase, family, identity, overrides,
                shared_dir, decides, source.
        """
        first = {"path": None, "name": None, "phase": None, "family": None}
        later: dict[str, Any] = {
            "also": [],
            "overrides": {},
            "shared_dir": None,
            "decides": [],
            "source": None,
        }
        given = {key: value for key, value in known.items() if value is not None}
        return first | vars(self) | later | given


def read_state(directory: ExperimentDir, *, now: datetime | None = None) -> TrialState:
    """Look at one experiment; a directory that does not exist is pending.

    Args:
        directory: its exp_dir.
        now: the time to measure ages by.
    """
    status = read_status(directory) or {}
    job = read_job(directory)
    now = now or datetime.now(UTC)
    beat = parse_time(status.get("heartbeat"))
    age = None if beat is None else max(0.0, (now - beat).total_seconds())
    state, reason = _judge(status, job or {}, age)
    refused = state == "failed" and (job or {}).get("exit_code") == ExitCode.USAGE
    if refused or (state == "pending" and not status):
        state, reason = _by_owner(directory, refused=refused) or (state, reason)
    if state == "failed" and _tells_of_memory(reason, job or {}):
        state = "out_of_memory"
    is_running = state == "running"
    is_own = (state, reason) == (status.get("state"), status.get("reason"))
    if is_running and reason is None and status.get("pause_at") is not None:
        reason = f"up to {status['pause_at']}"
    return TrialState(
        name=directory.path.name,
        path=directory.path,
        state=state,
        reason=reason,
        warning=status.get("warning"),
        identity=(job or {}).get("identity") or status.get("identity"),
        iteration=status.get("iteration"),
        max_iteration=status.get("max_iteration"),
        epoch=status.get("epoch"),
        eta_sec=status.get("eta_sec") if is_running else None,
        loss=status.get("loss"),
        metrics=_last_metrics(directory) if status else {},
        best=status.get("best"),
        paused=status.get("paused") if is_own else None,
        dropped=status.get("dropped") if is_own and state == "dropped" else None,
        checkpoint=status.get("checkpoint"),
        elapsed_sec=status.get("elapsed_sec"),
        heartbeat_age_sec=age,
        job=job,
        log=log_of(directory),
        exit_code=None if is_running else (job or {}).get("exit_code"),
    )


def log_of(directory: ExperimentDir) -> Path | None:
    """child.log, else train.log, else the log of its cluster job, else None."""
    paths = (directory.child_log_path, directory.log_path)
    return next((path for path in paths if path.exists()), job_log_of(directory))


def job_log_of(directory: ExperimentDir) -> Path | None:
    """What its cluster job wrote, set-up and the cluster's own report included; None for none."""
    job = read_job(directory) or {}
    log = job.get("log")
    if job.get("executor") == "local" or not isinstance(log, str) or not os.path.isfile(log):
        return None
    return Path(log)


def last_lines(log: Path | None, n: int) -> list[str]:
    """The last `n` lines of a log that are not empty; reads no more than its last 64 KiB."""
    if log is None or n < 1:
        return []
    text = _tail(log).decode(errors="replace").replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n") if line.strip()][-n:]


def complaint(log: Path | None) -> str | None:
    """The line of a log that most likely says what went wrong: its last `error:`, else its last."""
    lines = last_lines(log, 50)
    found = [line for line in lines if line.startswith("error:")] or lines
    return found[-1] if found else None


def read_job(directory: ExperimentDir) -> dict[str, Any] | None:
    """job.json, its state in today's words; None when there is none that can be read."""
    record = job_file.read_job(directory)
    stat = (record or {}).get("stat")
    return (
        record if stat is None or stat in JOB_STATES else {**(record or {}), "stat": _today(stat)}
    )


def _today(stat: Any) -> str | None:
    """A state in our words of one that was written in LSF's."""
    from imgtool.schedulers.lsf_replies import STATES as LSF_STATES

    return LSF_STATES.get(stat) if isinstance(stat, str) else None


def is_open(job: Mapping[str, Any] | None) -> bool:
    """Whether a job.json is of a cluster job that has not ended as far as it knows.

    One with a name and no number is: its submission was cut off before LSF's answer.
    """
    return (
        job is not None
        and job.get("executor") not in (None, "local")
        and job.get("stat") not in ENDED
        and bool(job.get("job_id") or job.get("name"))
    )


def _judge(
    status: Mapping[str, Any], job: Mapping[str, Any], age: float | None
) -> tuple[StateName, str | None]:
    """State and reason, from the later of the two files."""
    said, reason = status.get("state"), status.get("reason")
    stat = job.get("stat")
    if (stat or is_open(job)) and not speaks_of(status, job):
        return _without_status(job)
    if said not in STATES:
        return "pending", None
    verdict = job.get("state")
    is_doubtful = verdict == "stale"  # it was out of sight: what the trainer said is known
    if said != "running":
        if verdict in STATES and not is_doubtful and is_last_word(status, job, missing=False):
            return verdict, job.get("reason")
        return said, reason
    if is_doubtful and age is not None and age < STALE_SEC:
        return "running", reason
    if stat in ENDED and is_last_word(status, job, missing=True):
        return _ended(job)
    if stat == "suspended":
        return "running", "suspended by the cluster"  # its heart stands still, and it lives
    if stat == "lost":
        return "running", "the cluster has lost sight of it"
    host, pid = status.get("host"), status.get("pid")
    if host == socket.gethostname() and not is_process(host, pid, started=status.get("started")):
        return "stale", f"its process {pid} is gone"
    if age is None or age > STALE_SEC:
        return "stale", "no sign of life" if age is None else f"no sign of life for {age:.0f} s"
    return "running", reason


def _without_status(job: Mapping[str, Any]) -> tuple[StateName, str | None]:
    """A job whose trainer has not said anything yet."""
    stat = job.get("stat")
    if stat in WAITING:
        return "submitted", _waits(stat, job.get("reason"))
    if stat == "lost":
        return "submitted", "the cluster has lost sight of it"
    if stat in ALIVE:
        if job.get("executor") == "local" and not _is_leader_alive(job):
            return "stale", f"its process {job.get('pid')} is gone"
        return "running", "starting"
    if stat in ENDED:
        return _ended(job)
    return "submitted", None


def _waits(stat: str, why: str | None) -> str | None:
    word = {"held": "held", "never": "it will not start as it stands"}.get(stat)
    return f"{word}: {why}" if word and why else word or why


def _is_leader_alive(job: Mapping[str, Any]) -> bool:
    if job.get("host") != socket.gethostname():
        since = parse_time(job.get("started"))  # it should have spoken by then
        return since is None or (datetime.now(UTC) - since).total_seconds() < STALE_SEC
    return is_process(job["host"], job.get("pid"), ticks=job.get("start_ticks"))


def _ended(job: Mapping[str, Any]) -> tuple[StateName, str | None]:
    verdict = job.get("state")
    if verdict in STATES:
        return verdict, job.get("reason")
    stat, code, why = job.get("stat"), job.get("exit_code"), job.get("reason")
    if stat in _ENDS:
        state, words = _ENDS[stat]
        return state, f"{words}: {why}" if why else words
    if code == KILLED and not why:
        return "failed", "killed (perhaps out of memory)"
    what = f"it ended with code {code}" if code is not None else "it ended"
    return "failed", f"{what}: {why}" if why else f"{what} and did not say why"


def _by_owner(directory: ExperimentDir, *, refused: bool) -> tuple[StateName, str | None] | None:
    """What an owner that lives makes of an experiment that has not said anything itself.

    Args:
        refused: its job ended as one does that finds the directory in use.
    """
    from imgtool.experiment.owner import holder

    owner = holder(directory)
    if owner is not None and (owner.trains or owner.job):
        return "running", f"by {owner}"
    return None if owner is None or refused else ("submitted", f"claimed by {owner}")


def _tells_of_memory(reason: str | None, job: Mapping[str, Any]) -> bool:
    text = f"{reason or ''} {job.get('reason') or ''}".lower()
    return "perhaps out of memory" not in text and any(word in text for word in _MEMORY_WORDS)


def _last_metrics(directory: ExperimentDir) -> dict[str, Any]:
    """val_* of the newest row that has any, within the file's last 64 KiB."""
    for line in reversed(_tail(directory.metrics_path).split(b"\n")):
        if b'"val_' not in line:
            continue
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            return {key: value for key, value in row.items() if key.startswith("val_")}
    return {}


def _tail(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except OSError:
        return b""
