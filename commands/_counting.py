"""How far a count has come: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from commands._output import say

LINE_EVERY_SEC = 10.0


@contextmanager
def counting(verb: str, noun: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Give a function that is told (done, in all), as often as one likes.

    Args:
        verb: what is being done, such as `making`.
        noun: what is counted.
    """
    if not sys.stderr.isatty():
        yield _lines(verb, noun)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(f"{verb} {noun}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(verb: str, noun: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_SEC:
            last = time.monotonic()
            say(f"{verb} {noun}: {done} of {total}")

    return tell
