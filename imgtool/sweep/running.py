"""A trial's process on this machine, and how it is started."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """

    trial: Trial
    slot: Slot
    child: Child
    ladder: Ladder
    hold: Hold
    job: dict[str, Any]
    status_before: tuple[int, int] | None
    begun: float = field(default_factory=time.monotonic)


def start(trial: Trial, slot: Slot, hold: Hold, command: Sequence[str], ladder: Ladder) -> Running:
    """Start a trial in a session of its own, which outlives us; its output goes to child.log.

    Raises:
        OSError, UserError: it cannot be started.
    """
    before = stamp(trial.directory)
    jobs.write_config(trial)
    environment = {**os.environ, **slot.env, **hold.environment(), MARK: str(trial.directory.path)}
    now = now_iso()  # before the trainer can say when it started
    with open(trial.directory.child_log_path, "ab") as log:
        child = Child(command, env=environment, output=log.fileno())
    job = {
        "executor": "local",
        "job_id": None,
        "index": None,
        "stat": "running",
        "exit_code": None,
        "attempt": hold.attempt,
        "submitted": now,
        "started": now,
        "host": socket.gethostname(),
        "pid": child.pid,
        "start_ticks": start_ticks(child.pid),
        "slot": slot.label,
        "log": str(trial.directory.child_log_path),
        "identity": trial.identity,
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
