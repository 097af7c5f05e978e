"""Trials on this machine: a pool of slots, watched by one loop without threads.

a signal--> INT to every trial's leader, once; nothing new starts
    --grace-->      TERM to its group
    --kill_after--> KILL to all that is left of it
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from imgtool.errors import UserError
from imgtool.experiment.status import now_iso
from imgtool.process import leftovers
from imgtool.process.inbox import Inbox
from imgtool.process.supervise import REPEAT_SEC, WATCHED
from imgtool.sweep import claim, jobs
from imgtool.sweep.running import Running, start
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import (
    BROKEN,
    KILLED,
    TrialState,
    read_state,
    write_job,
)
from imgtool.sweep.trial import Plan, Trial
from imgtool.sweep.verdict import done_meanwhile, stamp, traces, verdict

if TYPE_CHECKING:
    import psutil

GRACE_SEC = 300.0
KILL_AFTER_SEC = 30.0
LEFTOVER_SEC = 5.0
GIVE_UP_SEC = 30.0
TICK_SEC = 1.0
POLL_SEC = 0.05


class Listener(Protocol):
    """Is told what happens, for people."""

    def started(self, trial: Trial, slot: Slot, pid: int) -> None:
        """A trial's process runs."""

    def ended(self, trial: Trial, state: TrialState) -> None:
        """It has ended, or could not be started."""

    def left(self, trial: Trial, reason: str) -> None:
        """It is not run, since someone else runs it or has just run it."""

    def tick(self, running: Sequence[Running]) -> None:
        """About once a second."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a pool works.

    Attributes:
        slots: where trials train; as many run at once.
        fail_fast: the first failure stops the others, which save.
        grace_sec: from asking a trial to stop to TERM.
        kill_after_sec: from TERM to KILL.
        command_of: program and arguments that train a trial.
    """

    slots: tuple[Slot, ...]
    fail_fast: bool = False
    grace_sec: float = GRACE_SEC
    kill_after_sec: float = KILL_AFTER_SEC
    command_of: Callable[[Plan, Trial], list[str]] = jobs.timed_command


def run(
    plan: Plan, trials: Iterable[Trial], options: Options, listener: Listener
) -> signal.Signals | None:
    """Run trials until all have ended; in the main thread, one pool at a time.

    Each runs in a session of its own, its output goes to child.log; job.json says what became
    of it even where it could not say so itself. A claim keeps others from starting it. INT,
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
            pool.listener = _Silence()
            pool.loop(inbox)
            raise
    return pool.received


class _Silence:
    def started(self, trial: Trial, slot: Slot, pid: int) -> None: ...
    def ended(self, trial: Trial, state: TrialState) -> None: ...
    def left(self, trial: Trial, reason: str) -> None: ...
    def tick(self, running: Sequence[Running]) -> None: ...
    def note(self, text: str) -> None: ...


class _Pool:
    """The trials that wait, those that run, and the slots that are free."""

    def __init__(
        self, plan: Plan, trials: Iterable[Trial], options: Options, listener: Listener
    ) -> None:
        self.listener: Listener = listener
        self.received: signal.Signals | None = None
        self._plan, self._options = plan, options
        self._waiting = deque((trial, traces(trial.directory)) for trial in trials)
        self._free = deque(options.slots)
        self._running: list[Running] = []
        self._stopping = False
        self._insisted = 0.0
        self._next_tick = 0.0
        if not leftovers.become_subreaper():
            listener.note("this system has no subreaper: daemons of a trial may outlive it")
        self._ours = leftovers.children()

    def loop(self, inbox: Inbox) -> None:
        """Until nothing waits or runs."""
        while True:
            self._fill()
            if not self._running:
                return
            for number in inbox.wait(self._wake_at()):
                self._receive(number)
            for running in [*self._running]:
                self._look_after(running)
            leftovers.reap(self._ours | {running.process.pid for running in self._running})
            self._tick()

    def stop(self, why: str) -> None:
        """Ask every trial to stop and save; nothing new starts."""
        self._waiting.clear()
        if self._stopping:
            return
        self._stopping = True
        self._insisted = time.monotonic()
        for running in self._running:
            if running.stage == "running" and running.process.poll() is None:
                running.ask(why, self._options.grace_sec)

    def _fill(self) -> None:
        while self._free and self._waiting and not self._stopping:
            trial, before = self._waiting.popleft()
            try:
                held = claim.take(trial.directory)
            except UserError as error:
                self._refuse(trial, str(error))
                continue
            if held is None:
                self.listener.left(trial, "another sweep has it")
            elif reason := done_meanwhile(trial, before):
                held.release()
                self.listener.left(trial, reason)
            else:
                self._start(trial, held)

    def _start(self, trial: Trial, held: claim.Claim) -> None:
        slot = self._free.popleft()
        try:
            running = start(trial, slot, held, self._options.command_of(self._plan, trial))
        except (OSError, UserError) as error:
            held.release()
            self._free.appendleft(slot)
            self._refuse(trial, str(error))
            return
        self._running.append(running)
        with suppress(OSError):
            held.add_child(running.process.pid)
        self._note_job(running)
        self.listener.started(trial, slot, running.process.pid)

    def _refuse(self, trial: Trial, reason: str) -> None:
        """A trial that cannot be started."""
        if trial.directory.path.is_dir():
            with suppress(OSError):
                write_job(
                    trial.directory,
                    executor="local",
                    stat="EXIT",
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
        if self._options.fail_fast and found.state in BROKEN and not self._stopping:
            self.listener.note(f"{trial.name} {found.state}: the others are asked to save and stop")
            self.stop("another trial failed")

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._stopping:
            self.received = number
            self.listener.note(f"{number.name}: every trial is asked to save and stop")
            self.stop(number.name)
            return
        if self.received is None:
            self.received = number
        if number == signal.SIGINT and now - self._insisted > REPEAT_SEC and _at_terminal():
            self._insisted = now
            self.listener.note("interrupted again: going on to the next step")
            for running in self._running:
                running.deadline = now

    def _look_after(self, running: Running) -> None:
        """Whatever is due for one trial."""
        now = time.monotonic()
        running.claim.refresh()
        if running.stage == "ended":
            self._end_leftovers(running, now)
            return
        if running.process.poll() is not None:
            self._leader_ended(running, now)
            return
        if running.deadline is None or now < running.deadline:
            return
        if running.stage == "asked":
            self.listener.note(f"{running.trial.name} has not stopped: TERM to its group")
            running.stage, running.deadline = "term", now + self._options.kill_after_sec
            running.to_group(signal.SIGTERM)
        else:
            self._kill(running, now)

    def _kill(self, running: Running, now: float) -> None:
        """KILL to the leader and all below it, again and again until it is gone."""
        if running.killed_at is None:
            running.stage, running.killed_at = "kill", now
            self.listener.note(f"{running.trial.name} has not ended: KILL")
        running.deadline = now + POLL_SEC
        running.to_group(signal.SIGKILL)
        for process in leftovers.descendants(root=running.process.pid):
            leftovers.send(process, signal.SIGKILL)
        if now - running.killed_at > GIVE_UP_SEC:  # stuck in a driver or a file system
            self._conclude(running, f"process {running.process.pid} does not die even of KILL")

    def _leader_ended(self, running: Running, now: float) -> None:
        running.leftovers = self._orphans_of(running)
        if not running.leftovers:
            self._conclude(running)
            return
        names = leftovers.names(running.leftovers)
        self.listener.note(f"{running.trial.name} left {names} behind: TERM")
        for process in running.leftovers:
            leftovers.send(process, signal.SIGTERM)
        # After a stop a rank may be saving still.
        wait = self._options.kill_after_sec if running.is_asked else LEFTOVER_SEC
        running.stage = "ended"
        running.deadline = now + min(wait, self._options.kill_after_sec)

    def _end_leftovers(self, running: Running, now: float) -> None:
        running.leftovers = self._orphans_of(running)
        if running.leftovers and running.deadline is not None and now >= running.deadline:
            for process in running.leftovers:
                leftovers.send(process, signal.SIGKILL)
            if now >= running.deadline + GIVE_UP_SEC:
                self.listener.note(f"{running.trial.name}: processes do not end even of KILL")
                running.leftovers = []
        if not running.leftovers:
            self._conclude(running)

    def _orphans_of(self, running: Running) -> list[psutil.Process]:
        """What outlived a leader: of its session, or with its mark in the environment."""
        leaders = {other.process.pid for other in self._running if other.stage != "ended"}
        return leftovers.orphans(
            running.process.pid,
            str(running.trial.directory.path),
            others=self._ours | (leaders - {running.process.pid}),
            alone=len(self._running) == 1,
        )

    def _conclude(self, running: Running, stuck: str | None = None) -> None:
        """Write down how a trial ended, and free its slot."""
        code = running.process.returncode
        code = KILLED if code is None else 128 - code if code < 0 else code
        running.job |= {"stat": "EXIT" if code else "DONE", "exit_code": code, "ended": now_iso()}
        is_silent = stamp(running.trial.directory) == running.status_before
        if is_silent or read_state(running.trial.directory).state in ("running", "stale"):
            running.job |= dict(zip(("state", "reason"), self._verdict(running, code), strict=True))
        if stuck:
            running.job |= {"state": "failed", "reason": stuck}
        self._note_job(running)
        running.claim.release()
        self._running.remove(running)
        self._free.append(running.slot)
        self._finish(running.trial, read_state(running.trial.directory))

    def _verdict(self, running: Running, code: int) -> tuple[str, str]:
        return verdict(
            running.trial,
            code,
            after_sec=time.monotonic() - running.begun,
            asked=running.job.get("asked"),
            forced=running.stage in ("term", "kill"),
        )

    def _note_job(self, running: Running) -> None:
        try:
            write_job(running.trial.directory, **running.job)
        except OSError as error:
            self.listener.note(f"{running.trial.name}: cannot write job.json: {error}")

    def _wake_at(self) -> float:
        deadlines = [r.deadline for r in self._running if r.deadline is not None]
        now = time.monotonic()
        if any(running.stage == "ended" for running in self._running):
            deadlines.append(now + POLL_SEC)
        return min([now + TICK_SEC, *deadlines])

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_SEC
            self.listener.tick(tuple(self._running))


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
