"""Signals as a queue: handlers only take notes, the main loop acts."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType

from imgtool.process.ladder import POLL_SEC


class Inbox:
    """Collects signals that arrive, and wakes whoever waits for them or for a child's end.

    A context manager; the handlers before it are put back at its end. Outside the main
    thread, where Python allows no handlers, it only waits.

    Args:
        numbers: the signals; HUP is left alone where it is ignored, as under nohup.
    """

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._numbers = numbers
        self._arrived: list[signal.Signals] = []
        self._previous: dict[int, object] = {}
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Inbox:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        if self._active:
            self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            for number in (*self._numbers, signal.SIGCHLD):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._active:
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, deadline: float | None) -> list[signal.Signals]:
        """Signals since the last call; waits until one or a child's end, or the deadline."""
        left = 1.0 if deadline is None else deadline - time.monotonic()
        longest = 1.0 if self._active else POLL_SEC
        if not self._arrived:
            select.select([self._read_end], [], [], max(0.0, min(left, longest)))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_end, 4096):
                pass
        arrived, self._arrived = self._arrived, []
        return arrived

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._arrived.append(signal.Signals(number))
