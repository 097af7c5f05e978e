"""job.json: what whoever started an experiment says of it, and which start is the later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imgtool.experiment.alive import parse_time
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.files import temporary_beside

JOB_NAME = "job.json"


def job_path(directory: ExperimentDir) -> Path:
    """Where `write_job` writes."""
    return directory.path / JOB_NAME


def read_job(directory: ExperimentDir) -> dict[str, Any] | None:
    """job.json, or None when there is none that can be read."""
    try:
        record = json.loads(job_path(directory).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def write_job(directory: ExperimentDir, **fields: Any) -> None:
    """Write job.json in one step; what it held before is gone.

    Without fsync: after a power cut there is no process that it could describe.

    Args:
        fields: executor, job_id, index, stat (one of schedulers.base.JOB_STATES), exit_code,
            attempt, submitted, log; `state` and `reason` are the executor's own verdict on a
            trainer that ended without a word, `ended` its time.

    Raises:
        OSError: it cannot be written.
    """
    path = job_path(directory)
    temporary = temporary_beside(path)
    try:
        temporary.write_text(json.dumps(fields, indent=2, default=str) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def attempt_of(record: Mapping[str, Any] | None) -> int | None:
    """The number of the start that a status.json or job.json is about; None in old ones."""
    value = (record or {}).get("attempt")
    return value if type(value) is int else None


def speaks_of(status: Mapping[str, Any] | None, job: Mapping[str, Any]) -> bool:
    """Whether a trainer's word is of a job's present turn or later, not of what was before it.

    The numbers of their starts say so; of old files, in which they lack, the times.
    """
    if not status:
        return False
    said, given = attempt_of(status), attempt_of(job)
    if said is not None and given is not None:
        return said >= given and said != job.get("goes_on_after")
    return is_later(status.get("started"), job.get("started") or job.get("submitted"), missing=True)


def is_last_word(status: Mapping[str, Any], job: Mapping[str, Any], *, missing: bool) -> bool:
    """Whether a job's end is of the very start that a trainer's word is of, and came after it.

    Args:
        missing: the answer where neither numbers nor times say so.
    """
    said, given = attempt_of(status), attempt_of(job)
    if said is not None and given is not None:
        return said <= given
    return is_later(job.get("ended"), status.get("heartbeat"), missing=missing)


def is_later(first: Any, second: Any, *, missing: bool) -> bool:
    """Whether time `first` is `second` or later; `missing` where one is not known."""
    a, b = parse_time(first), parse_time(second)
    return missing if a is None or b is None else a >= b


def is_same_job(job: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two records are of one job of a cluster; its number may not be known yet."""
    if not job or not other or job.get("executor") != other.get("executor"):
        return False
    if (job.get("name"), job.get("index") or 0) != (other.get("name"), other.get("index") or 0):
        return False
    ids = {job.get("job_id"), other.get("job_id")} - {None}
    return job.get("name") is not None and len(ids) < 2


def next_attempt(
    directory: ExperimentDir, job: Mapping[str, Any] | None = None, *, last: int | None = None
) -> int:
    """The number of a start that begins now: above every earlier one's.

    Args:
        job: the cluster's job that it begins in; job.json gave the number of its first turn.
        last: the number that its starter was given.
    """
    status, submitted = read_status(directory), read_job(directory)
    number = max((attempt_of(status) or 0) + 1, last or 0)
    given = attempt_of(submitted) or 0
    if last is None:
        number = max(number, given if is_same_job(submitted, job) else given + 1)
    return number
