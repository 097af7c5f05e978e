"""How a command is brought to its end: one machine that knows no process and no clock.

    running --the deadline, or a request--> asked: a signal to the leader alone, which saves
            --grace-->                      term:  TERM to the leader's group
            --kill_after-->                 kill:  KILL to all below, until it is gone
    the leader has ended, others live on:   TERM to them, a while later KILL

The leader alone is asked, since a trainer whose loader workers are interrupted too cannot save.
Whoever drives the machine tells it the time and what happened, and carries out its steps.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from imgtool.process.stopping import REPEAT_SEC

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
AS_TERM = (signal.SIGHUP, signal.SIGQUIT)  # they would end us and leave the child alone
WATCHED = (*FORWARDED, *AS_TERM)
KILL_AFTER_SEC = 30.0  # from TERM to KILL, where nobody says otherwise
LEFTOVER_SEC = 5.0
GIVE_UP_SEC = 30.0
POLL_SEC = 0.05


@dataclass(frozen=True)
class Step:
    """A signal that is due.

    Attributes:
        to: the leader, its group, all (the group and everything below it), or left (what has
            outlived the leader).
        number: the signal.
        again: whether it repeats a KILL that has not been enough yet.
    """

    to: Literal["leader", "group", "all", "left"]
    number: signal.Signals
    again: bool = False


class Requests:
    """Which of the signals that arrive are new requests: LSF and `timeout` deliver one twice."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def judge(self, number: signal.Signals, now: float) -> Literal["first", "repeat", "again"]:
        """The first of its number, a repeat within two seconds, or a later one."""
        before = self._last.get(number)
        if before is not None and now - before < REPEAT_SEC:
            return "repeat"
        self._last[number] = now
        return "first" if before is None else "again"

    def sent(self, number: signal.Signals, now: float) -> None:
        """We have sent this one ourselves; what arrives within two seconds repeats it."""
        self._last[number] = now


class Ladder:
    """How far stopping has gone, and what is due next when.

    Attributes:
        stage: of the leader.
        due: when `advance` has something to do; None while nothing is.
        why: the reason of the first request; None while there was none.
        is_over: nothing is left, or what is left does not die.
        is_stuck: it does not die even of KILL.

    Args:
        grace_sec: from asking to TERM.
        kill_after_sec: from TERM to KILL.
        deadline: when to ask by itself (`why` is then "budget"); None for never.
        leftover_sec: what outlives a leader that ended unasked gets, from TERM to KILL.
        insistent: whether a second INT, two seconds later, goes on to the next step; of
            someone at a terminal.
    """

    def __init__(
        self,
        grace_sec: float,
        kill_after_sec: float,
        *,
        deadline: float | None = None,
        leftover_sec: float = LEFTOVER_SEC,
        insistent: bool = False,
    ) -> None:
        self.stage: Literal["running", "asked", "term", "kill"] = "running"
        self.due = deadline
        self.why: str | None = None
        self.is_over = self.is_stuck = False
        self._grace_sec, self._kill_after_sec = grace_sec, kill_after_sec
        self._leftover_sec = min(kill_after_sec, leftover_sec)
        self._insistent = insistent
        self._requests = Requests()
        self._steps: list[Step] = []
        self._has_ended = False
        self._killed_at: float | None = None

    @property
    def is_forcing(self) -> bool:
        """Whether it has gone beyond asking."""
        return self.stage in ("term", "kill")

    def ask(self, why: str, now: float, number: signal.Signals = signal.SIGINT) -> None:
        """Ask the leader to save and stop; only the first request counts."""
        if self.stage != "running" or self._has_ended:
            return
        self.stage, self.why, self.due = "asked", why, now + self._grace_sec
        self._to_leader(number, now)

    def receive(self, number: signal.Signals, now: float) -> None:
        """A signal for the command: the first of each is passed on, HUP and QUIT as TERM."""
        number = signal.SIGTERM if number in AS_TERM else number
        kind = self._requests.judge(number, now)
        if kind == "first" and not self._has_ended:
            if self.stage == "running":
                self.ask("signal", now, number)
            else:
                self._to_leader(number, now)
        elif kind != "repeat" and number == signal.SIGINT and self._insistent:
            self.insist(now)

    def insist(self, now: float) -> None:
        """Go on to the next step at once."""
        self.due = now

    def leader_ended(self, num_left: int, now: float) -> None:
        """The leader has ended; say it again until `is_over`.

        Args:
            num_left: processes of its that live on.
        """
        if not self._has_ended:
            self._steps = []  # what was due for the leader
            self._requests.sent(signal.SIGINT, now)
        if num_left == 0:
            self.is_over, self.due = True, None
        elif not self._has_ended and self.stage == "kill":
            self.due = now  # it is past asking
        elif not self._has_ended:
            self._steps = [Step("left", signal.SIGTERM)]
            # After a stop a rank or a wrapped trainer may be saving still.
            self.due = now + (self._kill_after_sec if self.why else self._leftover_sec)
        self._has_ended = True

    def advance(self, now: float) -> list[Step]:
        """The steps that are due by now."""
        if not self.is_over and self.due is not None and now >= self.due:
            self._climb(now)
        steps, self._steps = self._steps, []
        return steps

    def _climb(self, now: float) -> None:
        if self._has_ended:
            self._kill("left", now)
        elif self.stage == "running":
            self.ask("budget", now)
        elif self.stage == "asked":
            self.stage, self.due = "term", now + self._kill_after_sec
            self._steps.append(Step("group", signal.SIGTERM))
        else:
            self.stage = "kill"
            self._kill("all", now)

    def _kill(self, to: Literal["all", "left"], now: float) -> None:
        self._steps.append(Step(to, signal.SIGKILL, again=self._killed_at is not None))
        self._killed_at = now if self._killed_at is None else self._killed_at
        self.due = now + POLL_SEC
        if now - self._killed_at > GIVE_UP_SEC:  # stuck in a driver or a file system
            self.is_stuck = self.is_over = True

    def _to_leader(self, number: signal.Signals, now: float) -> None:
        self._requests.sent(number, now)
        self._steps.append(Step("leader", number))
