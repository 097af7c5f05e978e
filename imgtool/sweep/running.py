"""A trial's process on this machine: how it is started, asked to stop, and signalled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from imgtool.experiment.alive import start_ticks
from imgtool.experiment.status import now_iso
from imgtool.process.leftovers import MARK
from imgtool.sweep import jobs
from imgtool.sweep.claim import Claim
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import read_job
from imgtool.sweep.trial import Trial
from imgtool.sweep.verdict import stamp

if TYPE_CHECKING:
    import psutil


@dataclass(kw_only=True, eq=False)
class Running:
    """A trial that trains.

    Attributes:
        claim: keeps others from starting it.
        job: its job.json.
        status_before: what status.json was when it was started.
        begun: by the monotonic clock.
        stage: how far it has been brought to its end.
        deadline: when the next stage is due; None while nothing is.
        killed_at: when it first got KILL.
        leftovers: what has outlived its leader.
    """

    trial: Trial
    slot: Slot
    process: subprocess.Popen[bytes]
    claim: Claim
    job: dict[str, Any]
    status_before: tuple[int, int] | None
    begun: float = field(default_factory=time.monotonic)
    stage: Literal["running", "asked", "term", "kill", "ended"] = "running"
    deadline: float | None = None
    killed_at: float | None = None
    leftovers: list[psutil.Process] = field(default_factory=list)

    @property
    def is_asked(self) -> bool:
        """Whether it has been asked to stop."""
        return "asked" in self.job

    def ask(self, why: str, grace_sec: float) -> None:
        """INT to the leader, which is to save and end within `grace_sec`."""
        self.stage = "asked"
        self.deadline = time.monotonic() + grace_sec
        self.job["asked"] = why
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGCONT)  # a suspended one could not obey

    def to_group(self, number: signal.Signals) -> None:
        """A signal to the leader and those that have stayed in its group."""
        for sent in (number, signal.SIGCONT):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sent)


def start(trial: Trial, slot: Slot, held: Claim, command: Sequence[str]) -> Running:
    """Start a trial in a session of its own; its output goes to child.log.

    Raises:
        OSError, UserError: it cannot be started.
    """
    earlier = read_job(trial.directory) or {}
    before = stamp(trial.directory)
    jobs.write_config(trial)
    process = _spawn(trial, slot, command)
    now = now_iso()
    job = {
        "executor": "local",
        "job_id": None,
        "index": None,
        "stat": "RUN",
        "exit_code": None,
        "attempt": _number(earlier.get("attempt")) + 1,
        "submitted": now,
        "started": now,
        "host": socket.gethostname(),
        "pid": process.pid,
        "start_ticks": start_ticks(process.pid),
        "slot": slot.label,
        "log": str(trial.directory.child_log_path),
        "identity": trial.identity,
    }
    return Running(
        trial=trial, slot=slot, process=process, claim=held, job=job, status_before=before
    )


def _spawn(trial: Trial, slot: Slot, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **slot.env, MARK: str(trial.directory.path)}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    with open(trial.directory.child_log_path, "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _number(value: Any) -> int:
    return value if type(value) is int else 0
