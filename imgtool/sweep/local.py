"""Trials on this machine: a pool of slots, watched by one loop without threads.

A signal, or a failure with fail_fast, asks every trial to save and stop; nothing new starts.
Each trial has a Ladder of its own.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imgtool.errors import ExitCode, UserError
from imgtool.experiment import owner
from imgtool.experiment.job import next_attempt, read_job, write_job
from imgtool.experiment.status import now_iso
from imgtool.process import leftovers, ownership
from imgtool.process.inbox import Inbox
from imgtool.process.ladder import KILL_AFTER_SEC, POLL_SEC, WATCHED, Ladder, Requests, Step
from imgtool.process.stopping import at_terminal
from imgtool.sweep import jobs
from imgtool.sweep.listener import Listener, Silence
from imgtool.sweep.memory import Lone, carried, company, is_of_gpu, meet, take_alone
from imgtool.sweep.order import Order
from imgtool.sweep.running import Running, start
from imgtool.sweep.shared import clear_cancel, is_cancel_asked, why_left
from imgtool.sweep.slots import Slot, give_back, take
from imgtool.sweep.state import BROKEN, TrialState, read_state
from imgtool.sweep.trial import Plan, Trial
from imgtool.sweep.verdict import done_meanwhile, stamp, traces, verdict
from imgtool.units import count

if TYPE_CHECKING:
    import psutil

GRACE_SEC = 300.0
TICK_SEC = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a pool works.

    Attributes:
        slots: where trials train; as many run at once.
        fail_fast: the first failure stops the others, which save.
        grace_sec: from asking a trial to stop to TERM.
        kill_after_sec: from TERM to KILL.
        command_of: program and arguments that train a trial.
        order: says what is to be run after the first trials; None where they are all.
        cluster_job: executor, job_id, index and name of the cluster's job that the pool runs in and
            its trials belong to; None where the trials are this machine's own.
    """

    slots: tuple[Slot, ...]
    fail_fast: bool = False
    grace_sec: float = GRACE_SEC
    kill_after_sec: float = KILL_AFTER_SEC
    command_of: Callable[[Plan, Trial], list[str]] = jobs.timed_command
    order: Order | None = None
    cluster_job: Mapping[str, Any] | None = None


def run(
    plan: Plan, trials: Iterable[Trial], options: Options, listener: Listener
) -> signal.Signals | None:
    """Run trials until all have ended; in the main thread, one pool at a time.

    Each runs in a session of its own, its output goes to child.log; job.json says what became
    of it even where it could not say so itself. Its owner file keeps others from starting it. INT,
    TERM, USR2, HUP and QUIT ask every trial once to stop and save; a second Ctrl-C at a
    terminal goes on to the next step.

    Returns:
        the signal that ended it early, or None.
    """
    pool = _Pool(plan, trials, options, listener)
    with Inbox(WATCHED) as inbox:
        try:
            pool.loop(inbox)
        except BaseException:
            pool.stop("the sweep failed")  # a fault of ours costs no trial its work
            pool.listener = Silence()
            pool.loop(inbox)
            raise
    return pool.received


class _Pool:
    """The trials that wait, those that run, and the slots that are free."""

    def __init__(
        self, plan: Plan, trials: Iterable[Trial], options: Options, listener: Listener
    ) -> None:
        self.listener: Listener = listener
        self.received: signal.Signals | None = None
        self._plan, self._options = plan, options
        self._waiting = deque((trial, traces(trial.directory)) for trial in trials)
        self._alone: deque[Lone] = deque()
        self._free = deque(options.slots)
        self._running: list[Running] = []
        self._stopping = self._has_told = False
        self._requests = Requests()
        self._next_tick = 0.0
        if not leftovers.become_subreaper():
            listener.note("this system has no subreaper: daemons of a trial may outlive it")
        self._ours = leftovers.children()

    def loop(self, inbox: Inbox) -> None:
        """Until nothing waits or runs."""
        while True:
            self._fill()
            if not self._running and not self._waits_for_others():
                return
            for number in inbox.wait(self._wake_at()):
                self._receive(number)
            for running in [*self._running]:
                self._look_after(running)
            leftovers.reap(self._ours | {running.child.pid for running in self._running})
            self._tick()

    def stop(self, why: str) -> None:
        """Ask every trial to stop and save; nothing new starts."""
        self._waiting.clear()
        if self._stopping:
            return
        self._stopping = True
        for lone in self._alone:
            self._finish(lone.trial, read_state(lone.trial.directory))
        self._alone.clear()
        now = time.monotonic()
        self._requests.sent(signal.SIGINT, now)
        for running in self._running:
            if not running.child.has_ended():
                running.ladder.ask(why, now)

    def _fill(self) -> None:
        while not self._stopping:
            self._ask_for_more()
            if not self._waiting:
                self._fill_alone()
                return
            if any(running.is_alone for running in self._running):
                return
            trial, before = self._waiting[0]
            slot = take(self._free, trial.num_ranks)
            if slot is None and self._running:
                return
            self._waiting.popleft()
            if slot is None:
                self._refuse(trial, f"it needs {trial.num_ranks} slots, and there are too few")
            elif not self._start(trial, slot, before):
                give_back(self._free, slot)

    def _fill_alone(self) -> None:
        """Trials that ran out of memory beside others, once nobody else wants the slots."""
        while self._alone:
            lone = self._alone[0]
            slot = take_alone(self._free, lone, self._running)
            if slot is None:
                return
            self._alone.popleft()
            if not self._start(lone.trial, slot, traces(lone.trial.directory), lone):
                give_back(self._free, slot)

    def _ask_for_more(self) -> None:
        """Of a sweep with an order, once a slot is free and nothing waits for it."""
        order = self._options.order
        if order is not None and self._free and not self._waiting:
            self._waiting.extend((trial, traces(trial.directory)) for trial in order.more())
            for line in order.news():
                self.listener.note(line)
            for trial, reason in order.given_up():
                self._leave(trial, reason)

    def _waits_for_others(self) -> bool:
        """Whether what is left wants trials that somebody else runs."""
        order = self._options.order
        names = () if order is None or self._stopping else order.waits_for
        if names and not self._has_told:
            self._has_told = True
            self.listener.note(f"waiting for {count(len(names), 'trial')} that others run")
        return bool(names)

    def _leave(self, trial: Trial, reason: str) -> None:
        self.listener.left(trial, reason)
        if self._options.order is not None:
            self._options.order.gone(trial)

    def _start(
        self,
        trial: Trial,
        slot: Slot,
        before: tuple[tuple[int, int] | None, ...],
        lone: Lone | None = None,
    ) -> bool:
        """Whether the trial runs now; else someone was told why not."""
        job = self._options.cluster_job
        if job is not None and (reason := why_left(trial.directory, job)):
            self._leave(trial, reason)
            return False
        try:
            hold = owner.take(trial.directory) if job is None else ownership.take(trial.directory)
        except owner.InUse as error:
            self._leave(trial, f"in use by {error.owner}")
            return False
        except UserError as error:
            self._refuse(trial, str(error))
            return False
        changed = (
            job is None and traces(trial.directory) != before
        )  # the job's start is noted there
        if reason := done_meanwhile(trial, changed=changed):
            hold.release()
            self._leave(trial, reason)
            return False
        ladder = Ladder(self._options.grace_sec, self._options.kill_after_sec)
        try:
            command = self._options.command_of(self._plan, trial)
            earlier = read_job(trial.directory)
            running = start(trial, slot, hold, command, ladder, job)
        except (OSError, UserError) as error:
            hold.release()
            self._refuse(trial, str(error))
            return False
        running.job |= carried(earlier)
        if lone is not None:
            running.is_alone = lone.kind
            running.job["alone"] = {"tried": True, "beside": [*lone.beside]}
        meet(running, self._running)
        self._running.append(running)
        with suppress(OSError):
            hold.add_child(running.child.pid)
        self._note_job(running)
        self.listener.started(trial, slot, running.child.pid)
        return True

    def _refuse(self, trial: Trial, reason: str) -> None:
        """A trial that cannot be started."""
        if trial.directory.path.is_dir():
            with suppress(OSError):
                write_job(
                    trial.directory,
                    executor="local",
                    attempt=next_attempt(trial.directory),
                    stat="failed",
                    exit_code=None,
                    ended=now_iso(),
                    state="failed",
                    reason=reason,
                    identity=trial.identity,
                )
        found = replace(read_state(trial.directory), state="failed", reason=reason)
        self._finish(trial, found)

    def _finish(self, trial: Trial, found: TrialState) -> None:
        self.listener.ended(trial, found)
        if self._options.order is not None:
            self._options.order.ended(trial, found)
        if self._options.fail_fast and found.state in BROKEN and not self._stopping:
            self.listener.note(f"{trial.name} {found.state}: the others are asked to save and stop")
            self.stop("another trial failed")

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received = number
        kind = self._requests.judge(number, now)
        if not self._stopping:
            self.listener.note(f"{number.name}: every trial is asked to save and stop")
            self.stop(number.name)
        elif kind != "repeat" and number == signal.SIGINT and at_terminal():
            self.listener.note("interrupted again: going on to the next step")
            for running in self._running:
                running.ladder.insist(now)

    def _look_after(self, running: Running) -> None:
        """Whatever is due for one trial."""
        now = time.monotonic()
        if running.child.has_ended():
            running.ladder.leader_ended(len(self._orphans_of(running)), now)
        for step in running.ladder.advance(now):
            self._do(running, step)
        if running.ladder.is_over:
            self._conclude(running)

    def _do(self, running: Running, step: Step) -> None:
        others = []
        if step.to == "all":
            others = leftovers.descendants(root=running.child.pid)
        elif step.to == "left":
            others = self._orphans_of(running)
        name = running.trial.name
        if step.to == "group":
            self.listener.note(f"{name} has not stopped: TERM to its group")
        elif step.to == "all" and not step.again:
            self.listener.note(f"{name} has not ended: KILL")
        elif step.to == "left" and step.number == signal.SIGTERM:
            self.listener.note(f"{name} left {leftovers.names(others)} behind: TERM")
        running.child.do(step, others)

    def _orphans_of(self, running: Running) -> list[psutil.Process]:
        """What outlived a leader: of its session, or with its mark in the environment."""
        leaders = {one.child.pid for one in self._running if not one.child.has_ended()}
        return leftovers.orphans(
            running.child.pid,
            str(running.trial.directory.path),
            others=self._ours | (leaders - {running.child.pid}),
            alone=len(self._running) == 1,
        )

    def _conclude(self, running: Running) -> None:
        """Write down how a trial ended, and free its slot."""
        code = running.child.code
        running.job |= {"stat": "failed" if code else "done", "exit_code": code, "ended": now_iso()}
        if code == ExitCode.REQUEUE and self._options.cluster_job is not None:
            running.job |= {"stat": "running"}  # it goes on in the job's next turn
        if running.ladder.why:
            running.job["asked"] = running.ladder.why
        is_silent = stamp(running.trial.directory) == running.status_before
        if is_silent or read_state(running.trial.directory).state in ("running", "stale"):
            running.job |= dict(zip(("state", "reason"), self._verdict(running, code), strict=True))
        if running.ladder.is_stuck and running.child.has_ended():
            self.listener.note(f"{running.trial.name}: processes do not end even of KILL")
        elif running.ladder.is_stuck:
            stuck = f"process {running.child.pid} does not die even of KILL"
            running.job |= {"state": "failed", "reason": stuck}
        self._note_job(running)
        found = read_state(running.trial.directory)
        others = [] if self._stopping else company(running, found)
        if others:
            self._note_company(running, found, others)
        elif found.state == "out_of_memory" and running.is_alone:
            running.job |= {"state": found.state, "reason": f"{found.reason}; alone as well"}
            self._note_job(running)
        clear_cancel(running.trial.directory)
        running.hold.release()
        self._running.remove(running)
        give_back(self._free, running.slot)
        if not others:
            self._finish(running.trial, read_state(running.trial.directory))

    def _note_company(self, running: Running, found: TrialState, others: Sequence[str]) -> None:
        """It is to be tried again, alone."""
        why = f"out of memory beside {', '.join(others)}"
        running.job |= {"alone": {"tried": False, "beside": [*others]}, "state": found.state}
        running.job["reason"] = f"{why}; to be tried once more, alone: {found.reason}"
        if self._options.cluster_job is not None:
            running.job["stat"] = "running"  # the job has not done with it
        self._note_job(running)
        self._alone.append(Lone(running.trial, is_of_gpu(running, found), tuple(others)))
        self.listener.note(f"{running.trial.name} ran {why}: it is tried once more, alone")

    def _verdict(self, running: Running, code: int) -> tuple[str, str]:
        return verdict(
            running.trial,
            code,
            after_sec=time.monotonic() - running.begun,
            asked=running.ladder.why,
            forced=running.ladder.is_forcing,
        )

    def _note_job(self, running: Running) -> None:
        known = {} if self._options.cluster_job is None else read_job(running.trial.directory) or {}
        known = {key: known[key] for key in known.keys() - {"state", "reason", "ended"}}
        try:
            write_job(running.trial.directory, **{**known, **running.job})
        except OSError as error:
            self.listener.note(f"{running.trial.name}: cannot write job.json: {error}")

    def _wake_at(self) -> float:
        now = time.monotonic()
        due = [one.ladder.due for one in self._running if one.ladder.due is not None]
        if any(running.child.has_ended() for running in self._running):
            due.append(now + POLL_SEC)
        return min([now + TICK_SEC, *due])

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_SEC
            for running in self._running if self._options.cluster_job is not None else []:
                if is_cancel_asked(running.trial.directory, self._options.cluster_job):
                    running.ladder.ask("cancelled", now)
            self.listener.tick(tuple(self._running))
