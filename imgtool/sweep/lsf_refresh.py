"""job.json of cluster jobs, brought up to date with what LSF says, in one question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from imgtool.experiment.alive import parse_time
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import heartbeat_age_sec, now_iso, read_status
from imgtool.sweep.lsf_client import Client, Row, spec
from imgtool.sweep.lsf_words import LsfError
from imgtool.sweep.state import ENDED, STALE_SEC, WAITING, is_open, read_job, write_job

_AS = {"POST_DONE": "DONE", "POST_ERR": "DONE"}  # what follows a job is not the job
CLEAN_SEC = 3600.0  # LSF forgets jobs an hour after their end, unless the site says otherwise
SETTLE_SEC = 60.0  # a job may take a moment to be seen
_FINAL = frozenset({"completed", "stopped", "failed", "diverged"})


def refresh(directories: Iterable[ExperimentDir], *, client: Client | None = None) -> str | None:
    """Ask LSF about the jobs of these experiments that have not ended.

    Args:
        directories: exp_dirs; those without such a job cost nothing.
        client: how LSF is asked.

    Returns:
        why LSF could not be asked; then every job.json is as it was. None if all is well.
    """
    jobs = [(one, job) for one in directories if is_open(job := read_job(one)) and job is not None]
    if not jobs:
        return None
    client = client or Client()
    try:
        jobs = _found_by_name(jobs, client)
        rows = client.poll(job["job_id"] for _, job in jobs)
        missing = [(one, job) for one, job in jobs if _key(job) not in rows]
        history = client.history([_key(job) for _, job in missing]) if missing else {}
    except LsfError as error:
        return str(error)
    with suppress(OSError):  # a full disk; the next time will do
        for directory, job in jobs:
            row = rows.get(_key(job))
            if row is None and _key(job) in history:
                row = history[_key(job)] or Row(*_key(job), stat=str(job.get("stat")))
            if row is not None:
                _update(directory, job, _noted(directory, job, row))
            else:
                _update(directory, job, _missed(directory, job))
    return None


def _found_by_name(
    jobs: list[tuple[ExperimentDir, dict[str, Any]]], client: Client
) -> list[tuple[ExperimentDir, dict[str, Any]]]:
    """Jobs whose submission was cut off before its answer: LSF has them under their name, or not."""
    ids: dict[str, int | None] = {}
    found = []
    for directory, job in jobs:
        if not job.get("job_id"):
            name = str(job["name"])
            if name not in ids:
                ids[name] = client.find(name)
            if ids[name] is None:
                if _age_sec(job.get("submitted")) > SETTLE_SEC:
                    verdict = _ended(job, "EXIT", state="stopped", reason="LSF never took its job")
                    write_job(directory, **verdict)
                continue
            write_job(directory, **(job := {**job, "job_id": ids[name]}))
        found.append((directory, job))
    return found


def _noted(directory: ExperimentDir, job: dict[str, Any], row: Row) -> dict[str, Any]:
    """job.json by what LSF says now."""
    stat = _AS.get(row.stat, row.stat)
    known = {key: value for key, value in job.items() if key != "missing"}
    status = _own_status(directory, job)
    if stat not in ENDED:
        new = {**known, "stat": stat}
        since = parse_time(job.get("started") or job.get("submitted"))
        started = parse_time((status or {}).get("started"))
        has_stopped = status is not None and status.get("state") == "stopped"
        if has_stopped and (since is None or started is None or started >= since):
            # It goes on in another turn: what the last one said is not about this one.
            new["started"] = now_iso()
            new["attempt"] = int(job.get("attempt") or 1) + (stat in WAITING)
        return new
    if stat == "DONE":
        return _ended(known, stat, exit_code=0)
    if stat == "ZOMBI":
        return _ended(known, stat, reason="killed while LSF had lost its host")
    if status is None and "TERM_OWNER" in (row.exit_reason or ""):
        return _ended(known, stat, row.exit_code, state="stopped", reason="cancelled in the queue")
    return _ended(known, stat, row.exit_code, reason=row.exit_reason)


def _missed(directory: ExperimentDir, job: dict[str, Any]) -> dict[str, Any]:
    """A job that neither bjobs nor bhist knows: the trainer's own word decides."""
    status = _own_status(directory, job)
    if status is not None and status.get("state") in _FINAL:
        is_well = status["state"] in ("completed", "stopped")
        return _ended(job, "DONE" if is_well else "EXIT")
    age = heartbeat_age_sec(status) if status is not None else None
    if age is not None and age < STALE_SEC:
        return job  # it lives, whatever LSF says
    if "missing" not in job and _age_sec(job.get("submitted")) < CLEAN_SEC:
        return {**job, "missing": now_iso()}  # once may be a slip
    return _ended(job, "EXIT", state="stale", reason=f"LSF forgot job {spec(*_key(job))}")


def _ended(
    job: Mapping[str, Any],
    stat: str,
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
    """status.json, when a trainer wrote it after this job was submitted."""
    status = read_status(directory)
    started = parse_time((status or {}).get("started"))
    submitted = parse_time(job.get("submitted"))
    if started is None or (submitted is not None and started < submitted):
        return None
    return status


def _update(directory: ExperimentDir, old: dict[str, Any], new: dict[str, Any]) -> None:
    if new != old:
        write_job(directory, **new)


def _key(job: Mapping[str, Any]) -> tuple[int, int]:
    return int(job["job_id"]), int(job.get("index") or 0)


def _age_sec(text: Any) -> float:
    when = parse_time(text)
    return float("inf") if when is None else (datetime.now(UTC) - when).total_seconds()
