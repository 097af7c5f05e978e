"""Run a command for a limited time, stop it gracefully, and leave nothing of it behind.

    running --budget or a signal--> INT (or that signal) to the leader alone
            --grace-->              TERM to the leader's group
            --kill_after-->         KILL to every descendant

The leader alone is asked, since a trainer whose loader workers are interrupted too cannot save,
and torchrun passes the request on to its ranks by itself. Whatever outlives the leader is
ended as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgtool.errors import ExitCode, UserError
from imgtool.process import leftovers
from imgtool.process.inbox import Inbox

Reason = Literal["finished", "budget", "signal"]
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
AS_TERM = (signal.SIGHUP, signal.SIGQUIT)  # they would end us and leave the child alone
WATCHED = (*FORWARDED, *AS_TERM)
REPEAT_SEC = 2.0
LEFTOVER_SEC = 5.0
GIVE_UP_SEC = 30.0
STALL_SEC = 5.0
POLL_SEC = 0.05


class NotRunnable(UserError):
    """The command exists and cannot be run."""

    exit_code = ExitCode.NOT_RUNNABLE


class NotFound(UserError):
    """There is no such command."""

    exit_code = ExitCode.NOT_FOUND


@dataclass(frozen=True)
class Sent:
    """A signal that was sent, and when: seconds after the start."""

    signal: str
    at_sec: float


@dataclass(frozen=True)
class Outcome:
    """How a supervised command ended.

    Attributes:
        reason: finished (by itself), budget (the time was up) or signal (we were asked).
        forced: whether TERM or KILL of the ladder ended it, not its own will.
        child_code: its exit code; 128 + n when signal n ended it.
        signals: what was sent to it, in order.
        elapsed_sec: from its start to its end.
        num_leftover: processes of its that outlived it and were ended.
    """

    reason: Reason
    forced: bool
    child_code: int
    signals: list[Sent]
    elapsed_sec: float
    num_leftover: int


def run(
    command: Sequence[str],
    *,
    duration_sec: float | None,
    grace_sec: float,
    kill_after_sec: float,
    log: Callable[[str], None],
    output: Path | None = None,
    on_output: Callable[[bytes], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_stop: Callable[[], None] | None = None,
    inbox: Inbox | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `command` to its end.

    While it runs, INT, TERM and USR2 to this process are passed on, each once; HUP and QUIT are
    passed on as TERM. One command at a time in a process; signals are handled when this is
    called in the main thread.

    Args:
        command: program and arguments.
        duration_sec: when to ask it to stop; None for never.
        grace_sec: from asking to TERM.
        kill_after_sec: from TERM to KILL.
        log: takes a line on what is done.
        output: a file that stdout and stderr are appended to, by the command itself, so that
            neither a stalled terminal nor our own end holds it up; None passes our stderr on.
        on_output: is given what arrives in `output`, as it comes.
        on_start: is given the pid.
        on_stop: is called right before the command is asked to stop.
        inbox: an entered Inbox of WATCHED, of a caller that is not to be interrupted before and
            after either.
        env: its environment; ours when None.

    Raises:
        NotFound: there is no such program.
        NotRunnable: it cannot be run.
        OSError: `output` cannot be written.
    """

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not cut the command loose
            log(text)

    if not leftovers.become_subreaper():
        say("this system has no subreaper: daemons of the command may outlive it")
    ours = leftovers.children()
    with contextlib.ExitStack() as stack:
        inbox = inbox or stack.enter_context(Inbox(WATCHED))
        target, position = 2, 0
        if output is not None:
            file = stack.enter_context(open(output, "ab"))
            target, position = file.fileno(), file.tell()
        child = _start(command, target, env)
        ladder = _Ladder(child, duration_sec, grace_sec, kill_after_sec, say, on_stop)
        if output is not None and on_output is not None:
            stack.enter_context(_follow(output, position, on_output))
        if on_start is not None:
            on_start(child.pid)
        while child.poll() is None and not ladder.given_up:
            for number in inbox.wait(ladder.deadline):
                ladder.receive(number)
            ladder.advance(ours)
            leftovers.reap(ours | {child.pid})
        elapsed = ladder.elapsed()
        num_leftover = _end_leftovers(ladder, inbox, ours)
    return Outcome(
        ladder.cause, ladder.forced(), ladder.child_code(), ladder.sent, elapsed, num_leftover
    )


def exit_code(outcome: Outcome, *, saved: bool | None, strict: bool = False) -> int:
    """What a supervisor should end with.

    The command's own code when it ended by itself; 0 when it saved and stopped as asked; 124
    when it had to be killed; else its own code again.

    Args:
        outcome: of `run`.
        saved: whether it saved anything when it was asked; None when nobody can know.
        strict: the command's own code in every case.
    """
    code = outcome.child_code
    if strict or outcome.reason == "finished" or code == 0:
        return code
    if saved and code != 128 + signal.SIGKILL:
        return ExitCode.OK  # torchrun ends with 1 even when every rank has saved
    if outcome.forced:
        return ExitCode.KILLED
    if saved is None and code == 128 + signal.SIGINT:
        return ExitCode.OK  # a program without a handler, stopped as asked
    return code


class _Ladder:
    """How far stopping has gone, and what comes next when."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        duration_sec: float | None,
        grace_sec: float,
        kill_after_sec: float,
        log: Callable[[str], None],
        on_stop: Callable[[], None] | None,
    ) -> None:
        self.sent: list[Sent] = []
        self.cause: Reason = "finished"
        self.given_up = False
        self.kill_after_sec = kill_after_sec
        self.log = log
        self._child = child
        self._grace_sec = grace_sec
        self._on_stop = on_stop
        self._start = time.monotonic()
        self._stage: Literal["running", "asked", "term", "kill"] = "running"
        self.deadline = None if duration_sec is None else self._start + duration_sec
        self._killed_at: float | None = None
        self._last: dict[int, float] = {}

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def receive(self, number: signal.Signals) -> None:
        """Pass a signal on, or climb when someone at a terminal insists."""
        number = signal.SIGTERM if number in AS_TERM else number
        now = time.monotonic()
        before = self._last.get(number)
        if before is None:
            self._last[number] = now
            if self._stage == "running":
                self._ask("signal", number)
            else:
                self._to_leader(number)
            return
        if now - before < REPEAT_SEC:
            return  # LSF and `timeout` deliver one request twice
        self._last[number] = now
        if number == signal.SIGINT and _at_terminal():
            self.log("interrupted again")
            self.deadline = now

    def advance(self, ours: frozenset[int]) -> None:
        """Do what is due by now."""
        if self.deadline is None or time.monotonic() < self.deadline:
            return
        if self._stage == "running":
            self.log("the time is up")
            self._ask("budget", signal.SIGINT)
        elif self._stage == "asked":
            self._term()
        else:
            self._kill(ours)

    def forced(self) -> bool:
        """Whether a signal of the ladder itself ended the child."""
        ends = {"term": (signal.SIGTERM,), "kill": (signal.SIGTERM, signal.SIGKILL)}
        return self.child_code() in [128 + number for number in ends.get(self._stage, ())]

    def child_code(self) -> int:
        code = self._child.returncode
        if code is None:  # it does not even die, stuck in a driver or a file system
            return 128 + signal.SIGKILL
        return 128 - code if code < 0 else code

    def note(self, number: signal.Signals) -> None:
        self.sent.append(Sent(number.name.removeprefix("SIG"), round(self.elapsed(), 3)))

    def _ask(self, cause: Reason, number: signal.Signals) -> None:
        self.cause = cause
        self._stage = "asked"
        if self._on_stop is not None:
            with contextlib.suppress(OSError):
                self._on_stop()
        self.deadline = time.monotonic() + self._grace_sec
        self._to_leader(number)

    def _to_leader(self, number: signal.Signals) -> None:
        self.log(f"sending {number.name} to process {self._child.pid}")
        self._last[number] = time.monotonic()
        self._child.send_signal(number)
        self._child.send_signal(signal.SIGCONT)  # a suspended one could not obey
        self.note(number)

    def _term(self) -> None:
        self.log("it has not stopped: sending SIGTERM to its group")
        self._stage = "term"
        self.deadline = time.monotonic() + self.kill_after_sec
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
        self.note(signal.SIGTERM)

    def _kill(self, ours: frozenset[int]) -> None:
        now = time.monotonic()
        if self._killed_at is None:
            self.log("it has not ended: sending SIGKILL to it and to all below it")
            self.note(signal.SIGKILL)
            self._stage = "kill"
            self._killed_at = now
        self.given_up = now - self._killed_at > GIVE_UP_SEC
        self.deadline = now + POLL_SEC
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        for process in leftovers.descendants(ours):
            leftovers.send(process, signal.SIGKILL)


def _end_leftovers(ladder: _Ladder, inbox: Inbox, ours: frozenset[int]) -> int:
    """End what outlived the leader: TERM, a while later KILL. Returns how many there were."""
    left = leftovers.descendants(ours)
    leftovers.reap(ours)
    if not left:
        return 0
    names = leftovers.names(left)
    ladder.log(f"{len(left)} processes outlived the command ({names}): sending SIGTERM")
    for process in left:
        leftovers.send(process, signal.SIGTERM)
    # After a stop a rank or a wrapped trainer may be saving still.
    asked = bool(ladder.sent)
    wait = ladder.kill_after_sec if asked else min(ladder.kill_after_sec, LEFTOVER_SEC)
    deadline = time.monotonic() + wait
    started = time.monotonic()
    killed = False
    while remaining := leftovers.descendants(ours):
        now = time.monotonic()
        received = inbox.wait(now + POLL_SEC)
        if signal.SIGINT in received and now - started > REPEAT_SEC and _at_terminal():
            deadline = now
        if now >= deadline + GIVE_UP_SEC:
            ladder.log(f"{len(remaining)} processes do not end even after SIGKILL")
            break
        if now >= deadline:
            if not killed:
                ladder.log(f"sending SIGKILL to {len(remaining)} processes")
            killed = True
            for process in remaining:
                leftovers.send(process, signal.SIGKILL)
        leftovers.reap(ours)
    leftovers.reap(ours)
    return len(left)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def check_runnable(program: str) -> None:
    """See early that a program exists and may be executed.

    Raises:
        NotFound: there is none of this name.
        NotRunnable: it is a folder, or not executable.
    """
    if shutil.which(program):
        return
    if os.sep in program and os.path.exists(program):
        raise _not_runnable(program, "it is not an executable file")
    raise NotFound(f"command not found: {program}", hint="check its spelling and PATH")


def _not_runnable(program: str, why: str) -> NotRunnable:
    return NotRunnable(
        f"cannot run {program}: {why}",
        hint="a script needs chmod +x and a first line such as #!/bin/sh",
    )


def _start(
    command: Sequence[str], target: int, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    environment = dict(os.environ if env is None else env)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if _at_terminal() else None,
            stdout=target,
            stderr=target,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        check_runnable(command[0])
        raise _not_runnable(command[0], "its interpreter does not exist") from error
    except (OSError, ValueError) as error:
        raise _not_runnable(command[0], getattr(error, "strerror", None) or str(error)) from error


@contextlib.contextmanager
def _follow(path: Path, position: int, on_output: Callable[[bytes], None]) -> Iterator[None]:
    """Hand on what is appended to `path` after `position`, from a thread of its own."""
    finished = threading.Event()

    def copy() -> None:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(position)
            while True:
                is_last = finished.wait(2 * POLL_SEC)
                while data := file.read(65536):
                    on_output(data)
                if is_last:
                    return

    thread = threading.Thread(target=copy, name="output", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=STALL_SEC)  # a stalled terminal must not hold us
