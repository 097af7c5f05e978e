"""What people see of work that takes a while: a bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from commands._output import say
from imgtool.units import format_duration

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY_SEC = 10.0
REFRESH_SEC = 0.1


class Display:
    """A bar, or lines: whoever works tells it how far it has come, as often as it likes.

    To be closed, or used in a `with` block.
    """

    def __init__(self) -> None:
        self._last = float("-inf")
        self._bar: Any = None
        self._task: TaskID | None = None
        self._console: Any = None
        self._stage, self._begin = "", time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_lines(self) -> bool:
        """Whether there is no terminal to draw on."""
        return self._console is None

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._console is None:
            say(text)
            return
        from rich.text import Text

        self._console.print(Text(text))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def show(
        self,
        stage: str,
        done: int,
        total: int | None,
        line: Callable[[], str],
        *parts: str,
        is_news: bool = False,
    ) -> None:
        """Redraw the bar, or write a line if the last one is long enough ago.

        Args:
            stage: what is done.
            total: None where nobody knows, which a bar shows by moving.
            line: the plain line; asked for only when it is written.
            parts: what stands beside the bar.
            is_news: draw at once.
        """
        now = time.monotonic()
        if self._console is None:
            if now - self._last >= LINE_EVERY_SEC:
                self._last = now
                say(line())
        elif is_news or now - self._last >= REFRESH_SEC:
            self._last = now
            self._draw(stage, done, total, " · ".join(part for part in parts if part))

    def _draw(self, stage: str, done: int, total: int | None, text: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                SpinnerColumn() if total is None else BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}", style="dim"),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._bar.add_task(stage, total=total, text=text)
            self._bar.start()
        self._bar.update(self._task, description=stage, completed=done, total=total, text=text)

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """A count with its rate and the time left."""
        if stage != self._stage:
            self._stage = stage
            self._begin = now = time.monotonic()
            self._last = now if self._console is None else float("-inf")  # no line says `0 of 9`

        def speed() -> str:
            return _speed(unit, done, total, time.monotonic() - self._begin)

        self.show(stage, done, total, lambda: f"{stage}: {speed()}", speed())


def _speed(unit: str, done: int, total: int, span_sec: float) -> str:
    text = f"{done:,} of {total:,} {unit}"
    if done == 0 or span_sec < 1:
        return text
    left = format_duration(span_sec / done * (total - done))
    return f"{text}, {done / span_sec:,.1f} {unit}/s, {left} left"


@contextmanager
def counting(stage: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Give a function that is told (done, in all), as often as one likes."""
    with Display() as display:
        yield lambda done, total: display.progress(stage, unit, done, total)
