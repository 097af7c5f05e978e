"""A trial's process on this machine, and how it is started."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from imgtool.experiment.alive import start_ticks
from imgtool.experiment.owner import Hold
from imgtool.experiment.status import now_iso
from imgtool.process.child import Child
from imgtool.process.ladder import Ladder
from imgtool.process.leftovers import MARK
from imgtool.sweep import jobs
from imgtool.sweep.slots import Slot
from imgtool.sweep.trial import Trial
from imgtool.sweep.verdict import stamp


@dataclass(kw_only=True, eq=False)
class Running:
    """A trial that trains.

    Attributes:
        ladder: how far it has been brought to its end.
        hold: keeps others from starting it.
        job: its job.json.
        status_before: what status.json was when it was started.
        begun: by the monotonic clock.
        beside: the trials that ran meanwhile, by name, and whether on a GPU of this one's.
        is_alone: whether nobody else is to be on its GPUs, or on the machine.
    """

    trial: Trial
    slot: Slot
    child: Child
    ladder: Ladder
    hold: Hold
    job: dict[str, Any]
    status_before: tuple[int, int] | None
    begun: float = field(default_factory=time.monotonic)
    beside: dict[str, bool] = field(default_factory=dict)
    is_alone: Literal["gpu", "machine"] | None = None


def start(
    trial: Trial,
    slot: Slot,
    hold: Hold,
    command: Sequence[str],
    ladder: Ladder,
    cluster_job: Mapping[str, Any] | None = None,
) -> Running:
    """Start a trial in a session of its own, which outlives us; its output goes to child.log.

    Args:
        cluster_job: the cluster's job that this process runs in, to which the trial belongs; who
            submitted it has written the config.

    Raises:
        OSError, UserError: it cannot be started.
    """
    before = stamp(trial.directory)
    if cluster_job is None:
        jobs.write_config(trial)
    environment = {**os.environ, **slot.env, **hold.environment(), MARK: str(trial.directory.path)}
    now = now_iso()  # before the trainer can say when it started
    with open(trial.directory.child_log_path, "ab") as log:
        child = Child(command, env=environment, output=log.fileno())
    job: dict[str, Any] = {
        "stat": "running",
        "exit_code": None,
        "attempt": hold.attempt,
        "started": now,
        "slot": slot.label,
        "identity": trial.identity,
    }
    if cluster_job is None:
        job |= {
            "executor": "local",
            "job_id": None,
            "index": None,
            "submitted": now,
            "host": socket.gethostname(),
            "pid": child.pid,
            "start_ticks": start_ticks(child.pid),
            "log": str(trial.directory.child_log_path),
        }
    return Running(
        trial=trial,
        slot=slot,
        child=child,
        ladder=ladder,
        hold=hold,
        job=job,
        status_before=before,
    )
