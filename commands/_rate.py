"""How fast something comes along: a bar with a rate and the time left, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from commands._output import say
from imgtool.units import format_duration

LINE_EVERY_SEC = 10.0
REFRESH_SEC = 0.1


class RateWatcher:
    """Shows one stage after another on stderr; use it in a `with` block."""

    def __init__(self) -> None:
        self._stage = ""
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
            columns.append(TextColumn("{task.fields[speed]}", style="dim"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None, visible=False, speed="")

    def __enter__(self) -> RateWatcher:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        if self._bar is None:
            say(text)
            return
        from rich.text import Text

        self._bar.console.print(Text(text))

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """Show how far a stage has come; as often as one likes."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._begin, self._last = stage, now, now
        elif now - self._last < (LINE_EVERY_SEC if self._bar is None else REFRESH_SEC):
            return
        elif self._bar is None:
            self._last = now
            say(f"{stage}: {self._speed(unit, done, total, now)}")
            return
        if self._bar is not None:
            self._last = now
            speed = self._speed(unit, done, total, now)
            self._bar.update(
                self._task, description=stage, completed=done, total=total, visible=True,
                speed=speed,
            )  # fmt: skip

    def _speed(self, unit: str, done: int, total: int, now: float) -> str:
        text = f"{done:,} of {total:,} {unit}"
        span = now - self._begin
        if done == 0 or span < 1:
            return text
        left = format_duration(span / done * (total - done))
        return f"{text}, {done / span:,.1f} {unit}/s, {left} left"
