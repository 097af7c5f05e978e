"""job.json of cluster jobs, brought up to date with what schedulers say, in one question each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from imgtool.errors import ExitCode
from imgtool.experiment.alive import parse_time
from imgtool.experiment.job import attempt_of, by_hand, is_same_job, speaks_of, write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import holder
from imgtool.experiment.status import heartbeat_age_sec, now_iso, read_status
from imgtool.schedulers import registry
from imgtool.schedulers.base import ENDED, WAITING, JobState, Key, Scheduler, SchedulerError, Seen
from imgtool.sweep.state import STALE_SEC, is_open, read_job

CLEAN_SEC = 3600.0  # schedulers forget jobs some time after their end
SETTLE_SEC = 60.0  # a job may take a moment to be seen
_WELL = frozenset({"completed", "stopped", "dropped"})
_FINAL = _WELL | {"failed", "diverged"}
_SIGNALLED = frozenset({ExitCode.INTERRUPTED, 128 + signal.SIGTERM, 128 + signal.SIGKILL})
_Job = tuple[ExperimentDir, dict[str, Any]]


@dataclass(frozen=True)
class Refreshed:
    """How the asking went.

    Attributes:
        trouble: executor -> why it could not be asked; its jobs' files are as they were.
    """

    trouble: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str | None:
        """All of it in a line; None if all is well."""
        return "; ".join(dict.fromkeys(self.trouble.values())) or None


def refresh(
    directories: Iterable[ExperimentDir], *, get: Callable[[str], Scheduler] = registry.get
) -> Refreshed:
    """Ask schedulers about the jobs of these experiments that have not ended.

    Args:
        directories: exp_dirs; those without such a job cost nothing.
        get: the scheduler of a name.
    """
    groups: dict[str, list[_Job]] = {}
    for directory in directories:
        job = read_job(directory)
        if job is not None and job.get("exit_code") == ExitCode.USAGE:  # was it in use?
            job = _note_owner(directory, job) or job
        if job is not None and is_open(job):
            groups.setdefault(str(job["executor"]), []).append((directory, job))
    trouble = {}
    for name, jobs in groups.items():
        try:
            _ask(get(name), jobs)
        except SchedulerError as error:
            trouble[name] = str(error)
    return Refreshed(trouble)


def _ask(scheduler: Scheduler, jobs: list[_Job]) -> None:
    jobs = _found_by_name(jobs, scheduler)
    rows: dict[Key, Seen | None] = {}
    said = {directory: read_status(directory) for directory, _ in jobs}
    if jobs:
        rows |= scheduler.poll({job["job_id"]: str(job.get("name") or "") for _, job in jobs})
    missing = {_key(job): str(job.get("name") or "") for _, job in jobs if _key(job) not in rows}
    if missing:
        rows |= scheduler.history(missing)
    with suppress(OSError):  # a full disk; the next time will do
        for directory, job in jobs:
            if _key(job) not in rows:
                new = _missed(directory, job)
            else:
                seen = rows[_key(job)] or Seen(state=job["stat"])
                new = _noted(directory, job, seen, said[directory])
            # The pool of a job that trials share writes there too, and knows better.
            if new != job and read_job(directory) == job:
                write_job(directory, **new)


def _found_by_name(jobs: list[_Job], scheduler: Scheduler) -> list[_Job]:
    """Jobs whose submission was cut off before its answer: they are there under their name, or not."""
    ids: dict[str, int | None] = {}
    found = []
    for directory, job in jobs:
        if not job.get("job_id"):
            name = str(job["name"])
            if name not in ids:
                ids[name] = scheduler.find(name)
            if ids[name] is None:
                if _age_sec(job.get("submitted")) > SETTLE_SEC:
                    reason = f"{scheduler.name} never took its job"
                    write_job(directory, **_ended(job, "failed", state="stopped", reason=reason))
                continue
            job = {**job, "job_id": ids[name]}
            if job.get("log"):
                job["log"] = scheduler.log_path(str(job["log"]), _key(job))
            write_job(directory, **job)
        found.append((directory, job))
    return found


def _noted(
    directory: ExperimentDir, job: dict[str, Any], seen: Seen, said: Mapping[str, Any] | None
) -> dict[str, Any]:
    """job.json by what the scheduler says now.

    Args:
        said: status.json, read before the scheduler was asked.
    """
    known = {key: value for key, value in job.items() if key != "missing"}
    if seen.state in ENDED:
        return _at_the_end(directory, known, seen)
    new = {**known, "stat": seen.state, "reason": seen.reason}
    if said is None or said.get("state") != "stopped" or not _is_of(said, job):
        return new
    # It goes on in another turn: what the last one said is not about this one.
    if attempt_of(said) is None:
        if speaks_of(said, job):
            new["started"] = now_iso()
    elif seen.state in WAITING:
        new["goes_on_after"] = attempt_of(said)
    return new


def _at_the_end(directory: ExperimentDir, job: dict[str, Any], seen: Seen) -> dict[str, Any]:
    if seen.state == "done":
        return _ended(job, "done", exit_code=0)
    status = _own_status(directory, job)
    why = None
    if (status or {}).get("state") in _FINAL:
        pass  # the trainer has had its last word
    elif job.get("asked") and (seen.state == "cancelled" or seen.exit_code in _SIGNALLED):
        why = str(job["asked"])
    elif seen.exit_code == ExitCode.INTERRUPTED and seen.state == "failed":
        why = "interrupted before it could save"
    elif seen.state == "cancelled" and status is None:
        why = "cancelled in the queue"
    if why is None:
        return _ended(job, seen.state, seen.exit_code, reason=seen.reason)
    return _ended(job, seen.state, seen.exit_code, state="stopped", reason=why)


def _missed(directory: ExperimentDir, job: dict[str, Any]) -> dict[str, Any]:
    """A job that the scheduler no longer knows: the trainer's own word decides."""
    status = _own_status(directory, job)
    if status is not None and status.get("state") in _FINAL:
        return _ended(job, "done" if status["state"] in _WELL else "failed")
    if job.get("asked"):
        return _ended(job, "cancelled", state="stopped", reason=str(job["asked"]))
    age = heartbeat_age_sec(status) if status is not None else None
    if age is not None and age < STALE_SEC:
        return job  # it lives, whatever the scheduler says
    if "missing" not in job and _age_sec(job.get("submitted")) < CLEAN_SEC:
        return {**job, "missing": now_iso()}  # once may be a slip
    reason = f"{job['executor']} forgot job {job_words(job)}"
    return _ended(job, "failed", state="stale", reason=reason)


def _ended(
    job: Mapping[str, Any],
    stat: JobState,
    exit_code: int | None = None,
    *,
    state: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    known = {key: value for key, value in job.items() if key not in ("started", "missing")}
    verdict = {} if state is None else {"state": state}
    return {
        **known,
        "stat": stat,
        "exit_code": exit_code,
        "ended": now_iso(),
        "reason": reason,
        **verdict,
    }


def _own_status(directory: ExperimentDir, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """status.json, when a trainer wrote it in this job, or later."""
    status = read_status(directory)
    return status if status is not None and _is_of(status, job) else None


def _is_of(status: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    return speaks_of(status, {**job, "started": None})


def owners_job(directory: ExperimentDir, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What job.json would say of a job by hand that owns the directory, if `job` is another one.

    Args:
        job: job.json as it is.
    """
    found = holder(directory)
    other = None if found is None else found.job
    if found is None or not other or other.get("name") is None or is_same_job(job, other):
        return None
    since = found.process.start
    return by_hand(other, found.attempt or 1, job.get("identity"), since=since)


def _note_owner(directory: ExperimentDir, job: Mapping[str, Any]) -> dict[str, Any] | None:
    new = owners_job(directory, job)
    if new is not None:
        with suppress(OSError):
            write_job(directory, **new)
    return new


def job_words(job: Mapping[str, Any]) -> str:
    """A job for people: `123`, or `123[4]` for one of an array."""
    index = job.get("index")
    return f"{job.get('job_id')}[{index}]" if index else str(job.get("job_id"))


def _key(job: Mapping[str, Any]) -> Key:
    return int(job["job_id"]), int(job.get("index") or 0)


def _age_sec(text: Any) -> float:
    when = parse_time(text)
    return float("inf") if when is None else (datetime.now(UTC) - when).total_seconds()
