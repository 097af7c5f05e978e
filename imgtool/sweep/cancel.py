"""Stopping trials that were started here: ask, wait for the save, then insist."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from imgtool.experiment.alive import is_process, start_ticks
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import holder
from imgtool.experiment.status import now_iso, read_status
from imgtool.process import leftovers
from imgtool.process.ladder import KILL_AFTER_SEC, Ladder, Step
from imgtool.schedulers import registry
from imgtool.schedulers.base import WAITING, Key, Scheduler, SchedulerError
from imgtool.sweep.refresh import Refreshed, job_words, owners_job, refresh
from imgtool.sweep.shared import ask_cancel, companions
from imgtool.sweep.state import ACTIVE, is_open, read_job, read_state

if TYPE_CHECKING:
    import psutil

POLL_SEC = 0.1
JOB_POLL_SEC, JOB_POLL_MAX_SEC = 1.0, 5.0
KILLED_WAIT_SEC = 30.0
CANCELLED = "cancelled"
CANCELLED_WAITING = "cancelled before it started"
CANCELLED_DEAF = "cancelled; it did not stop in time and was killed"


@dataclass(frozen=True)
class Leader:
    """The first process of a trial on this host; it passes a request to stop on.

    Attributes:
        directory: the trial's.
        pid, ticks: its number and its start, which name it for good.
    """

    directory: ExperimentDir
    pid: int
    ticks: int | None

    def is_alive(self) -> bool:
        return is_process(socket.gethostname(), self.pid, ticks=self.ticks)

    def send(self, number: signal.Signals) -> bool:
        """Signal it, unless it has ended and its number belongs to another process."""
        if not self.is_alive():
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, number)
            return True
        return False


def leader_of(directory: ExperimentDir) -> Leader | None:
    """Who trains here now on this host, as job.json, status.json or its owner says; None: nobody."""
    job = read_job(directory) or {}
    if job.get("executor") == "local" and is_process(
        job.get("host"), job.get("pid"), ticks=job.get("start_ticks"), started=job.get("started")
    ):
        return Leader(directory, job["pid"], start_ticks(job["pid"]))
    status: dict[str, Any] = read_status(directory) or {}
    if status.get("state") == "running" and is_process(
        status.get("host"), status.get("pid"), started=status.get("started")
    ):
        return Leader(directory, status["pid"], start_ticks(status["pid"]))
    owner = holder(directory)  # it has not said anything yet
    if owner is not None and owner.trains and owner.trainer.is_alive() and owner.trainer.pid:
        return Leader(directory, owner.trainer.pid, owner.trainer.start_ticks)
    return None


def stop(
    leaders: Sequence[Leader],
    *,
    grace_sec: float,
    kill_after_sec: float = KILL_AFTER_SEC,
    say: Callable[[str], None],
) -> list[Leader]:
    """INT to each leader; TERM to those that live on after the grace, then KILL to all of it.

    Args:
        leaders: of `leader_of`.
        grace_sec: to stop and save.
        kill_after_sec: from TERM to KILL.
        say: takes a line on what is done.

    Returns:
        those that live still, which is nobody unless a process hangs in a driver.
    """
    stops = [_Stop(leader, Ladder(grace_sec, kill_after_sec), say) for leader in leaders]
    while left := [one for one in stops if not one.ladder.is_over]:
        for one in left:
            one.look()
        time.sleep(POLL_SEC)
    return [one.leader for one in stops if one.leader.is_alive()]


class _Stop:
    """A leader that is no child of ours, and the ladder that ends it."""

    def __init__(self, leader: Leader, ladder: Ladder, say: Callable[[str], None]) -> None:
        self.leader, self.ladder, self._say = leader, ladder, say
        self._below: list[psutil.Process] = []  # nobody tells us of them once it is gone
        ladder.ask("cancel", time.monotonic())

    def look(self) -> None:
        """Whatever is due."""
        now = time.monotonic()
        if not self.leader.is_alive():
            self.ladder.leader_ended(len(self._living()), now)
        for step in self.ladder.advance(now):
            self._do(step)

    def _do(self, step: Step) -> None:
        name = self.leader.directory.path.name
        if step.to in ("group", "all") and not step.again:
            what = "stopped" if step.to == "group" else "ended"
            self._say(f"{name} has not {what}: sending {step.number.name}")
        if step.to == "left":
            leftovers.send_all(self._living(), step.number)
            return
        self.leader.send(step.number)
        if step.to != "leader":  # its group may be that of a shell's script
            self._below = [*self._living(), *leftovers.descendants(root=self.leader.pid)]
            leftovers.send_all(self._below, step.number)
        self.leader.send(signal.SIGCONT)  # a suspended one could not obey

    def _living(self) -> list[psutil.Process]:
        return leftovers.living(self._below)


def job_name(directory: ExperimentDir) -> str:
    """Its job for people: `lsf job 123[4]`."""
    job = read_job(directory) or {}
    return f"{job.get('executor')} job {job_words(job)}"


def interrupt_jobs(directories: Sequence[ExperimentDir], *, say: Callable[[str], None]) -> None:
    """INT to cluster jobs that run; those that wait are removed. `end_jobs` sees to their end.

    Where others share the job, and are not to be stopped, the job's own pool is asked.
    """
    alone = []
    named = [one.path for one in directories]
    for one in directories:
        others = companions(one, named)
        if others:
            _ask_pool(one, others, say)
        else:
            alone.append(one)
    waiting = [one for one in alone if (read_job(one) or {}).get("stat") in WAITING]
    running = [one for one in alone if one not in waiting]
    _ask(running, CANCELLED, say, lambda scheduler, keys: scheduler.signal(keys, "INT"))
    _ask(waiting, CANCELLED_WAITING, say, lambda scheduler, keys: scheduler.remove(keys))


def _ask_pool(directory: ExperimentDir, others: Sequence[str], say: Callable[[str], None]) -> None:
    """A job that waits finds in job.json that the trial is no longer its own."""
    job, name = read_job(directory) or {}, directory.path.name
    ask_cancel(directory)
    say(
        f"{name}: its job is shared with {', '.join(others)}; its pool is asked to stop {name} alone"
    )
    if job.get("stat") in WAITING:
        ended = {"stat": "cancelled", "state": "stopped", "ended": now_iso()}
        write_job(directory, **{**job, **ended, "reason": CANCELLED_WAITING})
    else:
        write_job(directory, **{**job, "asked": CANCELLED})


def end_jobs(
    directories: Sequence[ExperimentDir], *, grace_sec: float, say: Callable[[str], None]
) -> None:
    """Wait until the jobs of `interrupt_jobs` have ended, then end those that have not."""
    named = [one.path for one in directories]
    left = _wait_for_end(directories, grace_sec, say)
    for one in left:
        if others := companions(one, named):
            say(f"{one.path.name} has not stopped yet; its job goes on with {', '.join(others)}")
    left = [one for one in left if not companions(one, named)]
    if not left:
        return
    told = _ask(left, CANCELLED_DEAF, say, lambda scheduler, keys: scheduler.remove(keys))
    for one in _wait_for_end(told, KILLED_WAIT_SEC, say):
        ended = {"stat": "cancelled", "state": "stopped", "ended": now_iso()}
        write_job(one, **{**(read_job(one) or {}), **ended, "reason": CANCELLED_DEAF})


def _wait_for_end(
    directories: Sequence[ExperimentDir], wait_sec: float, say: Callable[[str], None]
) -> list[ExperimentDir]:
    """Ask schedulers again and again; those that have not ended. Where one does not answer, the
    trainer's own word has to do."""
    deadline = time.monotonic() + wait_sec
    left, pause, complaint = list(directories), JOB_POLL_SEC, None
    while left:
        said = refresh(left, get=partial(registry.get, timeout_sec=registry.QUICK_SEC))
        if said.text is not None and said.text != complaint:
            say(f"{said.text}; going by what the files say")
        complaint = said.text
        left = [one for one in left if _is_at_work(one, said)]
        rest = deadline - time.monotonic()
        if rest <= 0:
            break
        if left:
            time.sleep(min(pause, rest))
            pause = min(JOB_POLL_MAX_SEC, pause * 1.5)
    return left


def _is_at_work(directory: ExperimentDir, said: Refreshed) -> bool:
    job = read_job(directory)
    if job is None or not is_open(job):
        return False
    return job["executor"] not in said.trouble or read_state(directory).state in ACTIVE


def _ask(
    directories: Sequence[ExperimentDir],
    why: str,
    say: Callable[[str], None],
    what: Callable[[Scheduler, list[Key]], list[str]],
) -> list[ExperimentDir]:
    """As `_tell`; that we asked stands in job.json before the job can end of it."""
    before = {one.path: read_job(one) for one in directories}
    for one in directories:
        write_job(one, **{**(before[one.path] or {}), "asked": why})
    told = _tell(directories, say, what)
    for one in directories:
        if one not in told:
            write_job(one, **(before[one.path] or {}))
    return told


def forget_waiting(directories: Sequence[ExperimentDir], *, say: Callable[[str], None]) -> None:
    """Remove jobs that wait for a directory in which one submitted by hand trains.

    job.json is about that one then, which can be stopped as any other.
    """
    for one in directories:
        job = read_job(one) or {}
        if job.get("stat") in WAITING and (other := owners_job(one, job)) is not None:
            if is_open(job) and job.get("job_id"):
                _tell([one], say, lambda scheduler, keys: scheduler.remove(keys))
            write_job(one, **other)


def _tell(
    directories: Sequence[ExperimentDir],
    say: Callable[[str], None],
    what: Callable[[Scheduler, list[Key]], list[str]],
) -> list[ExperimentDir]:
    """Those whose scheduler was told; trials elsewhere are not to suffer when one was not."""
    groups: dict[str, list[ExperimentDir]] = {}
    for directory in directories:
        groups.setdefault(str((read_job(directory) or {}).get("executor")), []).append(directory)
    told = []
    for name, members in groups.items():
        try:
            lines = what(registry.get(name), sorted({_key(one) for one in members}))
        except SchedulerError as error:
            say(f"{name} jobs are not cancelled: {error}")
            continue
        for line in lines:
            say(line)
        told += members
    return told


def _key(directory: ExperimentDir) -> Key:
    job = read_job(directory) or {}
    return int(job["job_id"]), int(job.get("index") or 0)
