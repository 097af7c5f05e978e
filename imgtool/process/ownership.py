"""Taking an experiment's directory, and saying in whose name: a cluster's job says who it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imgtool.experiment import owner
from imgtool.experiment.job import attempt_of, is_same_job, read_job, write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import Hold
from imgtool.experiment.status import now_iso
from imgtool.schedulers import registry
from imgtool.schedulers.base import JOB_VARIABLE, WAITING


def take(directory: ExperimentDir, *, trains: bool = False) -> Hold:
    """Take a directory for a training, or a part in what the starter of this process holds.

    A job that has it says so in job.json, so that one that was submitted by hand is seen, can be
    cancelled, and is not submitted again.

    Args:
        trains: this process trains, itself.

    Raises:
        InUse, ExperimentError: as `owner.take`.
    """
    job = this_job(os.environ)
    hold = owner.take(directory, trains=trains, job=job)
    if job is not None and job["name"] is not None and hold.role == "holder":
        with suppress(OSError):  # a full disk; the training itself will say so
            _note_start(directory, job, hold.attempt)
    return hold


def this_job(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """executor, job_id, index and name of the job with these variables; None outside a job.

    The name is None where its job file is none of ours.
    """
    job = registry.own_job(environ)
    return None if job is None else {**job, "name": environ.get(JOB_VARIABLE) or None}


def _note_start(directory: ExperimentDir, job: Mapping[str, Any], attempt: int) -> None:
    found = read_job(directory) or {}
    if is_same_job(found, job):
        if attempt_of(found) != attempt:  # its next turn; in the first one nothing is new
            write_job(directory, **{**found, **job, "stat": "running", "attempt": attempt})
        return
    if found.get("executor") != "local" and found.get("stat") in WAITING:
        return  # another job, which will have its turn as well
    now = now_iso()
    write_job(
        directory,
        **job,
        stat="running",
        exit_code=None,
        attempt=attempt,
        submitted=now,
        started=now,
        by_hand=True,
        identity=found.get("identity"),
    )
