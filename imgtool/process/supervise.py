"""Run a command for a limited time, stop it gracefully, and leave nothing of it behind.

Its Ladder says when it gets which signal; whatever outlives it is ended as well. When this
process dies, of KILL too, the kernel sends the command INT: none trains on without its limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from imgtool.errors import ExitCode
from imgtool.experiment.alive import SUPERVISOR_VARIABLE, word_of
from imgtool.process import leftovers
from imgtool.process.child import KILLED, Child
from imgtool.process.inbox import Inbox
from imgtool.process.ladder import POLL_SEC, WATCHED, Ladder, Step
from imgtool.process.stopping import at_terminal

Reason = Literal["finished", "budget", "signal"]
STALL_SEC = 5.0


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
        environment = dict(os.environ if env is None else env)
        child = Child(
            command,
            env={**environment, SUPERVISOR_VARIABLE: word_of(os.getpid())},
            output=target,
            stdin=subprocess.DEVNULL if at_terminal() else None,
            on_our_death=signal.SIGINT,
        )
        begun = time.monotonic()
        ladder = Ladder(
            grace_sec,
            kill_after_sec,
            deadline=None if duration_sec is None else begun + duration_sec,
            insistent=at_terminal(),
        )
        if output is not None and on_output is not None:
            stack.enter_context(_follow(output, position, on_output))
        if on_start is not None:
            on_start(child.pid)
        return Supervision(child, ladder, ours, say, on_stop, begun).watch(inbox)


class Supervision:
    """A command, and the ladder that ends it.

    Args:
        ours: children that are none of its own.
        say, on_stop: as in `run`.
        begun: when it was started; now when None.
    """

    def __init__(
        self,
        child: Child,
        ladder: Ladder,
        ours: frozenset[int],
        say: Callable[[str], None],
        on_stop: Callable[[], None] | None = None,
        begun: float | None = None,
    ) -> None:
        self._child, self._ladder, self._ours = child, ladder, ours
        self._say, self._on_stop = say, on_stop
        self._begun = time.monotonic() if begun is None else begun
        self._sent: list[Sent] = []

    def watch(self, inbox: Inbox) -> Outcome:
        """Until it has ended and nothing of it is left."""
        elapsed, num_leftover = 0.0, 0
        while not self._ladder.is_over:
            if self._child.has_ended():
                left = leftovers.descendants(self._ours)
                if not num_leftover:
                    elapsed, num_leftover = self._elapsed(), len(left)
                self._ladder.leader_ended(len(left), time.monotonic())
            for step in self._ladder.advance(time.monotonic()):
                self._do(step)
            leftovers.reap(self._ours | {self._child.pid})
            if not self._ladder.is_over:
                for number in inbox.wait(self._wake_at()):
                    self._receive(number)
        if self._ladder.is_stuck and num_leftover:
            count = len(leftovers.descendants(self._ours))
            self._say(f"{count} processes do not end even after SIGKILL")
        return Outcome(
            reason=cast(Reason, self._ladder.why or "finished"),
            forced=self._was_forced(),
            child_code=self._child.code,
            signals=self._sent,
            elapsed_sec=elapsed or self._elapsed(),
            num_leftover=num_leftover,
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _wake_at(self) -> float | None:
        if not self._child.wants_a_look():
            return self._ladder.due
        soon = time.monotonic() + POLL_SEC
        return soon if self._ladder.due is None else min(soon, self._ladder.due)

    def _was_forced(self) -> bool:
        """Whether a signal of the ladder itself ended the child."""
        numbers = {"term": [signal.SIGTERM], "kill": [signal.SIGTERM, signal.SIGKILL]}
        return self._child.code in [128 + n for n in numbers.get(self._ladder.stage, [])]

    def _receive(self, number: signal.Signals) -> None:
        before = self._ladder.due
        self._ladder.receive(number, time.monotonic())
        if self._ladder.due != before and self._sent:
            self._say("interrupted again")

    def _do(self, step: Step) -> None:
        others = leftovers.descendants(self._ours) if step.to in ("all", "left") else []
        if not step.again:
            self._announce(step, leftovers.names(others), len(others))
        self._child.do(step, others)

    def _announce(self, step: Step, names: str, number: int) -> None:
        if step.to == "leader":
            if not self._sent:
                if self._ladder.why == "budget":
                    self._say("the time is up")
                if self._on_stop is not None:
                    with contextlib.suppress(OSError):
                        self._on_stop()
            self._say(f"sending {step.number.name} to {self._child.who}")
        elif step.to == "group":
            self._say("it has not stopped: sending SIGTERM to its group")
        elif step.to == "all":
            self._say("it has not ended: sending SIGKILL to it and to all below it")
        elif step.number == signal.SIGTERM:
            self._say(f"{number} processes outlived the command ({names}): sending SIGTERM")
        else:
            self._say(f"sending SIGKILL to {number} processes")
        if step.to != "left":
            word = step.number.name.removeprefix("SIG")
            self._sent.append(Sent(word, round(self._elapsed(), 3)))


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
    if saved and code != KILLED:
        return ExitCode.OK  # torchrun ends with 1 even when every rank has saved
    if outcome.forced:
        return ExitCode.KILLED
    if saved is None and code == 128 + signal.SIGINT:
        return ExitCode.OK  # a program without a handler, stopped as asked
    return code


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
