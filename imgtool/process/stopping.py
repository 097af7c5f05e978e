"""Ending a run well: signals set a flag, the engine looks at it between updates.

Torch-free: handlers are in place before torch is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imgtool.errors import ExitCode

# HUP besides those of the design: a closed terminal should not cost the work since the last save.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
REPEAT_SEC = 2.0  # LSF and `timeout` deliver one request twice


@contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted while this lasts, for work that asks between two pieces whether to go on.

    One that comes REPEAT_SEC after the first is a KeyboardInterrupt, wherever the work is. In
    another thread than the main one, or where Ctrl-C is ignored, all stays as it is.
    """
    before = signal.getsignal(signal.SIGINT)
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and time.monotonic() - asked[0] > REPEAT_SEC:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def at_terminal() -> bool:
    """Whether someone types at this process."""
    return sys.stdin is not None and sys.stdin.isatty()


class StopRequest:
    """Whether, and why, this process has been asked to stop.

    Attributes:
        reason: the signal's name, or None while nobody has asked.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._first: float | None = None

    @property
    def wanted(self) -> bool:
        """True once a stop has been asked for."""
        return self.reason is not None

    @property
    def asked_sec(self) -> float:
        """Seconds since a stop was first asked for; 0 while nobody has."""
        return 0.0 if self._first is None else time.monotonic() - self._first

    def ask(self, reason: str) -> None:
        """Ask for a stop; the first reason stays."""
        if self.reason is None:
            self.reason = reason
            self._first = time.monotonic()

    def install(self) -> None:
        """Handle SIGNALS from now on (main thread only); one that nohup ignores stays ignored."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # ranks hold them back until now

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self.ask(signal.Signals(number).name)
            return
        insists = time.monotonic() - self._first > REPEAT_SEC
        if number == signal.SIGINT and insists and at_terminal():
            os.write(2, b"\nimgtool: interrupted again; leaving without saving\n")
            os._exit(ExitCode.INTERRUPTED)
